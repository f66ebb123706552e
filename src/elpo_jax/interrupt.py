"""Ctrl-C and SIGTERM: finish cleanly at the next safe point, at once when asked twice."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


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

    It says so at once, since compiling or an evaluation may take a while. A second signal acts as
    it does by default. Must be entered on the main thread.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        name = signal.Signals(number).name
        with suppress(OSError):  # not `print`, which may be what the signal interrupts
            os.write(2, f"{name}: stopping as soon as nothing is lost; again: at once\n".encode())
        for each, handler in self._previous.items():
            signal.signal(each, handler)
