"""The process that has everything loaded, and forks for each snippet.

Started by `elpo_jax.sandbox.zygotes` with a socket's descriptor as its argument; frames as in
`frames`. First it gets what to load and how to lock itself in, then one snippet after another. It
ends with the socket.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from elpo_jax.sandbox.inside import runner
from elpo_jax.sandbox.inside import system as sys_
from elpo_jax.sandbox.inside.frames import RUN, receive, send
from elpo_jax.sandbox.inside.isolation import Jail, Visible, has_too_many_threads, is_over

# What snippets use without being slow at the first time.
_LIBRARY = """
    abc ast base64 bisect calendar cmath collections collections.abc copy csv dataclasses datetime
    decimal encodings.idna enum fractions functools hashlib heapq io itertools json linecache math
    numbers operator pprint queue random re statistics string struct textwrap threading time
    traceback types typing unicodedata warnings zlib
"""

# The first use of a package costs more than its import: done here, once.
_WARM_UP = {
    "numpy": "import numpy; numpy.linalg.solve(numpy.eye(3), numpy.ones(3)); numpy.random.seed(0)",
    "sympy": (
        "import sympy\n"
        "x = sympy.symbols('x')\n"
        "sympy.integrate(sympy.sin(x) * x**2, x)\n"
        "sympy.solve(x**3 - 2 * x + 1, x)\n"
        "str(sympy.simplify('(x**2 - 1)/(x - 1)'))\n"
        "sympy.factor(x**4 - 1), sympy.diff(sympy.exp(x)), sympy.N(sympy.pi)\n"
    ),
    "math_verify": (
        "from math_verify import parse, verify\n"
        "for text in ('$\\\\frac{1}{2}$', '$\\\\{1,2\\\\}$', '$x^2+1$', '$(0,1]$', '$50\\\\%$'):\n"
        "    found = parse(text, parsing_timeout=None)\n"
        "    verify(found, found, timeout_seconds=None)\n"
    ),
}
_TICK = 0.01  # between looks at a child's CPU time, at least
_CORES = os.cpu_count() or 1
_WATCH_SECONDS = 0.05  # between looks at a work folder that has no limits of its own
_LAST_WORDS_SECONDS = 0.2  # for what was printed, once the time is up


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    order, _ = receive(control)
    trainer = os.pidfd_open(os.getppid())
    if os.getppid() != order["trainer"]:
        return  # it has died already
    try:
        jail, address_space = _set_up(order)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        send(control, {"error": words})
        return
    if "namespaces" in order["mechanisms"]:
        proper = os.fork()
        if proper:
            control.close()
            _outlive(proper, trainer)
            return
        sys_.prctl("pdeathsig", sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        jail.became_first()
    send(control, {"ready": True})
    _serve_all(jail, address_space, control, trainer)
    jail.leave()


def _outlive(proper: int, trainer: int) -> None:
    """Waits until the zygote proper, or the trainer, has ended; the former ends with this one.

    The trainer's children may hold its end of the socket open when it is gone, so the socket alone
    doesn't say.
    """
    ended = os.pidfd_open(proper)
    poll = select.poll()
    for descriptor in (ended, trainer):
        poll.register(descriptor, select.POLLIN)
    poll.poll()


def _serve_all(jail: Jail, address_space: int, control: socket.socket, trainer: int) -> None:
    """Runs snippets until the trainer is gone."""
    poll = select.poll()
    for descriptor in (control.fileno(), trainer):
        poll.register(descriptor, select.POLLIN)
    while trainer not in dict(poll.poll()):
        # What a snippet says and reads goes past this process, by descriptors, so that nothing of
        # it is left in the memory of the next one.
        kind, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not kind:
            return
        if kind != RUN:
            continue  # a snippet was to be ended that had ended already
        limits, _ = receive(control)
        report = _serve(jail, limits, descriptors, address_space, control, trainer)
        jail.clean()
        if report["reason"] == "gone":
            return
        send(control, report)


def _set_up(order: Mapping[str, Any]) -> tuple[Jail, int]:
    """Loads what snippets use and locks this process in as far as its children need it.

    Returns:
      The jail, and how much address space is in use.
    """
    # Without what editable installations add: snippets couldn't read it, but would come upon it.
    library = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    sys.path[:] = [path for path in sys.path if path.startswith(library)]
    sys.path += [path for path in order["path"] if path not in sys.path]
    before = set(sys.modules)
    for name in (*_LIBRARY.split(), *order["preload"]):
        importlib.import_module(name)
    for name in order["preload"]:
        exec(_WARM_UP.get(name, ""), {"__name__": "warm_up"})
    loaded = [module for name, module in sys.modules.items() if name not in before]
    visible = Visible(sysconfig.get_path("stdlib"), _origins(loaded))
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    jail = Jail(order["mechanisms"], visible, order["folder"])
    sys.argv = [""]
    for name in [name for name in sys.modules if name.partition(".")[0] == "elpo_jax"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    return jail, pages * os.sysconf("SC_PAGE_SIZE")


def _origins(modules: Sequence[ModuleType]) -> tuple[str, ...]:
    """The packages' folders, or files, of modules from outside Python's own library."""
    library = sysconfig.get_path("stdlib") + "/"
    outside = ("/site-packages/", "/dist-packages/")
    found = set()
    for module in modules:
        top = sys.modules.get(module.__name__.partition(".")[0], module)
        file = getattr(top, "__file__", None)
        if not file or (file.startswith(library) and not any(part in file for part in outside)):
            continue
        folder, name = os.path.split(file)
        path = folder if name.startswith("__init__.") else file
        found.add(path)
        found.add(f"{path}.libs")  # shared libraries that wheels bring
    return tuple(sorted(path for path in found if os.path.exists(path)))


def _serve(
    jail: Jail,
    limits: Mapping[str, Any],
    descriptors: Sequence[int],
    address_space: int,
    control: socket.socket,
    trainer: int,
) -> dict[str, Any]:
    """Runs a snippet and reports how it ended.

    Args:
      jail: what locks it in.
      limits: fields of `base.Limits`.
      descriptors: of the request, stdin, stdout and stderr; closed here.
      address_space: bytes that this process has mapped.
      control, trainer: end with the trainer.
    """
    started = time.monotonic()
    ready = os.pipe()
    child = jail.fork()
    if not child:
        _be_child(jail, limits, address_space, descriptors, ready[1])
    for descriptor in (*descriptors, ready[1]):
        os.close(descriptor)
    reason = _watch(child, limits, started, control, trainer, jail.watched)
    _, status, usage = os.wait4(child, 0)
    is_ready = bool(os.read(ready[0], 1))
    os.close(ready[0])
    return {
        "reason": reason,
        "is_ready": is_ready,
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.monotonic() - started,
    }


def _be_child(
    jail: Jail,
    limits: Mapping[str, Any],
    address_space: int,
    descriptors: Sequence[int],
    ready: int,
) -> None:
    """The child's whole life. Doesn't return."""
    status = runner.EXIT_ERROR
    try:
        request = json.loads(os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0))
        for number, descriptor in enumerate(descriptors[1:]):
            os.dup2(descriptor, number)
        jail.lock(limits, address_space)
        os.write(ready, b"1")
        os.closerange(3, 4096)
        _seed(request["seed"])
        status = runner.run(request["cells"], request["echo"])
    except OSError as error:
        os.write(2, f"{error}".encode())
    finally:
        os._exit(status)


def _seed(seed: int) -> None:
    """Seeds all generators that a zygote has, whose states differ from zygote to zygote."""
    random.seed(seed)
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        numpy.random.seed(seed % 2**32)
        # What a Generator without a seed is seeded from.
        numpy.random.bit_generator.randbits = random.Random(seed).getrandbits
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(seed)


def _watch(
    child: int,
    limits: Mapping[str, Any],
    started: float,
    control: socket.socket,
    trainer: int,
    folder: str | None,
) -> str:
    """Waits until a child has ended, and kills it where it goes too far.

    Args:
      child: its process id.
      limits: fields of `base.Limits`.
      started: `time.monotonic()` of its start.
      control: says when to kill it.
      trainer: descriptor of the process that all this ends with.
      folder: its work folder, if that has to be watched.

    Returns:
      Why it was killed: '' (it wasn't), 'cpu', 'clock', 'output', 'disk', 'threads', or 'gone'
      (the trainer).
    """
    deadline = started + limits["wall_seconds"]
    ended = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (ended, control.fileno(), trainer):
        poll.register(descriptor, select.POLLIN)
    reason = ""
    try:
        while not reason:
            cpu_left = limits["cpu_seconds"] - _cpu_seconds(child)
            pause = min(deadline - time.monotonic(), max(_TICK, cpu_left / _CORES))
            if folder is not None:
                pause = min(pause, _WATCH_SECONDS)
            events = dict(poll.poll(max(0.0, pause) * 1000))
            if trainer in events:
                reason = "gone"
            elif control.fileno() in events:
                reason = "output" if control.recv(1) else "gone"
            elif folder is not None and is_over(folder, child, limits):
                reason = "disk"
            elif folder is not None and has_too_many_threads(child):
                reason = "threads"
            elif ended in events:
                break
            elif _cpu_seconds(child) >= limits["cpu_seconds"]:
                reason = "cpu"
            elif time.monotonic() >= deadline:
                reason = "clock"
        if reason in ("cpu", "clock"):
            os.kill(child, signal.SIGXCPU)  # what was printed so far may come out
            poll.unregister(control.fileno())
            poll.poll(_LAST_WORDS_SECONDS * 1000)
        if reason:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(ended)
    return reason


def _cpu_seconds(child: int) -> float:
    """CPU time of a process, all its threads together; 0 once it is gone.

    RLIMIT_CPU goes by samples at the timer's ticks, which are far off on a busy machine; this is
    exact.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime((~child << 3) | 2)  # its CPUCLOCK_SCHED, as glibc makes it
    return 0.0


if __name__ == "__main__":
    main()
