"""Questions from files as others publish them, each format a row of `FORMATS`.

A row that can't be used is left out and named. A file without any other is an error.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import DataConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks import answers
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.rows import (
    Bad,
    Row,
    Rows,
    check_unicode,
    convert,
    field_of,
    read_content,
    shown,
    text_of,
)

KEYS = {TRAIN: "data.train", HELD_OUT: "data.eval"}  # the setting that names a split's file
_CALCULATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")
_KIND_CHARACTERS = 40  # of a kind's name, at most
_NOT_IN_KIND = re.compile(r"[^\w.-]+")
# DAPO-Math-17k's words on the form of the answer. The suites ask for it in a box, which these
# contradict.
_ANSWER_WORDS = (
    " The last line of your response should be of the form Answer: $Answer (without quotes) where "
    "$Answer is the answer to the problem.",
    '\n\nRemember to put your answer on its own line after "Answer:".',
)


@dataclass(frozen=True)
class Question:
    """A usable row.

    Attributes:
      kind: the question type: the name of its format, or what the row says of its origin.
      text: the user turn.
      answer: a decimal number, without commas and signs of currency.
      calculations: the expressions that a worked solution evaluates, in order; empty if the file
        has none.
      is_cut: words of the row's were left out of the text.
    """

    kind: str
    text: str
    answer: str
    calculations: tuple[str, ...] = ()
    is_cut: bool = False


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
      read: a row's question; raises ValueError, in one line, for one that can't be used.
      is_unique: a question counts once, however many rows have it.
    """

    read: Callable[[Row], Question]
    is_unique: bool = False


class Files(NamedTuple):
    """What was read, of the splits that have a file.

    Attributes:
      questions: by split.
      digests: SHA-256 of the files' bytes, by split.
      notes: lines for the user: bad rows, and how many are good.
    """

    questions: Mapping[str, tuple[Question, ...]]
    digests: Mapping[str, str]
    notes: tuple[str, ...]


def read_files(config: DataConfig) -> Files:
    """Reads the files of the config.

    Raises:
      UsageError: a file can't be read, or has no row that can be used.
    """
    questions, digests, notes = {}, {}, []
    for split, path in ((TRAIN, config.train), (HELD_OUT, config.eval)):
        if path:
            content, digests[split] = read_content(Path(path), KEYS[split])
            try:
                rows, copies = read_questions(content, path, config.format)
            except ValueError as error:
                raise UsageError([f"{KEYS[split]}: {path}: {error}"]) from None
            if not rows.good:
                article = "an" if config.format[0] in "aeiou" else "a"
                expected = f"{article} {config.format} row that can be used"
                raise UsageError(
                    [f"{KEYS[split]}: {path}: expected {expected}, got none", *rows.named(path)]
                )
            questions[split] = tuple(question for _, question in rows.good)
            notes += [*rows.named(path), f"{KEYS[split]}: {path}: {_counts(rows, copies)}"]
    if len(questions) == 1:
        given, missing = (KEYS[TRAIN], KEYS[HELD_OUT])[:: 1 if TRAIN in questions else -1]
        notes.append(f"warning: {missing}: no file, only {given} has one; its tasks are generated")
    return Files(questions, digests, (*notes, *_shared(questions)))


def read_questions(content: bytes, name: str, form: str) -> tuple[Rows[Question], int]:
    """The questions of a file, and how many rows only repeat one.

    Args:
      content: see `rows.convert`.
      name: of the file.
      form: name of its format.

    Raises:
      ValueError: the file as a whole isn't what it should be.
    """
    if not FORMATS[form].is_unique:
        return convert(content, name, FORMATS[form].read), 0
    # DAPO-Math-17k has each question a hundred times: rows share the object.
    known: dict[Question, Question] = {}

    def read(row: Row) -> Question:
        question = FORMATS[form].read(row)
        return known.setdefault(question, question)

    return _unique(convert(content, name, read))


def _unique(rows: Rows[Question]) -> tuple[Rows[Question], int]:
    """Each question once, with the number of rows that repeat one.

    A question with several answers is left out, and its first row is bad: none of them can be told
    to be the right one.
    """
    first: dict[str, tuple[int, Question]] = {}
    contradicted: dict[str, Bad] = {}
    for number, question in rows.good:
        before, known = first.setdefault(question.text, (number, question))
        if Decimal(known.answer) != Decimal(question.answer):
            got = f"{shown(known.answer)} here and {shown(question.answer)} in {rows.unit} {number}"
            told = Bad(before, f"expected one answer to the question, got {got}")
            contradicted.setdefault(question.text, told)
    good = [pair for text, pair in first.items() if text not in contradicted]
    bad = sorted([*rows.bad, *contradicted.values()])
    return Rows(good, bad, rows.unit), len(rows.good) - len(first)


def _gsm8k(row: Row) -> Question:
    """`question`, and `answer`: a solution with <<48/2=24>> at its calculations, then '#### 24'.

    https://github.com/openai/grade-school-math
    """
    question, worked = text_of(row, "question"), text_of(row, "answer")
    solution, marker, final = worked.rpartition("####")
    if not marker:
        raise ValueError("answer: expected #### and a number at its end, got no ####")
    number = answers.number(final)
    if number is None:
        raise ValueError(f"answer: expected a number after ####, got {shown(final.strip())}")
    calculations = tuple(part.strip() for part in _CALCULATION.findall(solution))
    return Question("gsm8k", question, f"{number:f}", calculations)


def _agentrl(row: Row) -> Question:
    """`prompt` [{role, content}], `reward_model` {ground_truth}, and for the kind `data_source` or
    `ability`: Open-AgentRL-30K and DAPO-Math-17k.

    https://huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k
    """
    given = _prompt_text(field_of(row, "prompt"))
    text = given
    for words in _ANSWER_WORDS:
        text = text.replace(words, "")
    if not text.strip():
        raise ValueError("prompt: expected a question, got nothing beside the form of its answer")
    reward_model = field_of(row, "reward_model")
    if not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
        raise ValueError(
            f"reward_model: expected an object with ground_truth, got {shown(reward_model)}"
        )
    answer = _ground_truth(reward_model["ground_truth"])
    return Question(_kind(row), text, answer, is_cut=text != given)


def _prompt_text(prompt: Any) -> str:
    """The user messages, a system message before them: the system turn is the suite's."""
    if not isinstance(prompt, list):
        raise ValueError(f"prompt: expected a list of messages, got {shown(prompt)}")
    messages = [message if isinstance(message, Mapping) else {} for message in prompt]
    roles = [message.get("role") for message in messages]
    first = 1 if roles[:1] == ["system"] else 0
    if not roles[first:] or any(role != "user" for role in roles[first:]):
        got = ", ".join(map(shown, roles[:4])) + (", ..." if len(roles) > 4 else "")
        raise ValueError(
            f"prompt: expected user messages, after at most one of the system, got {got or 'none'}"
        )
    parts = []
    for number, message in enumerate(messages):
        where = f"prompt[{number}].content"
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where}: expected a text, got {shown(content)}")
        check_unicode(where, content)
        parts.append(content)
    return "\n\n".join(parts)


def _ground_truth(value: Any) -> str:
    """A number; all that the math suite's verifier judges."""
    where = "reward_model.ground_truth: expected a number"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}, got {value}")
    number = answers.number(str(value))
    if number is None:
        raise ValueError(f"{where}, got {shown(str(value).strip())}")
    return f"{number:f}"


def _kind(row: Row) -> str:
    """What the row says of its origin, fit for the name of a metric: 'BigMath' of 'x/BigMath'."""
    for field in ("data_source", "ability"):
        value = row.get(field)
        if isinstance(value, str):
            kind = _NOT_IN_KIND.sub("_", value.strip().rpartition("/")[2]).strip("_")
            if kind:
                return kind[:_KIND_CHARACTERS]
    return "agentrl"


FORMATS: Mapping[str, Format] = {
    "gsm8k": Format(_gsm8k),
    "agentrl": Format(_agentrl, is_unique=True),
}


def _counts(rows: Rows[Question], copies: int) -> str:
    cut = sum(question.is_cut for _, question in rows.good)
    return (
        f"questions: {len(rows.good)}, bad rows: {len(rows.bad)}"
        + (f", rows that repeat a question: {copies}" if copies else "")
        + (f", without their words on the form of the answer: {cut}" if cut else "")
    )


def _shared(questions: Mapping[str, Sequence[Question]]) -> list[str]:
    """A warning if questions are in both files."""
    train, held_out = ({q.text for q in questions.get(split, ())} for split in KEYS)
    both = len(train & held_out)
    return [f"data.eval: {both} of its questions are in data.train too"] if both else []
