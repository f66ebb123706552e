"""What a run shows while it goes on, and at its end.

On a terminal a bar with the latest numbers; elsewhere (a log file, a notebook's cell) plain lines.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from elpo_jax.metrics import wilson
from elpo_jax.workdir import naming

_STDOUT = Path("standard output")
_GRACE = 0.1  # seconds from a reader's end until the signal that ended it has been heard here too

Counts = Mapping[str, tuple[int, int]]  # kind of task -> (successes, trials)

# Metric, label and format of what fits beside the bar.
_SHOWN = (
    ("sft/loss", "loss", "{:.3f}"),
    ("success/unaided", "success", "{:.1%}"),
    ("reward/mean", "reward", "{:+.2f}"),
    ("sampler/tokens_per_s", "tokens/s", "{:,.0f}"),
    ("eval/success", "eval", "{:.1%}"),
)


class _Console(Console):
    """Its base ends the process without a word once nobody reads the pipe that it writes to."""

    def on_broken_pipe(self) -> NoReturn:
        self.quiet = True
        # What is still buffered would make the interpreter complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Display:
    """Shows one phase of the run at a time.

    What can't be shown any more, since the disk of a log is full or nobody reads a pipe, is an
    OSError that names the standard output.

    Args:
      console: where to; stdout by default.
      clock: seconds, for the time left.
      is_ending: whether the run has been asked to end: then it does so in silence if nobody reads
        the pipe any more. The Ctrl-C that ends a run ends the `tee` behind it too.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_ending: Callable[[], bool] = lambda: False,
    ):
        self._console = console or _Console()
        self._clock = clock
        self._is_ending = is_ending
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._values: dict[str, float] = {}
        self._phase, self._total, self._print_every = "", 0, 1
        self._marks: list[tuple[int, float]] = []  # (steps done, time)

    def start(self, phase: str, total: int, done: int = 0, print_every: int = 1) -> None:
        """Begins a phase of `total` steps, of which `done` were made before a restart.

        Args:
          phase: its name.
          total: steps.
          done: steps made already.
          print_every: without a terminal, steps between lines; the last step always has one.
        """
        self.stop()
        self._phase, self._total, self._print_every = phase, total, print_every
        self._values = {name: x for name, x in self._values.items() if name == "eval/success"}
        self._marks = [(done, self._clock())]
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(phase, total=total, completed=done, text="")
            self._bar.start()

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """Shows that `done` steps are made, with what is known of their metrics."""
        self._values |= values
        self._marks.append((done, self._clock()))
        text = self._text(done)
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        elif done % self._print_every == 0 or done >= self._total:
            self._print(f"{self._phase} {done}/{self._total}  {text}")

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text)

    def show(self, table: Table) -> None:
        """Prints a table that stays."""
        with self._writing():
            self._console.print(table)

    def stop(self) -> None:
        """Ends the phase."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with naming(_STDOUT):
                yield
        except BrokenPipeError:
            time.sleep(_GRACE)
            if not self._is_ending():
                raise

    def _print(self, text: str) -> None:
        with self._writing():
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, done: int) -> str:
        parts = [
            f"{label} {form.format(self._values[name])}"
            for name, label, form in _SHOWN
            if name in self._values
        ]
        left = self._seconds_left(done)
        return "  ".join(parts if left is None else [*parts, f"left {clock_time(left)}"])

    def _seconds_left(self, done: int) -> float | None:
        """From the pace since the first step, which compiles; by that one while it is alone."""
        if done >= self._total:
            return None
        first, since = self._marks[1] if len(self._marks) > 2 else self._marks[0]
        return (self._clock() - since) / max(1, done - first) * (self._total - done)


def clock_time(seconds: float) -> str:
    """'1:02:03', or '02:03' below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def share(successes: int, trials: int) -> str:
    """'3/12  25.0 % (8.9-53.2)', with Wilson's 95 % interval."""
    low, high = wilson(successes, trials)
    return f"{successes}/{trials}  {successes / trials:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def summary(before: Counts, after: Counts, title: str = "Held-out success") -> Table:
    """A table of the success on held-out tasks before and after training, by kind and in all."""
    table = Table(title=title, caption="in brackets: 95 % interval (Wilson)")
    table.add_column("kind")
    for name in ("before", "after", "points"):
        table.add_column(name, justify="right", no_wrap=True)
    kinds = sorted(before.keys() | after.keys())
    for kind in kinds:
        _add_row(table, kind, before.get(kind), after.get(kind))
    if len(kinds) > 1:
        table.add_section()
        _add_row(table, "all", _sum(before), _sum(after))
    return table


def _sum(counts: Counts) -> tuple[int, int]:
    return sum(k for k, _ in counts.values()), sum(n for _, n in counts.values())


def _add_row(
    table: Table, kind: str, before: tuple[int, int] | None, after: tuple[int, int] | None
) -> None:
    cells = [share(*counts) if counts and counts[1] else "-" for counts in (before, after)]
    points = "-"
    if before and after and before[1] and after[1]:
        points = f"{100 * (after[0] / after[1] - before[0] / before[1]):+.1f}"
    table.add_row(kind, *cells, points)
