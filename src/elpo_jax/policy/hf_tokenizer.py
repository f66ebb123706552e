"""The tokenizer of a checkpoint in a Hugging Face folder.

Only byte-level BPE, as Qwen's and Llama-3's: such a tokenizer knows every text, and the ids of two
texts one after the other are those of a text again. It may normalise what it is given (Qwen:
Unicode's NFC), so text comes back exactly only where it is in that form already.

Text that the project didn't write is encoded by a copy of the tokenizer that has no added tokens.
That leaves out `<tool_call>` and the like too, which are added but not marked as special.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from elpo_jax.policy.checkpoint_folder import SENTENCE_PIECE
from elpo_jax.policy.template import quiet_import
from elpo_jax.policy.tokenizer import check_unicode
from elpo_jax.policy.tokenizer_settings import choose_template

TOKENIZER_JSON = "tokenizer.json"
_JSON = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_ABOUT_CONFIG = ("configuration_utils", "modeling_rope_utils")

# Every ASCII character and some beyond, in NFC. Twice in a row it shows whether a space is put
# before a text, or taken from its end.
_PROBE = f"a{''.join(map(chr, range(128)))}\u00e9\u4e2d\U0001f600 "


class HuggingFaceTokenizer:
    """A byte-level BPE tokenizer with its chat template.

    Attributes:
      special_tokens: by the names that templates know them by: bos_token, eos_token ...
    """

    def __init__(self, folder: str | Path):
        """Loads a folder's tokenizer; nothing is fetched from anywhere.

        Raises:
          ValueError: when the folder holds no tokenizer that can be used.
        """
        self._folder = Path(folder)
        loaded = _load(self._folder)
        self.special_tokens: dict[str, str] = {
            name: str(token)
            for name, token in loaded.special_tokens_map.items()
            if isinstance(token, str)
        }
        self._templates: Mapping[str, str] = _templates(loaded.chat_template)
        self._full: tokenizers.Tokenizer = loaded.backend_tokenizer
        self._full.no_padding()
        self._full.no_truncation()
        self._added = {
            token: added.content for token, added in self._full.get_added_tokens_decoder().items()
        }
        self._plain = _without_added_tokens(self._full, self._added, self._folder)
        self._vocab_size = 1 + max(self._full.get_vocab(with_added_tokens=True).values())
        self._check()

    @property
    def vocab_size(self) -> int:
        """The highest id, added tokens included, and one; the model may have more ids."""
        return self._vocab_size

    def template(self, with_tools: bool) -> str:
        """The chat template: the one named 'tool_use' with tools, where there are several.

        Raises:
          ValueError: the folder has none.
        """
        return choose_template(self._templates, with_tools, self._folder)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`, without a BOS: templates write it.

        Args:
          text: any Unicode text.
          allow_special: turn the strings of added tokens into their tokens; only for text that
            the project or its templates wrote.

        Raises:
          ValueError: for a lone surrogate, which no UTF-8 text can hold.
        """
        check_unicode(text)
        backend = self._full if allow_special else self._plain
        return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of any ids, added tokens included; bytes that are not UTF-8 become U+FFFD."""
        return "".join(self._decoded(int(token) for token in ids))

    def id_of(self, piece: str) -> int:
        """The id of a text that is one token.

        Raises:
          ValueError: it is none or several.
        """
        ids = self.encode(piece, allow_special=True)
        if len(ids) != 1:
            raise ValueError(
                f"tokenizer: expected {piece!r} to be one token of the vocabulary of "
                f"{self.vocab_size}, got {len(ids)}"
            )
        return ids[0]

    def _decoded(self, ids: Iterator[int]) -> Iterator[str]:
        for is_added, run in groupby(ids, self._added.__contains__):
            if is_added:
                yield from (self._added[token] for token in run)
            else:
                yield self._plain.decode(list(run), skip_special_tokens=False)

    def _check(self) -> None:
        """Raises ValueError for a tokenizer that changes text, or can't keep text apart."""
        twice = self.decode(2 * self.encode(_PROBE))
        if twice != 2 * _PROBE:
            raise ValueError(
                f"{self._folder}: expected a byte-level BPE tokenizer as Qwen's and Llama-3's, "
                f"got one that makes {twice!r:.80} of {2 * _PROBE!r:.80}"
            )
        for content in self._added.values():
            if not self._added.keys().isdisjoint(self.encode(content)):
                raise ValueError(
                    f"{self._folder}: expected that text can be kept apart from added tokens, got "
                    f"{content!r} that can't"
                )


def _load(folder: Path) -> Any:
    """The folder's tokenizer as transformers reads it."""
    _check_files(folder)
    with quiet_import():
        from transformers import AutoTokenizer
    try:
        with _quiet_about_config():
            loaded = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever its many loaders raise
        line = " ".join(f"{error}".split()) or type(error).__name__
        raise ValueError(
            f"{folder}: expected a tokenizer that transformers can read, got: {line:.300}"
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise ValueError(
            f"{folder}: expected a tokenizer with a tokenizer.json, got the slow "
            f"{type(loaded).__name__}"
        )
    return loaded


def _check_files(folder: Path) -> None:
    """Says of missing and broken files, in our words, what transformers says in many ways."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a tokenizer, got none")
    names = [name for name in _JSON if (folder / name).exists()]
    for name in names:
        try:
            content = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{folder / name}: expected JSON, got: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{folder / name}: expected an object, got {type(content).__name__}")
        if name == TOKENIZER_JSON and not {"model", "added_tokens"} <= content.keys():
            raise ValueError(
                f"{folder / name}: expected a tokenizer, with 'model' and 'added_tokens', got the "
                f"keys {sorted(content)}"
            )
    is_split = "vocab.json" in names and (folder / "merges.txt").exists()
    if TOKENIZER_JSON not in names and not is_split:
        raise ValueError(
            f"{folder}: expected a tokenizer: {TOKENIZER_JSON}, or vocab.json and merges.txt, or "
            f"SentencePiece's {SENTENCE_PIECE}; found none of them"
        )


@contextlib.contextmanager
def _quiet_about_config() -> Iterator[None]:
    """The loader reads config.json too, and logs what it thinks of it; `families` judges that."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in _ABOUT_CONFIG]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _templates(found: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if not found:
        return {}
    return {"default": found} if isinstance(found, str) else dict(found)


def _without_added_tokens(
    full: tokenizers.Tokenizer, added: Mapping[int, str], folder: Path
) -> tokenizers.Tokenizer:
    """A copy that knows no added token, neither as such nor as a word of its vocabulary."""
    parts = json.loads(full.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise ValueError(
            f"{folder}: expected a byte-level BPE tokenizer as Qwen's and Llama-3's, got "
            f"{model['type']}"
        )
    vocabulary = {word: token for word, token in model["vocab"].items() if token not in added}
    parts |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    parts["model"] = {**model, "vocab": vocabulary, "unk_token": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(parts))
    except Exception as error:  # tokenizers raises nothing narrower
        line = re.sub(r"\s+", " ", f"{error}")
        raise ValueError(
            f"{folder}: expected added tokens that no merge of its BPE makes, got: {line:.200}"
        ) from error
