"""Reads files of questions, in the formats of `formats`.

A row that can't be used is left out and named. A file without any other is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from elpo_jax.config import DataConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks import answers
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.formats import FORMATS
from elpo_jax.tasks.question import CODE, Question
from elpo_jax.tasks.rows import Bad, Row, Rows, convert, read_content, shown

KEYS = {TRAIN: "data.train", HELD_OUT: "data.eval"}  # the setting that names a split's file


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
        if not _have_one_answer(known, question):
            got = f"{_answer(known)} here and {_answer(question)} in {rows.unit} {number}"
            told = Bad(before, f"expected one answer to the question, got {got}")
            contradicted.setdefault(question.text, told)
    good = [pair for text, pair in first.items() if text not in contradicted]
    bad = sorted([*rows.bad, *contradicted.values()])
    return Rows(good, bad, rows.unit), len(rows.good) - len(first)


def _have_one_answer(a: Question, b: Question) -> bool:
    numbers = answers.number(a.answer), answers.number(b.answer)
    is_same = a.answer == b.answer or (None not in numbers and numbers[0] == numbers[1])
    return is_same and (a.verifier, a.tests) == (b.verifier, b.tests)


def _answer(question: Question) -> str:
    return "tests" if question.verifier == CODE else shown(question.answer)


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
