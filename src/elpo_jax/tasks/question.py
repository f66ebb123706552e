"""A question of a file, in whatever format it came."""

import re
from dataclasses import dataclass
from typing import Any

from elpo_jax.tasks import answers
from elpo_jax.tasks.code_tests import ProgramTests, pack
from elpo_jax.tasks.rows import shown

MATH, NUMBER, LETTER, CODE = VERIFIERS = ("math", "number", "letter", "code")
MAX_GOLD = 1000  # characters of a right answer
_KIND_CHARACTERS = 40  # of a kind's name, at most
_NOT_IN_KIND = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Question:
    """A usable row.

    Attributes:
      kind: the question type: the name of its format, or what the row says of its origin.
      text: the user turn.
      answer: the right one: a decimal number without commas and signs of currency, where it is a
        number without a unit; LaTeX; a number with a unit; a letter. '' for code.
      calculations: the expressions that a worked solution evaluates, in order; empty if the file
        has none.
      is_cut: words of the row's were left out of the text.
      verifier: how an answer is judged, one of `VERIFIERS`.
      tolerance: relative, for the verifier 'number'.
      tests: for code, see `code_tests.pack`.
      function: what those tests call; '' for programs that read and print.
    """

    kind: str
    text: str
    answer: str
    calculations: tuple[str, ...] = ()
    is_cut: bool = False
    verifier: str = MATH
    tolerance: float = 0.0
    tests: bytes = b""
    function: str = ""


def kind_of(default: str, *names: Any) -> str:
    """The first name of a row's origin, fit for that of a metric: 'BigMath' of 'x/BigMath'."""
    for name in names:
        if isinstance(name, str):
            kind = _NOT_IN_KIND.sub("_", name.strip().rpartition("/")[2]).strip("_")
            if kind:
                return kind[:_KIND_CHARACTERS]
    return default


def gold_answer(value: Any, where: str) -> str:
    """A right answer to a mathematical question: plain digits where it is a number without a unit
    or sign of percent, else the text.

    Raises:
      ValueError: in one line, for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: expected a number or a text, got {shown(value)}")
    text = str(value).strip()
    if answers.has_box(text):
        text = answers.boxed(text, MAX_GOLD) or ""
    number = answers.number(text)
    if isinstance(value, float) and number is None:
        raise ValueError(f"{where}: expected a finite number, got {value}")
    if number is not None and "%" not in text:
        return f"{number:f}"
    if not text or len(text) > MAX_GOLD:
        raise ValueError(
            f"{where}: expected 1 to {MAX_GOLD} characters, got {len(text)}: {shown(text)}"
        )
    return text


def code_question(kind: str, text: str, tests: ProgramTests, is_cut: bool = False) -> Question:
    """A question that is answered with a program."""
    return Question(
        kind, text, "", is_cut=is_cut, verifier=CODE, tests=pack(tests), function=tests.function
    )
