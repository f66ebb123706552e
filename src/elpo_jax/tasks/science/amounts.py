"""Questions with one number about one compound: masses, moles, percentages and atoms."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elpo_jax.tasks.problems import Problem, Solver, calculate
from elpo_jax.tasks.science.compounds import compounds
from elpo_jax.tasks.science.elements import by_symbol
from elpo_jax.tasks.science.formulas import Formula
from elpo_jax.tasks.science.solving import weigh, with_unit
from elpo_jax.tools.calculator import format_number

TOLERANCE = 0.01  # relative
AVOGADRO = "6.022e23"
LETTERS = "ABCD"
_OPTION_SHARE = 0.2
_OPTION_GAP = 0.06  # relative distance between any two options
_FACTORS = (0.5, 2.0, 1.5, 0.75, 3.0, 0.25)  # of the answer; three always fit below 100 %

_PHRASES: Mapping[str, tuple[str, ...]] = {
    "molar_mass": (
        "What is the molar mass of {f} in g/mol?",
        "Find the molar mass of {f} in g/mol.",
    ),
    "mass_percent": (
        "What percent of the mass of {f} is {e}?",
        "Find the mass percent of {e} in {f}.",
    ),
    "moles_to_grams": (
        "What is the mass of {n} mol of {f} in g?",
        "How many g are {n} mol of {f}?",
    ),
    "grams_to_moles": (
        "How many mol are {n} g of {f}?",
        "Find the amount of {f} in {n} g, in mol.",
    ),
    "atoms": (
        "How many {e} atoms are in {n} g of {f}?",
        "Find the number of {e} atoms in {n} g of {f}.",
    ),
}
_UNITS = {
    "molar_mass": "g/mol",
    "mass_percent": "%",
    "moles_to_grams": "g",
    "grams_to_moles": "mol",
    "atoms": "atoms",
}
KINDS = tuple(_PHRASES)


@dataclass(frozen=True)
class _Given:
    """What a question gives: a formula, one of its elements, an amount as written (mol or g)."""

    kind: str
    formula: Formula
    element: str
    amount: str


def amount_problem(rng: np.random.Generator, kind: str, length: str, split: str) -> Problem:
    """Draws a question of one of `KINDS`."""
    pool = compounds(length, split)
    formula = pool[rng.integers(len(pool))]
    symbols = list(formula.composition)
    given = _Given(kind, formula, symbols[rng.integers(len(symbols))], _amount(rng, kind))
    phrases = _PHRASES[kind]
    text = phrases[rng.integers(len(phrases))].format(
        f=formula.text, e=given.element, n=given.amount
    )
    value, unit = _value(given), _UNITS[kind]
    subject = formula.key
    if rng.random() >= _OPTION_SHARE:
        answer = {"type": "number", "value": value, "unit": unit, "rtol": TOLERANCE}
        return Problem(kind, subject, text, answer, lambda: _solve(given))
    options = _options(rng, given, value)
    shown = [
        f"({letter}) {with_unit(format_number(option, 4), unit)}"
        for letter, option in zip(LETTERS, options, strict=True)
    ]
    answer = {"type": "letter", "letter": LETTERS[options.index(value)]}
    question = "\n".join([text, *shown])
    return Problem(kind, subject, question, answer, lambda: _choose(given, options))


def _amount(rng: np.random.Generator, kind: str) -> str:
    """Two or three significant digits: 0.11-9.99 mol or 1.1-99.9 g."""
    number = int(rng.integers(11, 1000))
    return format_number(number / (100 if kind == "moles_to_grams" else 10))


def _value(given: _Given) -> float:
    """The answer, from unrounded weights."""
    mass = given.formula.molar_mass
    count = given.formula.composition[given.element]
    match given.kind:
        case "molar_mass":
            return mass
        case "mass_percent":
            return 100 * count * by_symbol()[given.element].atomic_weight / mass
        case "moles_to_grams":
            return float(given.amount) * mass
        case "grams_to_moles":
            return float(given.amount) / mass
        case _:
            return float(given.amount) / mass * count * float(AVOGADRO)


def _expression(given: _Given, weights: Mapping[str, str]) -> str:
    mass = given.formula.expression(weights)
    count = given.formula.count_expression(given.element)
    times = "" if count == "1" else f"*{count}"
    match given.kind:
        case "molar_mass":
            return mass
        case "mass_percent":
            return f"100{times}*{weights[given.element]}/({mass})"
        case "moles_to_grams":
            return f"{given.amount}*({mass})"
        case "grams_to_moles":
            return f"{given.amount}/({mass})"
        case _:
            return f"{given.amount}/({mass}){times}*{AVOGADRO}"


def _solve(given: _Given) -> Solver:
    weights = yield from weigh(given.formula)
    result = yield from calculate(_expression(given, weights))
    return with_unit(result, _UNITS[given.kind])


def _choose(given: _Given, options: list[float]) -> Solver:
    weights = yield from weigh(given.formula)
    result = float((yield from calculate(_expression(given, weights))))
    nearest = min(range(len(options)), key=lambda i: abs(options[i] - result))
    return LETTERS[nearest]


def _options(rng: np.random.Generator, given: _Given, value: float) -> list[float]:
    """The answer and three others in random order: first typical errors, then other factors."""
    chosen = [value]
    for option in [*_typical_errors(given, value), *(value * factor for factor in _FACTORS)]:
        plausible = 0 < option < (100 if given.kind == "mass_percent" else float("inf"))
        if plausible and all(abs(option - c) > _OPTION_GAP * max(option, c) for c in chosen):
            chosen.append(option)
        if len(chosen) == len(LETTERS):
            break
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _typical_errors(given: _Given, value: float) -> list[float]:
    """Subscripts forgotten, a ratio inverted, atoms not counted, the percentage of the rest."""
    table = by_symbol()
    bare = sum(table[symbol].atomic_weight for symbol in given.formula.composition)
    mass = given.formula.molar_mass
    count = given.formula.composition[given.element]
    match given.kind:
        case "molar_mass":
            return [bare]
        case "mass_percent":
            return [100 * table[given.element].atomic_weight / bare, value / count, 100 - value]
        case "moles_to_grams":
            return [float(given.amount) * bare, mass / float(given.amount)]
        case "grams_to_moles":
            return [float(given.amount) / bare, mass / float(given.amount)]
        case _:
            return [value / count, value * bare / mass, value * mass / float(given.amount)]
