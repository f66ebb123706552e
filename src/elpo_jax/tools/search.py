"""Search in a corpus by BM25: the passages that have the rarest words of a query in common with it.

The index is built once for a corpus and kept in the cache.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from elpo_jax.tools.base import Observation
from elpo_jax.workdir import cache_entry, cache_root

MAX_RESULTS = 10
MAX_QUERY = 1000  # characters
_WORD = re.compile(r"[^\W_]+(?:\.\d+)*")  # a number is one word: 7.874
_FORMAT = 1  # of what is cached
_DIGESTS = "digests.json"


class Search:
    """The tool `search(query, k?)`. Stateless, and safe on several threads.

    Results are passages of a line each, best first; of equal ones that which comes first in the
    corpus. Case doesn't count, nor how often a query has a word.

    Args:
      passages: what is found.
      cache: the folder of indexes; None: the index isn't kept.
      description: what the policy is told of the tool.
      results: how many passages there are if a call doesn't say.

    Raises:
      ValueError: there is no passage with a word in it.
    """

    name = "search"

    def __init__(
        self,
        passages: Sequence[str],
        cache: Path | None,
        description: str = "Finds passages that have words of the query.",
        results: int = 3,
    ):
        self._passages = passages
        self._description = description
        self._results = results
        self._index = _load_or_build(passages, cache)

    @property
    def schema(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "description": self._description,
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "k": {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS},
                },
                "required": ["query"],
            },
        }

    def initial_state(self) -> None:
        return None

    def call(self, state: None, arguments: Mapping[str, Any]) -> tuple[None, Observation]:
        """Passages, 'no results', or a 'tool_error' for a query that is too long or has no word."""
        query = arguments["query"]
        if len(query) > MAX_QUERY:
            return state, _error(f"query longer than {MAX_QUERY} characters")
        words = words_of(query)
        if not words:
            return state, _error("no word in the query")
        best = self.best(words, arguments.get("k", self._results))
        found = [self._passages[number] for number in best]
        return state, Observation("\n".join(found) or "no results")

    def best(self, words: Sequence[str], count: int) -> list[int]:
        """Numbers of the best passages, those without any of the words left out."""
        known = self._index.get_tokens_ids(sorted(set(words)))
        if not known:
            return []
        scores = self._index.get_scores_from_ids(known)
        hits = np.flatnonzero(scores > 0)
        if len(hits) > count:  # those that tie with the last one stay
            least = np.partition(scores[hits], -count)[-count]
            hits = hits[scores[hits] >= least]
        order = np.argsort(-scores[hits], kind="stable")[:count]
        return [int(number) for number in hits[order]]


def index_folder() -> Path:
    """Where indexes are kept."""
    return cache_root() / "search"


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.casefold())


def _error(message: str) -> Observation:
    return Observation(f"error: {message}", error="tool_error")


def _load_or_build(passages: Sequence[str], cache: Path | None) -> Any:
    """The index from the cache, or a new one, which is put there if that can be done."""
    if cache is None:
        return _build(passages)
    corpus = json.dumps(list(passages), ensure_ascii=True).encode()
    key = f"{version('bm25s')} {_FORMAT} {hashlib.sha256(corpus).hexdigest()}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:24]
    index = _load(folder)
    if index is None:
        index = _build(passages)
        _store(folder, index)
    return index


def _build(passages: Sequence[str]) -> Any:
    # Imported here because most runs don't search, and it runs a JAX operation.
    import bm25s

    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words_of(passage)]
        for passage in passages
    ]
    if not vocabulary:
        raise ValueError("search: expected a passage with a word in it, got none")
    index = bm25s.BM25(backend="numpy", csc_backend="numpy")
    index.index((ids, vocabulary), show_progress=False)
    return index


def _load(folder: Path) -> Any:
    """A kept index; None if there is none, or it is damaged, which removes it."""
    import bm25s

    with suppress(OSError, ValueError):
        if json.loads((folder / _DIGESTS).read_text()) == _digests(folder):
            return bm25s.BM25.load(folder, show_progress=False)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _store(folder: Path, index: Any) -> None:
    """Keeps an index, all at once. A cache that can't be written costs only time."""
    with suppress(OSError), cache_entry(folder) as temporary:
        index.save(temporary, show_progress=False)
        (temporary / _DIGESTS).write_text(json.dumps(_digests(temporary)))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.name != _DIGESTS)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
