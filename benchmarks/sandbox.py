"""The sandbox under load: thousands of snippets, right, wrong and hostile, from many threads.

    python -m benchmarks.sandbox [--snippets 5000] [--threads 16] [--workers 0] [--tier auto]

Prints a table and fails if a status or an output is wrong, or if something is left.
"""

import argparse
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from elpo_jax.config import SandboxConfig
from elpo_jax.sandbox import Limits, Result, Sandbox, Snippet, Status

CLIENTS = 16
LIMITS = Limits(cpu_seconds=1, wall_seconds=10, memory_mb=256, output_bytes=1 << 16, disk_mb=4)
_PAUSE = Limits(**{**vars(LIMITS), "wall_seconds": 0.2})


@dataclass(frozen=True)
class Kind:
    """A kind of snippet.

    Attributes:
      name: as the table shows it.
      share: of all snippets, in thousandths.
      code: with `{n}` for a number.
      status: that it has to end with.
      output: what it has to print, with `{n}` and `{double}`; None: anything.
      limits: of it.
    """

    name: str
    share: int
    code: str
    status: Status
    output: str | None
    limits: Limits = LIMITS


KINDS = (
    Kind("print", 200, "print({n})", Status.OK, "{n}\n"),
    Kind("last expression", 200, "x = {n}\nx * 2", Status.OK, "{double}\n"),
    Kind("numpy", 150, "import numpy\nint(numpy.full(100, {n}).sum())", Status.OK, "{n}00\n"),
    Kind(
        "sympy",
        150,
        "import sympy\nx = sympy.symbols('x')\nsympy.integrate({double} * x + {n}, x)",
        Status.OK,
        "{n}*x**2 + {n}*x\n",
    ),
    Kind("a loop", 50, "s = 0\nfor i in range(10**5): s += i\ns", Status.OK, "4999950000\n"),
    Kind("an exception", 80, "{n} / 0", Status.ERROR, ""),
    Kind("no Python", 50, "{n} x", Status.ERROR, ""),
    Kind("an exit", 20, "import sys; print({n}); sys.exit(3)", Status.ERROR, "{n}\n"),
    Kind("forks", 15, "import os; os.fork()", Status.ERROR, ""),
    Kind("files of the host", 15, "open('/etc/passwd').read()", Status.ERROR, ""),
    Kind("sockets", 15, "import socket; socket.socket()", Status.ERROR, ""),
    Kind("a signal to all", 10, "import os\nos.kill(-1, 9)", Status.ERROR, ""),
    Kind("memory", 15, "x = bytearray(1 << 30)", Status.MEMORY, ""),
    Kind("output", 10, "while True: print('y' * 1000)", Status.OUTPUT, None),
    Kind("a crash", 10, "import ctypes; ctypes.string_at(0)", Status.CRASHED, ""),
    Kind("files", 5, "for i in range(2000): open(str(i), 'w')", Status.ERROR, ""),
    Kind("sleep", 4, "import time; time.sleep(60)", Status.TIMEOUT, "", _PAUSE),
    Kind("an endless loop", 1, "while True: pass", Status.TIMEOUT, ""),
)


def mixed(count: int) -> Iterator[tuple[int, Kind]]:
    """Kinds in their shares, in an order that is always the same."""
    shares = np.array([kind.share for kind in KINDS])
    chosen = np.random.default_rng(0).choice(len(KINDS), count, p=shares / shares.sum())
    return ((number, KINDS[i]) for number, i in enumerate(chosen, 2))


def wrong(kind: Kind, number: int, result: Result) -> str:
    """What isn't right about a result; '' if all is."""
    if result.status != kind.status:
        return f"{kind.name}: expected {kind.status}, got {result.status} {result.stderr!r:.200}"
    expected = None if kind.output is None else kind.output.format(n=number, double=2 * number)
    if expected is not None and result.stdout.decode() != expected:
        return f"{kind.name}: expected {expected!r}, got {result.stdout!r:.200}"
    return ""


def traces() -> tuple[int, int, int]:
    """This process's descriptors, all processes' count, and mounts."""
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/proc").glob("[0-9]*/task"))),
        len(Path("/proc/self/mountinfo").read_text().splitlines()),
    )


def soak(config: SandboxConfig, count: int, clients: int) -> tuple[float, list[str], Counter[str]]:
    """Seconds for `count` snippets, what was wrong, and how many snippets of each kind there were.

    The zygotes are started before.
    """
    sandbox = Sandbox(config)
    tier = sandbox.start()
    print(f"tier {tier}, {sandbox.config.workers} workers, {clients} client threads", flush=True)
    work, lock = mixed(count), threading.Lock()
    problems: list[str] = []
    seen: Counter[str] = Counter()

    def client() -> None:
        while True:
            with lock:
                item = next(work, None)
            if item is None:
                return
            number, kind = item
            code = kind.code.format(n=number, double=2 * number)
            problem = wrong(kind, number, sandbox.run(Snippet((code,)), kind.limits))
            with lock:
                seen[kind.name] += 1
                if problem:
                    problems.append(problem)

    _together(lambda: sandbox.run(Snippet(("1",))), config.workers)  # all zygotes are up
    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    problems += [f"{sandbox.counters.restarts - config.workers + 1} zygotes were replaced"] * (
        sandbox.counters.restarts > config.workers - 1
    )
    sandbox.close()
    return seconds, problems, seen


def _together(work, count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument("--snippets", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=CLIENTS)
    parser.add_argument("--workers", type=int, default=0, help="0: one a core")
    parser.add_argument("--tier", default="auto")
    options = parser.parse_args(arguments)
    workers = options.workers or os.cpu_count() or 1
    before = traces()
    seconds, problems, seen = soak(
        SandboxConfig(workers=workers, tier=options.tier), options.snippets, options.threads
    )
    time.sleep(0.5)  # killed processes are gone a moment later
    print("| kind | snippets |\n|---|---|")
    for name, number in sorted(seen.items(), key=lambda item: -item[1]):
        print(f"| {name} | {number} |")
    rate = options.snippets / seconds
    print(f"{options.snippets} snippets in {seconds:.1f} s: {rate:.0f} a second")
    print(f"descriptors, processes, mounts: {before} before, {traces()} after")
    if before[0] != traces()[0] or before[2] != traces()[2]:
        problems.append("something is left")
    for problem in islice(problems, 20):
        print(f"wrong: {problem}", file=sys.stderr)
    print(f"wrong: {len(problems)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
