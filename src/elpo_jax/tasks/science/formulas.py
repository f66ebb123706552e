"""Chemical formulas: their grammar, composition, molar mass, and the arithmetic that weighs them.

A formula is plain ASCII: 'Fe2O3', 'Ca(NO3)2', and 'CuSO4*5H2O' for a hydrate.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from elpo_jax.tasks.science.elements import by_symbol

MAX_LENGTH = 64  # characters
_TOKEN = re.compile(r"([A-Z][a-z]?|\(|\))([1-9][0-9]{0,2})?")


@dataclass(frozen=True)
class Group:
    """Parts that occur together `count` times; a part is an element or again a group."""

    parts: tuple["Group | Atom", ...]
    count: int


@dataclass(frozen=True)
class Atom:
    symbol: str
    count: int


@dataclass(frozen=True)
class Formula:
    """A parsed formula; `text` is how it was written."""

    text: str
    parts: tuple[Group | Atom, ...]

    @cached_property
    def composition(self) -> Mapping[str, int]:
        """Atoms of each element, in order of first appearance."""
        counts: dict[str, int] = {}
        for symbol, factors in self._occurrences():
            total = 1
            for factor in factors:
                total *= factor
            counts[symbol] = counts.get(symbol, 0) + total
        return counts

    @property
    def key(self) -> str:
        """The composition, however it is written: 'Fe2O3' for 'Fe2O3' and for 'O3Fe2'."""
        return "".join(f"{symbol}{count}" for symbol, count in sorted(self.composition.items()))

    @property
    def molar_mass(self) -> float:
        """In g/mol, from unrounded atomic weights."""
        table = by_symbol()
        return sum(table[s].atomic_weight * count for s, count in self.composition.items())

    @property
    def is_empirical(self) -> bool:
        return gcd(*self.composition.values()) == 1

    def expression(self, weights: Mapping[str, str]) -> str:
        """The molar mass as an expression over shown weights: '2*55.845+3*15.999'."""
        return _expression(self.parts, weights)

    def count_expression(self, symbol: str) -> str:
        """The atoms of one element as an expression: '3', '2*3' or '(4+5)'."""
        terms = [
            "*".join(str(factor) for factor in factors if factor > 1) or "1"
            for found, factors in self._occurrences()
            if found == symbol
        ]
        return terms[0] if len(terms) == 1 else f"({'+'.join(terms)})"

    def _occurrences(self) -> list[tuple[str, tuple[int, ...]]]:
        return _occurrences(self.parts, ())


def _occurrences(
    parts: tuple[Group | Atom, ...], factors: tuple[int, ...]
) -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = []
    for part in parts:
        inner = (*factors, part.count)
        if isinstance(part, Atom):
            found.append((part.symbol, inner))
        else:
            found.extend(_occurrences(part.parts, inner))
    return found


def _expression(parts: tuple[Group | Atom, ...], weights: Mapping[str, str]) -> str:
    terms = []
    for part in parts:
        if isinstance(part, Atom):
            inner = weights[part.symbol]
        else:
            inner = f"({_expression(part.parts, weights)})"
        terms.append(inner if part.count == 1 else f"{part.count}*{inner}")
    return "+".join(terms)


def parse(text: str) -> Formula:
    """Parses a formula.

    Raises:
      ValueError: if the text is not a formula of known elements.
    """
    problem = ValueError(f"formula: expected one like Fe2O3 or CuSO4*5H2O, got {text[:80]!r}")
    if not 0 < len(text) <= MAX_LENGTH:
        raise problem
    main, star, tail = text.partition("*")
    parts = _parts(main, problem)
    if star:
        count = re.match(r"(?:[1-9][0-9]?)?", tail, re.ASCII)
        digits = count.group() if count else ""
        parts = (*parts, Group(_parts(tail[len(digits) :], problem), int(digits or 1)))
    return Formula(text, parts)


def _parts(text: str, problem: ValueError) -> tuple[Group | Atom, ...]:
    stack: list[list[Group | Atom]] = [[]]
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise problem
        position = match.end()
        token, count = match.group(1), int(match.group(2) or 1)
        if token == "(":
            if match.group(2):
                raise problem
            stack.append([])
        elif token == ")":
            inner = tuple(stack.pop())
            if not stack or not inner:
                raise problem
            stack[-1].append(Group(inner, count))
        elif token in by_symbol():
            stack[-1].append(Atom(token, count))
        else:
            raise problem
    if len(stack) != 1 or not stack[0]:
        raise problem
    return tuple(stack[0])
