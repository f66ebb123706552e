"""What goes into the sandbox and what comes out."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """What locks a snippet in, from the strongest down.

    T1: namespaces (a root of its own with Python, what was loaded and the system's /usr/lib in it,
      for reading; no network, no other processes), Landlock and seccomp.
    T2: Landlock and seccomp, where a container forbids namespaces: names and sizes of the host's
      files can be seen, not their contents.
    T3: namespaces and seccomp, where the kernel has no Landlock.
    UNSAFE: resource limits alone. A snippet can read and write what the user can.
    """

    T1 = "T1"
    T2 = "T2"
    T3 = "T3"
    UNSAFE = "unsafe"

    @property
    def mechanisms(self) -> frozenset[str]:
        return _MECHANISMS[self]


_MECHANISMS = {
    Tier.T1: frozenset({"namespaces", "landlock", "seccomp"}),
    Tier.T2: frozenset({"landlock", "seccomp"}),
    Tier.T3: frozenset({"namespaces", "seccomp"}),
    Tier.UNSAFE: frozenset[str](),
}


class Status(StrEnum):
    """How a snippet ended.

    OK: by itself, or by an exit status of 0.
    ERROR: by an exception, or another exit status.
    TIMEOUT: over its CPU time or its time by the clock.
    MEMORY: by a MemoryError.
    OUTPUT: it wrote more than it may.
    CRASHED: by a signal.

    A snippet can end itself in whichever way it likes: only what it wrote says whether it is right.
    """

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Limits:
    """What a snippet may use.

    Attributes:
      cpu_seconds: CPU time, of all threads together.
      wall_seconds: time by the clock.
      memory_mb: address space beyond what the loaded modules take.
      output_bytes: of stdout, and as many of stderr.
      disk_mb: in its work folder, all files together.
      files: that its work folder may hold.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 20.0
    memory_mb: int = 1024
    output_bytes: int = 1 << 20
    disk_mb: int = 64
    files: int = 1000


@dataclass(frozen=True)
class Snippet:
    """A program.

    Attributes:
      cells: sources, run in order in one namespace as `__main__`. The output of all but the last
        is dropped and their exceptions pass, as when they were run before.
      stdin: of all cells together.
      echo: print the value of the last cell's last expression, as notebooks do.
      seed: of `random`, `numpy.random` and sympy's own generator.
    """

    cells: tuple[str, ...]
    stdin: bytes = b""
    echo: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
      status: how it ended.
      stdout, stderr: what it wrote, up to the limit.
      cpu_seconds, wall_seconds: what it took.
      truncated: it wrote more than that.
      left_early: it ended in the middle of a cell, by `os._exit` or a signal.
    """

    status: Status
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float
    truncated: bool
    left_early: bool = False
