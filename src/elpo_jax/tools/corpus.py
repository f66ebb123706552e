"""A corpus to search: rows {id?, title?, text} of a file, cut into passages."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from elpo_jax.errors import UsageError
from elpo_jax.tasks.rows import Row, check_unicode, convert, read_content, shown, text_of

MAX_PASSAGE = 500  # characters, its title included
_MAX_TITLE = 100


class Corpus(NamedTuple):
    """Passages in order, the file's SHA-256, and lines for the user on its rows."""

    passages: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]


def read_corpus(path: str, key: str) -> Corpus:
    """Reads a corpus.

    Args:
      path: JSON lines, a JSON list or Parquet, as `rows.convert` tells them apart.
      key: the setting that names it.

    Raises:
      UsageError: the file can't be read, or has no row that can be used.
    """
    content, digest = read_content(Path(path), key)
    try:
        rows = convert(content, path, _row)
    except ValueError as error:
        raise UsageError([f"{key}: {path}: {error}"]) from None
    named = rows.named(path)
    if not rows.good:
        raise UsageError([f"{key}: {path}: expected a row with a text, got none", *named])
    passages = tuple(passage for _, made in rows.good for passage in made)
    counts = f"texts: {len(rows.good)}, passages: {len(passages)}, bad rows: {len(rows.bad)}"
    return Corpus(passages, digest, (*named, f"{key}: {path}: {counts}"))


def passages_of(title: str, text: str, limit: int = MAX_PASSAGE) -> list[str]:
    """A text as passages of a line each: 'title: words', cut between words where it is longer than
    `limit` characters; a word that is longer is cut too."""
    head = " ".join(title.split())[:_MAX_TITLE]
    head = f"{head}: " if head else ""
    return [head + part for part in _parts(text.split(), limit - len(head))]


def _row(row: Row) -> Sequence[str]:
    """The passages of a row."""
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise ValueError(f"title: expected a text, got {shown(title)}")
    check_unicode("title", title)
    return passages_of(title, text_of(row, "text"))


def _parts(words: Sequence[str], limit: int) -> Iterator[str]:
    line = ""
    for word in words:
        while len(line) + len(word) + bool(line) > limit:
            if line:
                yield line
                line = ""
            else:
                yield word[:limit]
                word = word[limit:]
        if word:
            line = f"{line} {word}" if line else word
    if line:
        yield line
