"""Questions about elements: comparisons, and chains in which one result names the next look-up.

In the questions Z(Fe) is the atomic number of Fe, and 'element Z(C)+Z(O)' the element numbered so.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elpo_jax.tasks.problems import Call, Problem, Solver, calculate, split_of
from elpo_jax.tasks.science.amounts import TOLERANCE
from elpo_jax.tasks.science.elements import UNITS, Element, elements
from elpo_jax.tasks.science.solving import look_up, with_unit

COMPARISON = "comparison"
MULTI_HOP = "multi_hop"

_PROPERTIES = tuple(UNITS)
_COMPARED = {"short": (2, 4), "long": (4, 6)}
_MAX_STEP = 9
# Relative distance from the best value to the next, and between values that are subtracted, so
# that the rounding of shown values decides nothing.
_COMPARED_GAP = 0.02
_SUBTRACTED_GAP = 0.2


def subject_of(named: Sequence[Element]) -> str:
    """The key of a question about elements: the set that it names."""
    return "elements:" + ",".join(sorted({element.symbol for element in named}))


def comparison_problem(rng: np.random.Generator, length: str, split: str) -> Problem:
    """Which of a few elements has the highest or lowest value of a property."""
    low, high = _COMPARED[length]
    count = int(rng.integers(low, high + 1))
    name = _property(rng)
    most = bool(rng.integers(2))
    while True:
        chosen = _draw(rng, count)
        values = [element.quantity(name) for element in chosen]
        known = sorted((v for v in values if v is not None), reverse=most)
        if len(known) < count or split_of(subject_of(chosen)) != split:
            continue
        if abs(known[0] - known[1]) > _COMPARED_GAP * max(known[:2]):
            break
    best = chosen[values.index(known[0])]
    symbols = [element.symbol for element in chosen]
    asked = f"the {'highest' if most else 'lowest'} {_words(name)}"
    listed = f"{', '.join(symbols[:-1])} or {symbols[-1]}"
    phrases = (f"Which has {asked}: {listed}?", f"Of {listed}, which has {asked}?")

    def solve() -> Solver:
        found = {}
        for symbol in symbols:
            found[symbol] = float((yield from look_up(symbol, name)))
        return (max if most else min)(symbols, key=lambda symbol: found[symbol])

    question = phrases[rng.integers(len(phrases))]
    return Problem(COMPARISON, subject_of(chosen), question, _text_answer(best), solve)


@dataclass(frozen=True)
class _Target:
    """An element as a question names it.

    Attributes:
      named: one element, or two whose atomic numbers are added.
      step: what is added to the atomic number of a single one; 0: the element itself.
      reference: how a single element is written: its symbol, name or number.
    """

    named: tuple[Element, ...]
    step: int = 0
    reference: str = ""

    @property
    def number(self) -> int:
        return sum(element.number for element in self.named) + self.step

    @property
    def element(self) -> Element:
        return elements()[self.number - 1]

    @property
    def words(self) -> str:
        if self.reference:
            return f"element {self.reference}" if self.reference.isdigit() else self.reference
        terms = [f"Z({element.symbol})" for element in self.named]
        return "element " + "+".join([*terms, str(self.step)] if self.step else terms)

    def find(self, name: str) -> Generator[Call, str, str]:
        """A property of the element, its atomic number worked out first if need be."""
        if self.reference:
            return (yield from look_up(self.reference, name))
        terms = []
        for element in self.named:
            terms.append((yield from look_up(element.symbol, "number")))
        if self.step:
            terms.append(str(self.step))
        number = yield from calculate("+".join(terms))
        return (yield from look_up(number, name))


def multi_hop_problem(rng: np.random.Generator, length: str, split: str) -> Problem:
    """A property of an element that is reached through atomic numbers, or a difference of two.

    'short' (3-4 calls): of 'element Z(Fe)+3' or 'element Z(C)+Z(O)', or the difference of two plain
    elements. 'long' (5-8 calls): the difference of such an element and another.
    """
    form = int(rng.integers(3))
    if length == "short":
        return _single(rng, split, form) if form < 2 else _difference(rng, split, (2, 2))
    return _difference(rng, split, ((0, 2), (1, 2), (1, 0))[form])


def _single(rng: np.random.Generator, split: str, form: int) -> Problem:
    name = "symbol" if rng.integers(2) else _property(rng)
    while True:
        target = _target(rng, form)
        if _usable(target, name) and split_of(subject_of(target.named)) == split:
            break
    unit = UNITS.get(name, "")
    asked = f"{_words(name)} of {target.words}{f' in {unit}' if unit else ''}"
    phrases = (f"What is the {asked}?", f"Find the {asked}.")

    def solve() -> Solver:
        return with_unit((yield from target.find(name)), unit)

    if name == "symbol":
        answer = _text_answer(target.element)
    else:
        answer = _number_answer(_known(target.element, name), unit)
    question = phrases[rng.integers(len(phrases))]
    return Problem(MULTI_HOP, subject_of(target.named), question, answer, solve)


def _difference(rng: np.random.Generator, split: str, forms: tuple[int, int]) -> Problem:
    name = _property(rng)
    while True:
        first, second = (_target(rng, form) for form in forms)
        subject = subject_of([*first.named, *second.named])
        if not (_usable(first, name) and _usable(second, name) and split_of(subject) == split):
            continue
        if _known(first.element, name) < _known(second.element, name):
            first, second = second, first
        high, low = _known(first.element, name), _known(second.element, name)
        if high - low > _SUBTRACTED_GAP * high:
            break
    unit = UNITS[name]
    pair = f"the {_words(name)} of {first.words}"
    tail = f"{second.words}{f', in {unit}' if unit else ''}"
    phrases = (
        f"How much higher is {pair} than that of {tail}?",
        f"By how much does {pair} exceed that of {tail}?",
    )

    def solve() -> Solver:
        high = yield from first.find(name)
        low = yield from second.find(name)
        return with_unit((yield from calculate(f"{high}-{low}")), unit)

    question = phrases[rng.integers(len(phrases))]
    return Problem(MULTI_HOP, subject, question, _number_answer(high - low, unit), solve)


def _target(rng: np.random.Generator, form: int) -> _Target:
    """Form 0: some places after an element; 1: numbered as the sum of two; 2: an element itself."""
    if form == 0:
        return _Target(_draw(rng, 1), step=int(rng.integers(1, _MAX_STEP + 1)))
    if form == 1:
        return _Target(_draw(rng, 2))
    named = _draw(rng, 1)
    reference = (named[0].symbol, named[0].name.lower(), str(named[0].number))[rng.integers(3)]
    return _Target(named, reference=reference)


def _draw(rng: np.random.Generator, count: int) -> tuple[Element, ...]:
    """Distinct elements in random order."""
    table = elements()
    return tuple(table[i] for i in rng.choice(len(table), size=count, replace=False))


def _usable(target: _Target, name: str) -> bool:
    return target.number <= len(elements()) and getattr(target.element, name) is not None


def _known(element: Element, name: str) -> float:
    value = element.quantity(name)
    if value is None:
        raise ValueError(f"{name} of {element.symbol}: expected a known value, got none")
    return value


def _property(rng: np.random.Generator) -> str:
    return _PROPERTIES[rng.integers(len(_PROPERTIES))]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text_answer(element: Element) -> Mapping[str, Any]:
    return {"type": "text", "accepted": [element.symbol, element.name, element.name.lower()]}


def _number_answer(value: float, unit: str) -> Mapping[str, Any]:
    return {"type": "number", "value": value, "unit": unit, "rtol": TOLERANCE}
