"""What a run was measured on."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
VARIABLES = (
    "GLIBC_TUNABLES",
    "JAX_PLATFORMS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
)
REPOSITORY = Path(__file__).parent.parent


def describe(written_here: Iterable[Path]) -> dict[str, Any]:
    """The machine, the packages, the commit and the variables that matter, in words.

    Args:
      written_here: files of the repository whose changes don't make the commit another one.
    """
    devices = jax.devices()
    installed = {name: _version(name) for name in PACKAGES}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(written_here),
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        **{name: found for name, found in installed.items() if found},
        "environment": _variables(),
    }


def _variables() -> str:
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return " ".join(given) or "none of the variables that matter"


def load_average() -> str:
    """How busy the machine is: processes that ran or wanted to, over the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit(written_here: Iterable[Path]) -> str:
    """The short hash, with a plus where the working tree differs from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    own = {path.relative_to(REPOSITORY).as_posix() for path in written_here}
    return commit + ("+" if any(line[3:] not in own for line in changed) else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout


def _memory() -> str:
    total = _first("/proc/meminfo", "MemTotal")
    return f"{int(total.split()[0]) / 2**20:.0f} GiB" if total else "unknown"


def _first(file: str, key: str) -> str:
    """The first value of a key in a file of `key : value` lines; empty where there is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
    return values[0] if values else ""
