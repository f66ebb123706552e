"""Rows of files as others publish them: JSON lines, a JSON list, or Parquet.

A row that can't be used is left out and named by its line or its number. A file that can't be read
at all is an error.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from elpo_jax.errors import UsageError

Row = Mapping[str, Any]
T = TypeVar("T")

_PARQUET = b"PAR1"  # what a Parquet file begins and ends with
_BATCH = 1024  # rows of a Parquet file that exist as objects at once
_NAMED = 5  # bad rows whose fault is told; of the others the numbers are
_RANGES = 100  # of numbers, at most
_SHOWN = 40  # characters of a wrong value
_WORDS = 200  # characters of somebody else's error message


class Bad(NamedTuple):
    """A row that can't be used: its number from 1, and what is wrong."""

    number: int
    problem: str


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What was made of a file's rows.

    Attributes:
      good: the usable ones, with their numbers from 1, in order.
      bad: the others, in order.
      unit: what the numbers count: 'line' or 'row'.
    """

    good: Sequence[tuple[int, T]]
    bad: Sequence[Bad]
    unit: str

    def named(self, path: str) -> list[str]:
        """A line for each of the first bad rows, and one for the rest with their numbers."""
        place = f"{path}:" if self.unit == "line" else f"{path}: row "
        lines = [f"{place}{number}: {problem}" for number, problem in self.bad[:_NAMED]]
        rest = [number for number, _ in self.bad[_NAMED:]]
        more = f"{path}: and {len(rest)} more, {self.unit}s {_ranges(rest)}"
        return [*lines, more] if rest else lines


def read_content(path: Path, key: str) -> tuple[bytes, str]:
    """A file's bytes and their SHA-256.

    Raises:
      UsageError: it can't be read; `key` is the setting that names it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError([f"{key}: {path}: expected a file to read: {error.strerror}"]) from None
    return content, hashlib.sha256(content).hexdigest()


def convert(
    content: bytes, name: str, make: Callable[[Row], T], drop_nulls: bool = False
) -> Rows[T]:
    """Makes something of each row.

    Args:
      content: Parquet if it begins so or `name` ends in .parquet; a JSON list if `name` ends in
        .json and it begins with a bracket; else JSON lines in UTF-8, empty ones passed over.
      name: of the file.
      make: what a row becomes; raises ValueError, in one line, for one that can't be used.
      drop_nulls: leave out what is null inside a Parquet file's columns, where all objects have the
        fields of each.

    Raises:
      ValueError: the file as a whole isn't what it should be.
    """
    suffix = Path(name).suffix.lower()
    if content.startswith(_PARQUET) or suffix == ".parquet":
        rows, unit = _parquet(content, drop_nulls), "row"
    elif suffix == ".json" and content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        rows, unit = _json_list(content), "row"
    else:
        rows, unit = _json_lines(content), "line"
    good: list[tuple[int, T]] = []
    bad: list[Bad] = []
    for number, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, Mapping):
                raise ValueError(f"expected an object, got {shown(row)}")
            good.append((number, make(row)))
        except ValueError as error:
            bad.append(Bad(number, str(error)))
    return Rows(good, bad, unit)


def text_of(row: Row, field: str) -> str:
    """A field's text.

    Raises:
      ValueError: it is missing, no text, blank, or no Unicode.
    """
    value = field_of(row, field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: expected a text, got {shown(value)}")
    check_unicode(field, value)
    return value


def field_of(row: Row, field: str) -> Any:
    """A field's value, whatever it is.

    Raises:
      ValueError: the row has no such field.
    """
    if field not in row:
        raise ValueError(f"{field}: expected this field, got {shown(', '.join(map(str, row)))}")
    return row[field]


def check_unicode(where: str, value: Any) -> None:
    """Raises ValueError where a text, at any depth, has a lone surrogate, which has no UTF-8."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            raise ValueError(
                f"{where}: expected Unicode without lone surrogates, got {shown(value)}"
            )
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_unicode(where, name)
            check_unicode(where, inner)
    elif isinstance(value, list):
        for inner in value:
            check_unicode(where, inner)


def shown(value: Any) -> str:
    """A text, cut; of anything else its type, since it may be of any size and depth."""
    if not isinstance(value, str):
        return type(value).__name__
    return ascii(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")


def one_line(error: Exception) -> str:
    """An error's words as one line of printable ASCII, cut."""
    words = " ".join(str(error).split())[:_WORDS]
    return "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in words)


def _json_lines(content: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, _json_line(line)


def _json_line(line: bytes) -> Any:
    """The value, or the ValueError that says what is wrong."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return ValueError(f"expected UTF-8, got byte 0x{line[error.start]:02x}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ValueError(f"expected JSON, got {shown(text)}")


def _json_list(content: bytes) -> Iterator[tuple[int, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ValueError(f"expected UTF-8, got {byte}") from None
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"expected a JSON list, got a fault at {place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON list, got a fault: {one_line(error)}") from None
    return enumerate(rows, 1)


def _parquet(content: bytes, drop_nulls: bool) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, a batch of them at a time: the file may be much larger unpacked."""
    # Imported here because most runs read no such file and it takes a while.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        for batch in file.iter_batches(_BATCH):
            for row in _batch_rows(batch):
                number += 1
                yield number, _without_nulls(row) if drop_nulls else row
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        where = f" after row {number}" if number else ""
        raise ValueError(f"expected Parquet, got a fault{where}: {one_line(error)}") from None


def _batch_rows(batch: Any) -> list[Any]:
    """The rows as objects; where one can't be one (text that isn't UTF-8), the ValueError."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [ValueError(f"expected a readable row, got a fault: {one_line(error)}")]
    return [row for i in range(len(batch)) for row in _batch_rows(batch.slice(i, 1))]


def _without_nulls(row: Any) -> Any:
    """A row whose columns, if not null themselves, hold objects without null fields."""

    def inner(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner(item) for name, item in value.items() if item is not None}
        return [inner(item) for item in value] if isinstance(value, list) else value

    return {name: inner(value) for name, value in row.items()} if isinstance(row, dict) else row


def _ranges(numbers: Sequence[int]) -> str:
    """'3-5, 9': ascending numbers."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_RANGES]]
    return ", ".join([*named, "..."] if len(ranges) > _RANGES else named)
