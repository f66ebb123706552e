"""Ctrl-C and SIGTERM: finish cleanly at the next safe point, at once when asked twice."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

# Seconds in which a further signal is the same request: `timeout` and `make` pass on to a process
# what its group has got as well.
_SAME = 0.3
_SHOW_CURSOR = b"\x1b[?25h"  # a bar on a terminal hides it


class Interrupted(Exception):
    """The user or the system asked the run to end. Raised at safe points only.

    Attributes:
      signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int):
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


class Interrupts:
    """While entered, turns the first signal into an `Interrupted` at the next `check`.

    It says so at once, since compiling, a save or an evaluation may take a while. A second signal
    ends the process where it stands, unless it comes at the same time. Both are heard by a thread,
    since a handler waits for as long as the main thread is in compiled code. Must be entered on the
    main thread.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._heard = 0.0  # when that was, by the monotonic clock
        self._previous: dict[int, Any] = {}
        self._previous_pipe = self._pipe = -1

    def have_come(self) -> bool:
        """Whether the run has been asked to end."""
        return self._received is not None

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    def __enter__(self) -> "Interrupts":
        heard, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        # The interpreter writes the number of each signal that has a handler.
        self._previous_pipe = signal.set_wakeup_fd(self._pipe)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_pipe)
        os.close(self._pipe)

    def _listen(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] in self._previous:
                    self._hear(number[0])

    def _hear(self, number: int) -> None:
        if self._received is None:
            self._received, self._heard = number, time.monotonic()
            name = signal.Signals(number).name
            _say(f"{name}: stopping as soon as nothing is lost; again: at once\n".encode())
            return
        if time.monotonic() - self._heard < _SAME:
            return
        if os.isatty(1):
            _say(_SHOW_CURSOR, 1)
        _say(b"error: interrupted\n")
        os._exit(128 + number)


def _say(text: bytes, file: int = 2) -> None:
    with suppress(OSError):  # not `print`, whose buffer the main thread may hold
        os.write(file, text)
