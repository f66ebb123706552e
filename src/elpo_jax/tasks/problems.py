"""What suites of problems with solvers share. A solver is a generator of tool calls."""

import abc
import contextlib
import hashlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from elpo_jax.errors import RunFault
from elpo_jax.tasks.base import HELD_OUT, TRAIN, Message, Task, Verdict, call_message
from elpo_jax.tools.base import Observation, Tool, ToolFailure, ToolTimeout, guarded_call

HELD_OUT_PERCENT = 25
MAX_CALL_SECONDS = 60.0  # of a solver's call; one that takes longer hangs


class Call(NamedTuple):
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]


# Yields calls, receives what the tool answered, returns the final answer.
Solver = Generator[Call, str, str]


@dataclass(frozen=True)
class Problem:
    """A question before it has a number in a suite.

    Attributes:
      kind: the question type.
      subject: what it is about; the split of a generated problem is a function of it.
      question: the user turn.
      answer: what the verifier needs.
      solve: starts the solver; None where there is none.
    """

    kind: str
    subject: str
    question: str
    answer: Mapping[str, Any]
    solve: Callable[[], Solver] | None


class ProblemSuite(abc.ABC):
    """A suite that is a function from (split, index) to a problem.

    A subclass sets `name` and `system_prompt`, and defines `problem`, `detour` and `verify`.
    Solvers call its tools where a task is made, before a run and between its steps: they should
    answer from memory, or the suite in their place (`observe`). On the main thread a call that
    hangs is interrupted after `MAX_CALL_SECONDS`, unless it hangs in compiled code that leaves
    signals waiting.

    Args:
      tools: what solvers and the policy may call.
      key: what else than its name sets the suite's problems apart; part of every random key.
    """

    name: str
    system_prompt: str

    def __init__(self, tools: Sequence[Tool], key: Sequence[str] = ()):
        self._tools = {tool.name: tool for tool in tools}
        self._key = (self.name, *key)

    @abc.abstractmethod
    def problem(self, split: str, index: int) -> Problem:
        """The `index`-th problem of a split; both are valid."""

    @abc.abstractmethod
    def detour(self, problem: Problem, call: Call) -> Call | None:
        """A needless call that may come before one of the solver's; None if there is none."""

    @abc.abstractmethod
    def verify(self, task: Task, response: str) -> Verdict:
        """Judges the text of the final assistant turn."""

    @property
    def tools(self) -> Sequence[Tool]:
        return tuple(self._tools.values())

    def observe(self, call: Call) -> Observation:
        """What the tool answers to a call of the solver's.

        Raises:
          ToolFailure: the tool broke.
        """
        return guarded_call(self._tools[call.name], {}, call.arguments)[1]

    def final_turn(self, answer: str) -> str:
        """The text of the last turn with the solver's answer."""
        return f"\\boxed{{{answer}}}"

    def size(self, split: str) -> int | None:
        """Tasks of a split; None: without end."""
        return None

    def task(self, split: str, index: int) -> Task:
        """The `index`-th task of a split.

        Raises:
          ValueError: for an unknown split, or an index that it doesn't have.
          RunFault: a tool broke or hung under the solver.
        """
        problem = self._checked_problem(split, index)
        calls = None
        if problem.solve:
            calls = sum(message["role"] == "tool" for message in self._run(problem.solve()))
        return Task(f"{split}/{index}", problem.kind, problem.question, problem.answer, calls)

    def subject(self, task: Task) -> str:
        """What the task is about."""
        return self._problem_of(task).subject

    def demonstration(self, task: Task, detours: float = 0.0) -> list[Message]:
        """The solver's turns, each tool message what the real tool answered.

        Args:
          task: one of this suite's, with a solver (`calls` isn't None).
          detours: share of the calls, among those that have a detour, that it comes before.

        Raises:
          ValueError: if the task is not this suite's, or has no solver.
        """
        problem = self._problem_of(task)
        if problem.solve is None:
            raise ValueError(f"demonstration: task: expected one with a solver, got {task.id}")
        rng = self.rng("detours", task.id)
        detour = partial(self.detour, problem)
        return self._run(_with_detours(problem.solve(), detour, rng, detours))

    def rng(self, *key: str | int) -> np.random.Generator:
        """Randomness that is a function of the suite and the key alone."""
        digest = hashlib.sha256(json.dumps([*self._key, *key]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16]))

    def _checked_problem(self, split: str, index: int) -> Problem:
        if split not in (TRAIN, HELD_OUT):
            raise ValueError(f"task: split: expected {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
        size = self.size(split)
        if index < 0 or (size is not None and index >= size):
            expected = ">= 0" if size is None else f"0 to {size - 1}"
            raise ValueError(f"task: index: expected {expected}, got {index}")
        return self.problem(split, int(index))

    def _problem_of(self, task: Task) -> Problem:
        split, _, index = task.id.partition("/")
        problem = self._checked_problem(split, int(index))
        if problem.question != task.question:
            raise ValueError(
                f"demonstration: task: expected {problem.question!r} as {task.id}, "
                f"got {task.question!r}"
            )
        return problem

    def _run(self, solver: Solver) -> list[Message]:
        messages: list[Message] = []
        call: Call | None = None
        result = ""
        while True:
            try:
                call = solver.send(result) if call else next(solver)
            except StopIteration as stop:
                messages.append({"role": "assistant", "content": self.final_turn(stop.value)})
                return messages
            except (ValueError, LookupError, ArithmeticError) as error:
                if call is None:
                    raise
                # The answer was text, but not what the solver can go on from.
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
                line = f"tool {call.name!r} answered {result[:80]!r}: {why}"
                raise RunFault([f"suite {self.name}: under its own solver: {line}"]) from error
            messages.append(call_message(call.name, call.arguments))
            try:
                with _time_limit(MAX_CALL_SECONDS):
                    observation = self.observe(call)
            except ToolFailure as failure:
                if isinstance(failure.__cause__, KeyboardInterrupt):  # this may be the main thread
                    raise failure.__cause__ from None
                # Without the answer there is no task: this isn't a rollout that can be replaced.
                line = f"suite {self.name}: under its own solver: {failure}"
                raise RunFault([line]) from failure
            result = observation.text
            messages.append({"role": "tool", "content": result})


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises ToolTimeout within the block when it takes longer.

    By the timer's signal: solvers run a hundred thousand times in a cold start, and a thread for
    each would cost more than the solvers. Signals only reach the main thread; on others there is
    no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(signum: int, frame: object) -> None:
        raise ToolTimeout(f"no answer in {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, late)
    # Again each second, for a tool that swallows what is raised in it.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def calculate(expression: str) -> Generator[Call, str, str]:
    return (yield Call("calculator", {"expression": expression}))


def split_of(key: str) -> str:
    """TRAIN or HELD_OUT, by a stable hash of a subject's key."""
    digest = hashlib.sha256(key.encode()).digest()
    return HELD_OUT if int.from_bytes(digest[:8]) % 100 < HELD_OUT_PERCENT else TRAIN


def _with_detours(
    solver: Solver,
    detour: Callable[[Call], Call | None],
    rng: np.random.Generator,
    share: float,
) -> Solver:
    """A solver that isn't thrifty. The needless answers are ignored, so the final one is the same.

    Args:
      solver: of the problem.
      detour: the needless call that may come before a call.
      rng: decides which calls it comes before.
      share: of the calls that have one.
    """
    result: str | None = None
    while True:
        try:
            call = next(solver) if result is None else solver.send(result)
        except StopIteration as stop:
            return stop.value
        needless = detour(call)
        if needless and rng.random() < share:
            yield needless
        result = yield call
