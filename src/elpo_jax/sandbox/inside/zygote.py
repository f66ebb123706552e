"""The process that has everything loaded, and forks for each snippet.

Started by `elpo_jax.sandbox.zygotes` with a socket's descriptor as its argument; frames as in
`frames`. First it gets what to load and how to lock itself in, then one snippet after another. It
ends with the socket.
"""

import contextlib
import errno
import fcntl
import gc
import importlib
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
from elpo_jax.sandbox.inside.frames import receive, send
from elpo_jax.sandbox.inside.isolation import Jail, Visible, used

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
_CHUNK = 1 << 16
_TICK = 0.01  # between looks at a child's CPU time, at least
_CORES = os.cpu_count() or 1
_WATCH_SECONDS = 0.05  # between looks at a work folder that has no limits of its own


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    order, _ = receive(control)
    try:
        jail, address_space = _set_up(order)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        send(control, {"error": words})
        return
    if "namespaces" in order["mechanisms"] and os.fork():
        control.close()
        os.wait()  # for the zygote proper, which ends with the socket
        return
    if "namespaces" in order["mechanisms"]:
        sys_.prctl("pdeathsig", sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        jail.became_first()
    send(control, {"ready": True})
    while True:
        try:
            request, stdin = receive(control)
        except EOFError:
            return
        report, output = _serve(jail, request, stdin, address_space, control)
        jail.clean()
        send(control, report, *output)
        del request, stdin, report, output  # the next child could look for them in this frame


def _set_up(order: Mapping[str, Any]) -> tuple[Jail, int]:
    """Loads what snippets use and locks this process in as far as its children need it.

    Returns:
      The jail, and how much address space is in use.
    """
    sys.path[:] = [path for path in sys.path if path != order["root"]]
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
    request: Mapping[str, Any],
    stdin: bytes,
    address_space: int,
    control: socket.socket,
) -> tuple[dict[str, Any], tuple[bytes, bytes]]:
    """Runs a snippet; the report, and what it wrote to stdout and stderr."""
    started = time.monotonic()
    source = _sealed(stdin)
    out, err, ready = os.pipe(), os.pipe(), os.pipe()
    child = jail.fork()
    if not child:
        _be_child(jail, request, address_space, source, out[1], err[1], ready[1])
    for descriptor in (source, out[1], err[1], ready[1]):
        os.close(descriptor)
    try:
        outputs, reason = _watch(
            child, out[0], err[0], request["limits"], started, control, jail.watched
        )
        is_ready = bool(os.read(ready[0], 1))
    finally:
        for descriptor in (out[0], err[0], ready[0]):
            os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    report = {
        "reason": reason,
        "is_ready": is_ready,
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_seconds": seconds,
        "wall_seconds": time.monotonic() - started,
    }
    return report, outputs


def _sealed(content: bytes) -> int:
    """A file in memory that can only be read."""
    file = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _be_child(
    jail: Jail,
    request: Mapping[str, Any],
    address_space: int,
    source: int,
    out: int,
    err: int,
    ready: int,
) -> None:
    """The child's whole life. Doesn't return."""
    status = runner.EXIT_ERROR
    try:
        for descriptor, number in ((source, 0), (out, 1), (err, 2)):
            os.dup2(descriptor, number)
        jail.lock(request["limits"], address_space)
        os.write(ready, b"1")
        os.closerange(3, 4096)
        random.seed(request["seed"])
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(request["seed"] % 2**32)
        status = runner.run(request["cells"], request["echo"])
    except OSError as error:
        os.write(2, f"{error}".encode())
    finally:
        os._exit(status)


def _watch(
    child: int,
    out: int,
    err: int,
    limits: Mapping[str, Any],
    started: float,
    control: socket.socket,
    folder: str | None,
) -> tuple[tuple[bytes, bytes], str]:
    """Collects what a child writes until it has ended, and kills it where it goes too far.

    Args:
      child: its process id.
      out, err: where its output comes out.
      limits: fields of `base.Limits`.
      started: `time.monotonic()` of its start.
      control: ends with the trainer, and all this with it.
      folder: its work folder, if that has to be watched.

    Returns:
      The two outputs, and why it was killed: '' (it wasn't), 'cpu', 'clock', 'output' or
      'disk'.
    """
    deadline = started + limits["wall_seconds"]
    ended = os.pidfd_open(child)
    outputs = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for descriptor in (out, err):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    poll.register(ended, select.POLLIN)
    poll.register(control.fileno(), select.POLLRDHUP)
    reason = ""
    try:
        while True:
            cpu_left = limits["cpu_seconds"] - _cpu_seconds(child)
            pause = min(deadline - time.monotonic(), max(_TICK, cpu_left / _CORES))
            if folder is not None:
                pause = min(pause, _WATCH_SECONDS)
            events = dict(poll.poll(max(0.0, pause) * 1000))
            if control.fileno() in events:
                os.kill(child, signal.SIGKILL)
                os._exit(0)
            for descriptor in set(outputs) & set(events):
                if not _read(descriptor, outputs[descriptor], limits["output_bytes"]):
                    poll.unregister(descriptor)
            if any(len(output) > limits["output_bytes"] for output in outputs.values()):
                reason = "output"
            elif _cpu_seconds(child) >= limits["cpu_seconds"]:
                reason = "cpu"
            elif time.monotonic() >= deadline:
                reason = "clock"
            elif folder is not None and _is_over(folder, limits):
                reason = "disk"
            if ended in events:
                break
            if reason:
                os.kill(child, signal.SIGKILL)
                break
        poll.poll(0)
        for descriptor, output in outputs.items():  # what is left in the pipes
            while len(output) <= limits["output_bytes"] and _read(
                descriptor, output, limits["output_bytes"]
            ):
                pass
    finally:
        os.close(ended)
    return (bytes(outputs[out]), bytes(outputs[err])), reason


def _cpu_seconds(child: int) -> float:
    """CPU time of a process, all its threads together; 0 once it is gone.

    RLIMIT_CPU goes by samples at the timer's ticks, which are far off on a busy machine; this is
    exact.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime((~child << 3) | 2)  # its CPUCLOCK_SCHED, as glibc makes it
    return 0.0


def _read(descriptor: int, output: bytearray, limit: int) -> bool:
    """Reads a piece; False at the end, or where there is nothing now."""
    try:
        piece = os.read(descriptor, min(_CHUNK, limit + 1 - len(output)) or 1)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return False
    output += piece
    return bool(piece)


def _is_over(folder: str, limits: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        size, count = used(folder)
        return size > limits["disk_mb"] << 20 or count > limits["files"]
    return False


if __name__ == "__main__":
    main()
