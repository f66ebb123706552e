"""How questions are posed and solved: a solver is a generator of tool calls."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from elpo_jax.tasks.science.formulas import Formula

_NEEDLESS = "number"  # the property that a detour looks up


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


def with_detours(solver: Solver, rng: np.random.Generator, share: float) -> Solver:
    """A solver that isn't thrifty: some look-ups come after one of the element's number.

    The needless answer is ignored, so the final one is the same.

    Args:
      solver: of the problem.
      rng: decides which look-ups.
      share: of the look-ups (other than of a number) that are preceded by a needless one.
    """
    result: str | None = None
    while True:
        try:
            call = next(solver) if result is None else solver.send(result)
        except StopIteration as stop:
            return stop.value
        is_thrifty = call.name != "lookup" or call.arguments["property"] == _NEEDLESS
        if not is_thrifty and rng.random() < share:
            yield Call(call.name, {**call.arguments, "property": _NEEDLESS})
        result = yield call


def with_unit(number: str, unit: str) -> str:
    return f"{number}{'' if unit in ('', '%') else ' '}{unit}"
