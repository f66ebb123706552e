"""How snippets can be locked in on this machine: found out by attacking what is to hold."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elpo_jax.errors import UsageError
from elpo_jax.sandbox.base import Limits, Snippet, Status, Tier
from elpo_jax.sandbox.zygotes import Zygote, ZygoteFailure

_LIMITS = Limits(cpu_seconds=5, wall_seconds=20, memory_mb=256, output_bytes=1 << 16, disk_mb=8)
_SECRET = "elpo_jax_probe_secret"


@dataclass(frozen=True)
class Attack:
    """A snippet that prints 'held' where the sandbox does, or something else.

    Attributes:
      name: what it tries.
      source: the snippet; `{file}` is a file of the host's, `{pid}` a process.
    """

    name: str
    source: str


def _denied(line: str) -> str:
    return f"try:\n    {line}\n    print('broke out')\nexcept Exception:\n    print('held')\n"


# It may answer as if it had been done.
_MODE = """
before = after = 0
try:
    before = os.stat({file!r}).st_mode
    os.chmod({file!r}, 0o600)
    after = os.stat({file!r}).st_mode
except OSError:
    pass
print('held' if before == after or not after else 'broke out')
"""

ATTACKS = (
    Attack("reading a file", _denied("open({file!r}).read()")),
    Attack("writing a file", _denied("open({file!r}, 'a').write('x')")),
    Attack("changing a file's mode", "import os\n" + _MODE),
    Attack("making a file", _denied("open({file!r} + '.new', 'w')")),
    Attack("reading an environment", _denied("open('/proc/{pid}/environ', 'rb').read()")),
    Attack("signalling a process", "import os\n" + _denied("os.kill({pid}, 0)")),
    Attack("a socket", "import socket\n" + _denied("socket.socket()")),
    Attack("a process", "import os\n" + _denied("os.fork() or os._exit(0)")),
    Attack("a program", "import os\n" + _denied("os.execv('/bin/true', ['true'])")),
    Attack("memory", _denied("bytearray(1 << 30)")),
)
_CHECK = Snippet(("import colorsys, json\nprint(sum(range(10)))",))


def choose(
    wanted: Tier | None, allow_unsafe: bool, preload: Sequence[str]
) -> tuple[Zygote, Tier, list[str]]:
    """The strongest tier that holds: a zygote of it, its name, and what broke in stronger ones.

    Args:
      wanted: the only one to try; None: all, from the strongest down.
      allow_unsafe: whether the last resort may be taken.
      preload: modules for the zygote.

    Raises:
      UsageError: none holds.
    """
    tried = [wanted] if wanted else [tier for tier in Tier if tier.mechanisms]
    failures: list[str] = []
    for tier in tried:
        zygote, problem = _attempt(tier, preload)
        if zygote is not None:
            return zygote, tier, failures
        failures.append(f"{tier}: {problem}")
    if allow_unsafe and not wanted:
        try:
            return Zygote(Tier.UNSAFE, preload), Tier.UNSAFE, failures
        except ZygoteFailure as failure:
            failures.append(f"unsafe: {failure}")
    if wanted:
        raise UsageError([f"sandbox.tier: expected one that holds on this machine, {failures[0]}"])
    raise UsageError(
        [
            "sandbox: nothing here keeps the policy's code from the host "
            f"({'; '.join(failures)}); --config.sandbox.allow_unsafe=true runs it all the same"
        ]
    )


def _attempt(tier: Tier, preload: Sequence[str]) -> tuple[Zygote | None, str]:
    """A zygote of a tier that holds; or what broke."""
    zygote = None
    try:
        zygote = Zygote(tier, preload)
        problem = _weakness(zygote)
    except ZygoteFailure as failure:
        problem = str(failure)
    if problem and zygote is not None:
        zygote.close()
    return (None, problem) if problem else (zygote, "")


def _weakness(zygote: Zygote) -> str:
    """What isn't right with a zygote; '' if all is."""
    result, _ = zygote.run(_CHECK, _LIMITS)
    if (result.status, result.stdout) != (Status.OK, b"45\n"):
        words = " ".join(result.stderr.decode(errors="replace").split())[-200:]
        return f"a harmless snippet ended as {result.status}: {words}"
    with _host_file() as file:
        for attack in ATTACKS:
            source = attack.source.format(file=str(file), pid=os.getpid())
            result, _ = zygote.run(Snippet((source,), echo=False), _LIMITS)
            if result.stdout != b"held\n" or file.read_text() != _SECRET:
                return f"{attack.name} isn't prevented"
            if file.with_name(file.name + ".new").exists():
                return f"{attack.name} isn't prevented"
    return ""


@contextlib.contextmanager
def _host_file() -> Iterator[Path]:
    """A file that anyone on the host may read and write."""
    with tempfile.TemporaryDirectory(prefix="elpo_jax_probe_") as folder:
        os.chmod(folder, 0o777)
        file = Path(folder) / "file"
        file.write_text(_SECRET)
        os.chmod(file, 0o666)
        yield file
