"""From a program to a problem: constants, words, an example, hidden tests, the solver's sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elpo_jax.tasks.code import trusted
from elpo_jax.tasks.code.program import (
    Program,
    as_function,
    as_line,
    as_script,
    filled,
    reading,
)
from elpo_jax.tasks.code_tests import CallTest, ProgramTests, StdinTest

FUNCTION = "function"
SCRIPT = "script"
SCRIPT_SHARE = 0.25  # each of its tests costs a fresh process
FUNCTION_TESTS = 8
SCRIPT_TESTS = 3
_ATTEMPTS = 1000
_OPENERS = {
    FUNCTION: ("Write f({}): {}.", "Define f({}): {}."),
    SCRIPT: ("Read {}, print {}.", "Given {}, print {}."),
}


@dataclass(frozen=True)
class Draft:
    """What is asked and with which words, before there are arguments.

    Attributes:
      program: the table's row.
      form: FUNCTION or SCRIPT.
      opener: which words it begins with.
      constants: as they stand in words and code.
    """

    program: Program
    form: str
    opener: int
    constants: Mapping[str, str]

    @property
    def asks(self) -> str:
        return filled(self.program.asks, self.constants)

    @property
    def subject(self) -> str:
        """What decides on the split: the question without its example."""
        return f"{self.form} {self.opener}: {self.program.takes}: {self.asks}"

    @property
    def function(self) -> str:
        return self._function(slipped=False)

    @property
    def slipped(self) -> str:
        """The function as a hasty author writes it."""
        return self._function(slipped=True)

    @property
    def solution(self) -> str:
        """The source that answers the question."""
        if self.form == FUNCTION:
            return self.function
        return as_script(reading(self.program.parameters), self.program.body(self.constants))

    def question(self, example: Sequence[Any]) -> str:
        """The user turn, with what an example gives."""
        names = self.program.parameters
        asked = _OPENERS[self.form][self.opener].format(", ".join(names), self.asks)
        value = self.shown(example, self.function)
        if self.form == FUNCTION:
            return f"{asked} {_call(example)} is {value}."
        given = ", ".join(f"{name} = {each!r}" for name, each in zip(names, example, strict=True))
        return f"{asked} {given} gives {value}."

    def trial(self, example: Sequence[Any], slipped: bool = False) -> str:
        """What the solver runs to see whether its program does the example right."""
        body = self.program.body(self.constants, slipped)
        if self.form == FUNCTION:
            return f"{as_function(self.program.parameters, body)}\n{_call(example)}"
        given = dict(zip(self.program.parameters, map(repr, example), strict=True))
        return as_script(given, body)

    def shown(self, example: Sequence[Any], function: str) -> str:
        """A function's value as the question and the interpreter show it."""
        (value,) = trusted.call(function, [example])
        return repr(value) if self.form == FUNCTION else str(value)

    def tests(self, arguments: Sequence[Sequence[Any]]) -> ProgramTests:
        """Hidden tests: what the right program makes of these arguments."""
        pairs = zip(arguments, trusted.call(self.function, arguments), strict=True)
        if self.form == FUNCTION:
            calls = tuple(CallTest(given, {}, [value]) for given, value in pairs)
            return ProgramTests(calls=calls, function="f", together=True)
        return ProgramTests(
            tuple(
                StdinTest("".join(f"{as_line(each)}\n" for each in given), f"{value}\n")
                for given, value in pairs
            )
        )

    def _function(self, slipped: bool) -> str:
        return as_function(self.program.parameters, self.program.body(self.constants, slipped))


def draw(rng: np.random.Generator, program: Program) -> Draft:
    form = SCRIPT if rng.random() < SCRIPT_SHARE else FUNCTION
    opener = int(rng.integers(len(_OPENERS[form])))
    return Draft(program, form, opener, program.draw_constants(rng))


def draw_example(rng: np.random.Generator, draft: Draft) -> list[Any]:
    """Arguments that show a slip: it gives something else, and doesn't raise.

    Raises:
      ValueError: none are found, which a test of the table rules out.
    """
    for _ in range(_ATTEMPTS):
        example = draft.program.draw_arguments(rng, small=True)
        right, wrong = (draft.shown(example, f) for f in (draft.function, draft.slipped))
        failed = trusted.call(draft.slipped, [example]) == [trusted.FAILED]
        if right != wrong and not failed and all(_is_plain(text) for text in (right, wrong)):
            return example
    raise ValueError(f"{draft.subject}: expected an example that shows the slip, got none")


def draw_tests(rng: np.random.Generator, draft: Draft) -> list[list[Any]]:
    """Arguments of hidden tests: not all give the same, and a slip fails one at least.

    Raises:
      ValueError: none are found, which a test of the table rules out.
    """
    count = FUNCTION_TESTS if draft.form == FUNCTION else SCRIPT_TESTS
    for _ in range(_ATTEMPTS):
        arguments = [draft.program.draw_arguments(rng, small=False) for _ in range(count)]
        values = trusted.call(draft.function, arguments)
        if len(set(map(repr, values))) > 1 and trusted.call(draft.slipped, arguments) != values:
            return arguments
    raise ValueError(f"{draft.subject}: expected tests that fail the slip, got none")


def _call(arguments: Sequence[Any]) -> str:
    return f"f({', '.join(map(repr, arguments))})"


def _is_plain(text: str) -> bool:
    """Fit for the end of a sentence, and seen in an interpreter's output."""
    return bool(text) and text == text.strip()
