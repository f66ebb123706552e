"""Questions from files as others publish them: JSON lines, each format a row of `FORMATS`.

A row that can't be used is left out and named by its line. A file without any other is an error.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import DataConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks import answers
from elpo_jax.tasks.base import HELD_OUT, TRAIN

KEYS = {TRAIN: "data.train", HELD_OUT: "data.eval"}  # the setting that names a split's file
_NAMED = 5  # bad rows whose fault is told; of the others the line numbers are
_RANGES = 100  # of line numbers, at most
_SHOWN = 40  # characters of a wrong value
_CALCULATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")


@dataclass(frozen=True)
class Question:
    """A usable row.

    Attributes:
      kind: the name of its format.
      text: the user turn.
      answer: a decimal number, without commas and signs of currency.
      calculations: the expressions that a worked solution evaluates, in order; empty if the file
        has none.
    """

    kind: str
    text: str
    answer: str
    calculations: tuple[str, ...] = ()


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
            content = _content(Path(path), KEYS[split])
            digests[split] = hashlib.sha256(content).hexdigest()
            good, bad = read_lines(content, config.format)
            lines = _named(path, bad)
            if not good:
                expected = f"a {config.format} row that can be used"
                raise UsageError([f"{KEYS[split]}: {path}: expected {expected}, got none", *lines])
            counts = f"questions: {len(good)}, bad rows: {len(bad)}"
            notes += [*lines, f"{KEYS[split]}: {path}: {counts}"]
            questions[split] = tuple(good)
    if len(questions) == 1:
        given, missing = (KEYS[TRAIN], KEYS[HELD_OUT])[:: 1 if TRAIN in questions else -1]
        notes.append(f"warning: {missing}: no file, only {given} has one; its tasks are generated")
    return Files(questions, digests, (*notes, *_shared(questions)))


def read_lines(content: bytes, name: str) -> tuple[list[Question], list[str]]:
    """The usable rows of a file, and 'LINE: what is wrong' of each of the others.

    Args:
      content: JSON lines in UTF-8; empty lines are passed over.
      name: of the format.
    """
    good, bad = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                good.append(_row(line, name))
            except ValueError as error:
                bad.append(f"{number}: {error}")
    return good, bad


def _row(line: bytes, name: str) -> Question:
    """Reads one row.

    Raises:
      ValueError: what was expected, and what came.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got byte 0x{line[error.start]:02x}") from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"expected JSON, got {_shown(text)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {_shown(row)}")
    return FORMATS[name](row)


def _gsm8k(row: Mapping[str, Any]) -> Question:
    """`question`, and `answer`: a solution with <<48/2=24>> at its calculations, then '#### 24'.

    https://github.com/openai/grade-school-math
    """
    question, worked = _text(row, "question"), _text(row, "answer")
    solution, marker, final = worked.rpartition("####")
    if not marker:
        raise ValueError("answer: expected #### and a number at its end, got no ####")
    number = answers.number(final)
    if number is None:
        raise ValueError(f"answer: expected a number after ####, got {_shown(final.strip())}")
    calculations = tuple(part.strip() for part in _CALCULATION.findall(solution))
    return Question("gsm8k", question, f"{number:f}", calculations)


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], Question]] = {"gsm8k": _gsm8k}


def _text(row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        raise ValueError(f"{field}: expected this field, got {_shown(', '.join(row))}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: expected a text, got {_shown(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{field}: expected Unicode without lone surrogates, got {_shown(value)}")
    return value


def _content(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError([f"{key}: {path}: expected a file to read: {error.strerror}"]) from None


def _named(path: str, bad: Sequence[str]) -> list[str]:
    """A line for each of the first bad rows, and one for the rest with their numbers."""
    lines = [f"{path}:{line}" for line in bad[:_NAMED]]
    rest = [int(line.partition(":")[0]) for line in bad[_NAMED:]]
    return [*lines, f"{path}: and {len(rest)} more, lines {_ranges(rest)}"] if rest else lines


def _ranges(numbers: Sequence[int]) -> str:
    """'3-5, 9': ascending numbers."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_RANGES]]
    return ", ".join([*shown, "..."] if len(ranges) > _RANGES else shown)


def _shared(questions: Mapping[str, tuple[Question, ...]]) -> list[str]:
    """A warning if questions are in both files."""
    train, held_out = ({q.text for q in questions.get(split, ())} for split in KEYS)
    both = len(train & held_out)
    return [f"data.eval: {both} of its questions are in data.train too"] if both else []


def _shown(value: Any) -> str:
    """A text, cut; of anything else its type, since it may be of any size and depth."""
    if not isinstance(value, str):
        return type(value).__name__
    return ascii(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
