"""What a suite of tasks offers: questions, tools, demonstrations and a verifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from elpo_jax.tools.base import Tool

# {'role': 'system' | 'user' | 'assistant' | 'tool', 'content': text}, and where an assistant calls
# 'tool_calls': [{'type': 'function', 'function': {'name': ..., 'arguments': {...}}}].
Message = Mapping[str, Any]

TRAIN = "train"
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Task:
    """One question.

    Attributes:
      id: unique within its suite, e.g. 'train/17'.
      kind: the question type, for breakdowns.
      question: the user turn.
      answer: what the verifier needs (JSON-serialisable).
      calls: tool calls that the suite's solver makes; None where it has none.
    """

    id: str
    kind: str
    question: str
    answer: Mapping[str, Any]
    calls: int | None


@dataclass(frozen=True)
class Verdict:
    """A verifier's word on a final answer; the reward is shaped from it elsewhere.

    Attributes:
      success: whether the answer is right.
      extracted: the answer as it was read, for votes and reports; None if none was found.
      passed: the fraction of tests passed, where the verifier runs tests.
    """

    success: bool
    extracted: str | None
    passed: float | None = None

    @property
    def score(self) -> float:
        """From 0 to 1: the fraction of tests passed, or 1 for a success without tests."""
        return float(self.success) if self.passed is None else self.passed


def call_message(name: str, arguments: Mapping[str, Any]) -> Message:
    """An assistant turn that is one tool call."""
    function = {"name": name, "arguments": dict(arguments)}
    calls = [{"type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


class Suite(Protocol):
    """A family of tasks. `task` is a pure function, so data order needs no state but an index."""

    @property
    def name(self) -> str: ...

    @property
    def system_prompt(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    def size(self, split: str) -> int | None:
        """How many tasks TRAIN or HELD_OUT has; None: one for any index >= 0."""
        ...

    def task(self, split: str, index: int) -> Task:
        """The `index`-th task of a split, from 0."""
        ...

    def demonstration(self, task: Task, detours: float = 0.0) -> list[Message]:
        """The solver's turns after the question: assistant (with one call in `tool_calls`), tool,
        ..., assistant with the answer.

        `detours` is the share of its calls that a needless one comes before, where the suite has
        such calls; the answer stays right. Only for a task with a solver.
        """
        ...

    def verify(self, task: Task, response: str) -> Verdict:
        """Judges the text of the final assistant turn, on any thread.

        Raises:
          ToolFailure: the verifier's infrastructure broke; the rollout is replaced.
        """
        ...
