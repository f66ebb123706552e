"""Zygotes from the outside: started, given snippets, ended."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elpo_jax.sandbox.base import Limits, Result, Snippet, Status, Tier
from elpo_jax.sandbox.inside.frames import receive, send
from elpo_jax.sandbox.inside.runner import EXIT_MEMORY, EXIT_OK

_START_SECONDS = 120.0  # for a zygote to load everything on a busy machine
_GRACE_SECONDS = 10.0  # beyond a snippet's time, before its zygote counts as hung
_KILLED = {
    "cpu": Status.TIMEOUT,
    "clock": Status.TIMEOUT,
    "output": Status.OUTPUT,
    "disk": Status.ERROR,
}
_BOOT = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from elpo_jax.sandbox.inside.zygote import main; main()"
)


class ZygoteFailure(Exception):
    """A zygote couldn't be started, or broke."""


class Zygote:
    """A process that runs one snippet after another.

    Args:
      tier: how snippets are locked in.
      preload: modules to have loaded.

    Raises:
      ZygoteFailure: it can't be started; in one line, why.
    """

    def __init__(self, tier: Tier, preload: Sequence[str]):
        root = str(Path(__file__).parents[2])
        order = {
            "mechanisms": sorted(tier.mechanisms),
            "preload": list(preload),
            "path": _site_folders(preload),
            "root": root,
        }
        boot = _BOOT.format(root=root)
        ours, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="elpo_jax_sandbox_")
        self._channel = ours
        descriptor = theirs.fileno()
        try:
            self._process = subprocess.Popen(
                # Without debug ranges, tracebacks have no carets, whose places differ by version.
                [sys.executable, "-sPB", "-X", "no_debug_ranges", "-c", boot, str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                env=_environment(),
                cwd="/",
                start_new_session=True,  # a Ctrl-C at the terminal isn't for it
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ZygoteFailure(f"can't be started: {error.strerror}") from None
        finally:
            theirs.close()
        ours.settimeout(_START_SECONDS)
        try:
            send(ours, {**order, "folder": self._folder})
            answer, _ = receive(ours)
        except (OSError, EOFError):
            self.close()
            raise ZygoteFailure("ended, or hung, while it was starting") from None
        if "error" in answer:
            self.close()
            raise ZygoteFailure(answer["error"])

    def run(self, snippet: Snippet, limits: Limits) -> tuple[Result, bool]:
        """A snippet's result, and whether it was killed for its time by the clock.

        Raises:
          ZygoteFailure: the zygote broke.
        """
        request = {"cells": snippet.cells, "echo": snippet.echo, "seed": snippet.seed}
        self._channel.settimeout(limits.wall_seconds + _GRACE_SECONDS)
        try:
            send(self._channel, {**request, "limits": asdict(limits)}, snippet.stdin)
            report, body = receive(self._channel)
        except TimeoutError:
            raise ZygoteFailure(f"no answer {_GRACE_SECONDS:g} s after the time was up") from None
        except (OSError, EOFError, ValueError):
            raise ZygoteFailure("ended in the middle of a snippet") from None
        size = report["sizes"][0]
        if not report["is_ready"] and not report["reason"]:
            words = body[size:][:200].decode(errors="replace") or "no word why"
            raise ZygoteFailure(f"a snippet couldn't be locked in: {words}")
        return _result(report, body[:size], body[size:], limits), report["reason"] == "clock"

    def close(self) -> None:
        """Ends it, and whatever it runs."""
        self._channel.close()
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _result(report: dict[str, Any], out: bytes, err: bytes, limits: Limits) -> Result:
    limit = limits.output_bytes
    return Result(
        status=_status(report, limits),
        stdout=out[:limit],
        stderr=err[:limit],
        cpu_seconds=report["cpu_seconds"],
        wall_seconds=report["wall_seconds"],
        truncated=max(len(out), len(err)) > limit,
    )


def _status(report: dict[str, Any], limits: Limits) -> Status:
    code = report["exit"]
    if report["reason"]:
        return _KILLED[report["reason"]]
    if code == EXIT_OK:
        return Status.OK
    if code == EXIT_MEMORY:
        return Status.MEMORY
    if code >= 0:
        return Status.ERROR
    is_over = report["cpu_seconds"] >= limits.cpu_seconds
    return Status.TIMEOUT if code == -signal.SIGKILL and is_over else Status.CRASHED


def _environment() -> dict[str, str]:
    """Nothing of the trainer's but what libraries need to load and to compute right."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("LD_LIBRARY_PATH", "PYTHONHOME") or name.startswith("OPENBLAS_")
    }
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **kept,
        **dict.fromkeys(threads, "1"),
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",  # sets iterate in the same order in every run
        "PYTHONUTF8": "1",
    }


def _site_folders(preload: Sequence[str]) -> list[str]:
    """The folders in which packages are installed, and those of the modules to be loaded."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for name in preload:
        found = importlib.util.find_spec(name)
        if found is None or not found.origin:
            raise ZygoteFailure(f"module {name} isn't installed")
        path = Path(found.origin)
        folders.append(str(path.parents[1] if found.submodule_search_locations else path.parent))
    # Also where packages that were installed for all users, or for this one, are.
    folders += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return list(dict.fromkeys(folders))
