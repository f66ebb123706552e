"""Zygotes from the outside: started, given snippets, ended."""

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from elpo_jax.sandbox.base import Limits, Result, Snippet, Status, Tier
from elpo_jax.sandbox.inside.frames import KILL, RUN, receive, send
from elpo_jax.sandbox.inside.isolation import empty
from elpo_jax.sandbox.inside.runner import EXIT_ERROR, EXIT_MEMORY, EXIT_OK

_CHUNK = 1 << 16
_START_SECONDS = 120.0  # for a zygote to load everything on a busy machine
_GRACE_SECONDS = 10.0  # beyond a snippet's time, before its zygote counts as hung
_KILLED = {
    "cpu": Status.TIMEOUT,
    "clock": Status.TIMEOUT,
    "output": Status.OUTPUT,
    "disk": Status.ERROR,
    "threads": Status.ERROR,
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
            "trainer": os.getpid(),
        }
        boot = _BOOT.format(root=root)
        ours, theirs = socket.socketpair()
        is_on_disk = "namespaces" not in tier.mechanisms
        self._folder = tempfile.mkdtemp(prefix="elpo_jax_sandbox_") if is_on_disk else ""
        self._channel = ours
        self._owner = os.getpid()
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
            self._remove_folder()
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
        seconds = limits.wall_seconds + _GRACE_SECONDS
        self._channel.settimeout(seconds)
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(_sealed("request", json.dumps(request).encode()))
            stdin = stack.enter_context(_sealed("stdin", snippet.stdin))
            outputs = [stack.enter_context(_Output(limits.output_bytes)) for _ in range(2)]
            given = [source.fileno(), stdin.fileno(), *(output.writer for output in outputs)]
            try:
                socket.send_fds(self._channel, [RUN], given)
                send(self._channel, asdict(limits))
                for output in outputs:
                    output.is_given()
                self._collect(outputs, time.monotonic() + seconds)
                report, _ = receive(self._channel)
            except TimeoutError:
                line = f"no answer {_GRACE_SECONDS:g} s after the time was up"
                raise ZygoteFailure(line) from None
            except (OSError, EOFError, ValueError):
                raise ZygoteFailure("ended in the middle of a snippet") from None
            for output in outputs:
                output.drain()
            out, err = (bytes(output.content) for output in outputs)
        if not report["is_ready"]:  # not a line of it was run, so nothing is its own fault
            words = err[:200].decode(errors="replace") or report["reason"] or "no word why"
            raise ZygoteFailure(f"a snippet couldn't be locked in: {words}")
        return _result(report, out, err, limits), report["reason"] == "clock"

    def _collect(self, outputs: "Sequence[_Output]", deadline: float) -> None:
        """Takes what a snippet writes until its zygote reports; has it killed for too much.

        Raises:
          TimeoutError: the zygote doesn't report in time.
        """
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        by_reader = {output.reader: output for output in outputs}
        for reader in by_reader:
            poll.register(reader, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            events = dict(poll.poll(left * 1000))
            if self._channel.fileno() in events:
                return
            for reader in by_reader.keys() & events.keys():
                output = by_reader[reader]
                if not output.read() or output.is_over:
                    poll.unregister(reader)
                if output.is_over:
                    self._channel.sendall(KILL)
        raise TimeoutError

    def close(self) -> None:
        """Ends it, and whatever it runs. In a fork of its owner: only lets go of it."""
        self._channel.close()
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder:
            with contextlib.suppress(FileNotFoundError):
                empty(self._folder)
                os.rmdir(self._folder)


class _Output:
    """A pipe that a snippet writes to, read without waiting up to a limit.

    Attributes:
      writer, reader: its descriptors.
      content: what was read; a byte more than the limit if there is more.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.content = bytearray()

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reader)
        self.is_given()

    def is_given(self) -> None:
        """Closes our copy of the writer."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    @property
    def is_over(self) -> bool:
        return len(self.content) > self._limit

    def read(self) -> bool:
        """Reads a piece; False at the end, or where there is nothing now."""
        try:
            piece = os.read(self.reader, min(_CHUNK, self._limit + 1 - len(self.content)))
        except BlockingIOError:
            return False
        self.content += piece
        return bool(piece)

    def drain(self) -> None:
        """Reads what is left."""
        while not self.is_over and self.read():
            pass


def _sealed(name: str, content: bytes) -> BinaryIO:
    """A file in memory that can only be read, from its beginning."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    file = os.fdopen(os.memfd_create(name, flags), "w+b")
    file.write(content)
    file.seek(0)  # which flushes
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _result(report: dict[str, Any], out: bytes, err: bytes, limits: Limits) -> Result:
    limit = limits.output_bytes
    is_over = max(len(out), len(err)) > limit
    return Result(
        status=Status.OUTPUT if is_over else _status(report, limits),
        stdout=out[:limit],
        stderr=err[:limit],
        cpu_seconds=report["cpu_seconds"],
        wall_seconds=report["wall_seconds"],
        truncated=is_over,
        left_early=report["exit"] not in (EXIT_OK, EXIT_ERROR, EXIT_MEMORY),
    )


def _status(report: dict[str, Any], limits: Limits) -> Status:
    code = report["exit"]
    if report["reason"]:
        return _KILLED[report["reason"]]
    if code in (0, EXIT_OK):
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
