"""The math suite: word and expression problems for a calculator, generated or from files.

Generated problems come from `PATTERNS`: a question with holes for numbers, the range of each
number, and the calculations that lead to the answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import numpy as np

from elpo_jax.errors import UsageError
from elpo_jax.tasks import answers
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tasks.files import KEYS
from elpo_jax.tasks.problems import Call, Problem, ProblemSuite, Solver, calculate, split_of
from elpo_jax.tasks.question import Question
from elpo_jax.tools.calculator import (
    Calculator,
    CalculatorError,
    evaluate,
    format_number,
    format_result,
)

_MAX_VALUE = 9999  # of what is calculated, so that digits stay few
_VOTE_DIGITS = 10
_FIRST_NUMBER = re.compile(r"\(?([0-9.]+)[-+*/]")
_THINGS = ("pen", "cup", "pan", "hat", "mat", "can", "map", "net")


@dataclass(frozen=True)
class Pattern:
    """Problems that differ in their numbers.

    Attributes:
      kind: the question type.
      questions: phrases that ask the same; '{a}' is a number, '{x}' and '{y}' are things.
      ranges: of each number, both ends included; a third value is the distance between numbers.
      steps: the calculations; '{0}' is the result of the first. The last one's is the answer.
      whole: whether every result must be a whole number; else one decimal place is allowed.
    """

    kind: str
    questions: tuple[str, ...]
    ranges: Mapping[str, tuple[int, ...]]
    steps: tuple[str, ...]
    whole: bool = True


PATTERNS = (
    Pattern(
        "expression",
        ("What is ({a}+{b})*{c}-{d}?", "Find ({a}+{b})*{c}-{d}."),
        {"a": (2, 99), "b": (2, 99), "c": (2, 9), "d": (2, 99)},
        ("{a}+{b}", "{0}*{c}", "{1}-{d}"),
    ),
    Pattern(
        "expression",
        ("What is ({a}-{b})*{c}?", "Find ({a}-{b})*{c}."),
        {"a": (20, 199), "b": (2, 99), "c": (2, 29)},
        ("{a}-{b}", "{0}*{c}"),
    ),
    Pattern(
        "expression",
        ("What is {a}*{b}+{c}*{d}?", "Find {a}*{b}+{c}*{d}."),
        {"a": (2, 99), "b": (2, 9), "c": (2, 99), "d": (2, 9)},
        ("{a}*{b}", "{c}*{d}", "{0}+{1}"),
    ),
    Pattern(
        "expression",
        ("What is ({a}+{b})*({c}-{d})/{e}?", "Find ({a}+{b})*({c}-{d})/{e}."),
        {"a": (2, 99), "b": (2, 99), "c": (12, 99), "d": (2, 49), "e": (2, 9)},
        ("{a}+{b}", "{c}-{d}", "{0}*{1}", "{2}/{e}"),
    ),
    Pattern(
        "equation",
        ("{a}*n+{b}={c}. Find n.", "What is n in {a}*n+{b}={c}?"),
        {"a": (2, 9), "b": (2, 99), "c": (20, 599)},
        ("{c}-{b}", "{0}/{a}"),
    ),
    Pattern(
        "equation",
        ("{a}*(n-{b})+{c}={d}. Find n.", "What is n in {a}*(n-{b})+{c}={d}?"),
        {"a": (2, 9), "b": (2, 99), "c": (2, 99), "d": (20, 599)},
        ("{d}-{c}", "{0}/{a}", "{1}+{b}"),
    ),
    Pattern(
        "purchase",
        (
            "A {x} is ${a}, a {y} ${b}. Find the price of {c} {x}s and {d} {y}s.",
            "How many $ do {c} {x}s at ${a} and {d} {y}s at ${b} cost?",
        ),
        {"a": (2, 99), "b": (2, 99), "c": (2, 19), "d": (2, 19)},
        ("{c}*{a}", "{d}*{b}", "{0}+{1}"),
    ),
    Pattern(
        "purchase",
        (
            "Of ${e} you buy {c} {x}s at ${a} and {d} {y}s at ${b}. How many $ are left?",
            "A {x} is ${a}, a {y} ${b}. What is left of ${e} after {c} {x}s and {d} {y}s?",
        ),
        {"a": (2, 49), "b": (2, 49), "c": (2, 9), "d": (2, 9), "e": (100, 900, 50)},
        ("{c}*{a}", "{d}*{b}", "{0}+{1}", "{e}-{2}"),
    ),
    Pattern(
        "sharing",
        (
            "{b} men each take {c} of {a} {x}s. How many are left?",
            "There are {a} {x}s. {b} men take {c} each. How many {x}s are left?",
        ),
        {"a": (50, 999), "b": (2, 19), "c": (2, 49)},
        ("{b}*{c}", "{a}-{0}"),
    ),
    Pattern(
        "sharing",
        (
            "{a} bags of {b} {x}s and {c} more are shared by {d} men. How many has each?",
            "{d} men share {a} bags of {b} {x}s and {c} more. How many {x}s has each?",
        ),
        {"a": (2, 19), "b": (2, 29), "c": (2, 49), "d": (2, 9)},
        ("{a}*{b}", "{0}+{c}", "{1}/{d}"),
    ),
    Pattern(
        "trip",
        (
            "A bus does {a} km/h in {b} h, then {c} km/h in {d} h. How many km is that?",
            "How many km are {b} h at {a} km/h and {d} h at {c} km/h?",
        ),
        {"a": (20, 120), "b": (2, 9), "c": (20, 120), "d": (2, 9)},
        ("{a}*{b}", "{c}*{d}", "{0}+{1}"),
    ),
    Pattern(
        "trip",
        (
            "A bus does {a} km in {b} h. How many km is that in {c} h?",
            "At {a} km in {b} h, how many km are done in {c} h?",
        ),
        {"a": (20, 900), "b": (2, 9), "c": (2, 19)},
        ("{a}/{b}", "{0}*{c}"),
    ),
    Pattern(
        "percent",
        (
            "A {x} of ${a} is {b}% off. What is the price of {c}?",
            "Find the price of {c} {x}s of ${a} at {b}% off.",
        ),
        {"a": (10, 300, 10), "b": (5, 75, 5), "c": (2, 9)},
        ("{a}*{b}/100", "{a}-{0}", "{1}*{c}"),
        whole=False,
    ),
    Pattern(
        "percent",
        (
            "{b}% of {a} {x}s are sold. How many are left?",
            "Of {a} {x}s {b}% are sold. How many {x}s are left?",
        ),
        {"a": (20, 900, 20), "b": (5, 95, 5)},
        ("{a}*{b}/100", "{a}-{0}"),
    ),
    Pattern(
        "mean",
        ("Find the mean of {a}, {b} and {c}.", "What is the mean of {a}, {b} and {c}?"),
        {"a": (2, 199), "b": (2, 199), "c": (2, 199)},
        ("{a}+{b}+{c}", "{0}/3"),
        whole=False,
    ),
    Pattern(
        "mean",
        (
            "How much higher is {d} than the mean of {a} and {b}?",
            "By how much does {d} exceed the mean of {a} and {b}?",
        ),
        {"a": (2, 99), "b": (2, 99), "d": (100, 299)},
        ("{a}+{b}", "{0}/2", "{d}-{1}"),
        whole=False,
    ),
)
KINDS = tuple(dict.fromkeys(pattern.kind for pattern in PATTERNS))


class MathSuite(ProblemSuite):
    """Problems to be solved with a calculator, in 2-4 calls where they are generated.

    Kinds: those of `PATTERNS` in equal shares; from a file, its format. No set of numbers is the
    subject of generated problems of both splits.

    Args:
      length: of generated problems; there is only 'short'.
      questions: from files, by split. A split without is generated.

    Raises:
      UsageError: for another length, or questions whose answers aren't numbers.
    """

    name = "math"
    system_prompt = "Use the tools, one call a turn. End with the answer in \\boxed{}."

    def __init__(self, length: str, questions: Mapping[str, Sequence[Question]]):
        if length != "short":
            raise UsageError([f"suite.length: expected 'short' for suite math, got {length!r}"])
        super().__init__([Calculator()], [length])
        others = {
            split: sum(answers.number(question.answer) is None for question in found)
            for split, found in questions.items()
        }
        if any(others.values()):
            raise UsageError(
                f"{KEYS[split]}: expected questions whose answers are numbers for suite math, got "
                f"{count} others; suite.name=questions takes them too"
                for split, count in others.items()
                if count
            )
        self._questions = questions

    def size(self, split: str) -> int | None:
        return len(self._questions[split]) if split in self._questions else None

    def problem(self, split: str, index: int) -> Problem:
        if split in self._questions:
            return _from_file(self._questions[split][index])
        rng = self.rng(split, index)
        kind = KINDS[rng.integers(len(KINDS))]
        patterns = [pattern for pattern in PATTERNS if pattern.kind == kind]
        return _generate(rng, patterns[rng.integers(len(patterns))], split)

    def detour(self, problem: Problem, call: Call) -> Call | None:
        """The calculation's first number alone."""
        found = _FIRST_NUMBER.match(call.arguments["expression"])
        return Call(call.name, {"expression": found[1]}) if found else None

    def verify(self, task: Task, response: str) -> Verdict:
        """Judges the last `\\boxed{}` of a response: a number alone, commas, $ and % aside.

        Whole numbers must be met exactly. Others are met to half a unit of their last place, or of
        the second place if they have fewer.
        """
        inside = answers.boxed(response)
        found = answers.number(inside) if inside is not None else None
        if found is None:
            return Verdict(False, inside)
        success = _meets(found, Decimal(task.answer["value"]))
        return Verdict(success, format_number(float(found), _VOTE_DIGITS))


def _meets(found: Decimal, expected: Decimal) -> bool:
    if expected == expected.to_integral_value():
        return found == expected
    places = max(2, -int(expected.as_tuple().exponent))
    return abs(found - expected) <= Decimal((0, (5,), -places - 1))


def _generate(rng: np.random.Generator, pattern: Pattern, split: str) -> Problem:
    """Draws numbers until the results are plain and the subject is of the split."""
    things = dict(zip("xy", rng.permutation(_THINGS)[:2], strict=True))
    phrase = pattern.questions[rng.integers(len(pattern.questions))]
    while True:
        numbers = {name: _draw(rng, *limits) for name, limits in pattern.ranges.items()}
        subject = "numbers:" + ",".join(map(str, sorted(numbers.values())))
        results = _results(pattern.steps, numbers)
        if all(_is_plain(x, pattern.whole) for x in results) and split_of(subject) == split:
            break
    question = phrase.format(**numbers, **things)
    answer = {"value": format_number(results[-1])}
    return Problem(pattern.kind, subject, question, answer, partial(_solve, pattern, numbers))


def _draw(rng: np.random.Generator, low: int, high: int, distance: int = 1) -> int:
    return low + distance * int(rng.integers((high - low) // distance + 1))


def _results(steps: Sequence[str], numbers: Mapping[str, int]) -> list[float]:
    results: list[float] = []
    for step in steps:
        results.append(evaluate(step.format(*map(format_number, results), **numbers)))
    return results


def _is_plain(value: float, whole: bool) -> bool:
    scaled = value if whole else 10 * value
    return 0 < value <= _MAX_VALUE and abs(scaled - round(scaled)) < 1e-9


def _solve(pattern: Pattern, numbers: Mapping[str, int]) -> Solver:
    results: list[str] = []
    for step in pattern.steps:
        results.append((yield from calculate(step.format(*results, **numbers))))
    return results[-1]


def _from_file(question: Question) -> Problem:
    """A row's problem; its solver makes the calculations of the worked solution, if they hold."""
    answer = {"value": f"{answers.number(question.answer):f}"}
    solve = partial(_recite, question) if _holds(question) else None
    return Problem(question.kind, question.text, question.text, answer, solve)


def _holds(question: Question) -> bool:
    """Whether the calculations can be made and the last one gives the answer."""
    try:
        results = [format_result(evaluate(each)) for each in question.calculations]
    except CalculatorError:
        return False
    return bool(results) and _meets(Decimal(results[-1]), Decimal(question.answer))


def _recite(question: Question) -> Solver:
    result = ""
    for expression in question.calculations:
        result = yield from calculate(expression)
    return result
