"""How questions are posed and solved: a solver is a generator of tool calls."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from elpo_jax.tasks.science.formulas import Formula


class Call(NamedTuple):
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]


# Yields calls, receives what the tool answered, returns the final answer (the inside of the box).
Solver = Generator[Call, str, str]


@dataclass(frozen=True)
class Problem:
    """A question before it has a number in a suite.

    Attributes:
      kind: the question type.
      subject: what it is about; the split is a function of it.
      question: the user turn.
      answer: what the verifier needs.
      solve: starts the solver.
    """

    kind: str
    subject: str
    question: str
    answer: Mapping[str, Any]
    solve: Callable[[], Solver]


def look_up(element: str, name: str) -> Generator[Call, str, str]:
    """The value of a property, without its unit."""
    shown = yield Call("lookup", {"element": element, "property": name})
    return shown.split()[0]


def calculate(expression: str) -> Generator[Call, str, str]:
    return (yield Call("calculator", {"expression": expression}))


def look_up_weights(symbols: Sequence[str]) -> Generator[Call, str, dict[str, str]]:
    weights = {}
    for symbol in symbols:
        weights[symbol] = yield from look_up(symbol, "atomic_weight")
    return weights


def weigh(formula: Formula) -> Generator[Call, str, dict[str, str]]:
    """The shown atomic weights of a formula's elements."""
    return (yield from look_up_weights(list(formula.composition)))


def with_unit(number: str, unit: str) -> str:
    return f"{number}{'' if unit in ('', '%') else ' '}{unit}"
