"""Questions that ask for a formula: from mass percentages to the empirical formula."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from elpo_jax.tasks.problems import Problem, Solver, calculate
from elpo_jax.tasks.science.compounds import compounds
from elpo_jax.tasks.science.elements import by_symbol
from elpo_jax.tasks.science.formulas import Formula
from elpo_jax.tasks.science.solving import weigh

KIND = "empirical_formula"
_PHRASES = (
    "A compound is {p} by mass. What is its empirical formula?",
    "Find the empirical formula of a compound with {p} by mass.",
)
_MAX_ELEMENTS = {"short": 3, "long": 4}
_MIN_ELEMENTS = {"short": 2, "long": 3}
_MAX_SUBSCRIPT = {"short": 8, "long": 16}
_MAX_BASE = 4  # subscript of the element that the others are divided by
_RATIO_ERROR = 0.015  # relative, left by percentages with one decimal


def empirical_problem(rng: np.random.Generator, length: str, split: str) -> Problem:
    """Draws a compound whose formula is empirical and asks for it, percentages to one decimal."""
    pool = _pool(length, split)
    formula = pool[rng.integers(len(pool))]
    shares = _percentages(formula)
    listed = [f"{share}% {symbol}" for symbol, share in shares.items()]
    text = f"{', '.join(listed[:-1])} and {listed[-1]}"
    question = _PHRASES[rng.integers(len(_PHRASES))].format(p=text)
    answer = {"type": "formula", "formula": _written(formula)}
    subject = formula.key
    return Problem(KIND, subject, question, answer, lambda: _solve(formula, shares))


def _solve(formula: Formula, shares: Mapping[str, str]) -> Solver:
    """Divides every element's moles by those of the last but one (mostly the central atom)."""
    weights = yield from weigh(formula)
    base = _base(formula)
    for symbol in formula.composition:
        if symbol != base:
            yield from calculate(
                f"({shares[symbol]}/{weights[symbol]})/({shares[base]}/{weights[base]})"
            )
    return _written(formula)


@cache
def _pool(length: str, split: str) -> tuple[Formula, ...]:
    return tuple(formula for formula in compounds(length, split) if _fits(formula, length))


def _fits(formula: Formula, length: str) -> bool:
    """Whether the rounded percentages determine the formula."""
    counts = formula.composition
    if not (
        formula.is_empirical
        and "*" not in formula.text
        and _MIN_ELEMENTS[length] <= len(counts) <= _MAX_ELEMENTS[length]
        and max(counts.values()) <= _MAX_SUBSCRIPT[length]
        and counts[_base(formula)] <= _MAX_BASE
    ):
        return False
    table = by_symbol()
    shares = _percentages(formula)
    base = _base(formula)
    moles = {s: float(share) / table[s].atomic_weight for s, share in shares.items()}
    return moles[base] > 0 and all(
        abs(moles[s] / moles[base] * counts[base] / counts[s] - 1) < _RATIO_ERROR for s in counts
    )


def _base(formula: Formula) -> str:
    return list(formula.composition)[-2]


def _percentages(formula: Formula) -> dict[str, str]:
    table = by_symbol()
    mass = formula.molar_mass
    return {
        symbol: f"{100 * count * table[symbol].atomic_weight / mass:.1f}"
        for symbol, count in formula.composition.items()
    }


def _written(formula: Formula) -> str:
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in formula.composition.items())
