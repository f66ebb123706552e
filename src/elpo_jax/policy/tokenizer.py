"""Text to token ids and back.

Token ids are the record of an episode and text is a view of them. SentencePiece models have to
keep it exactly: `decode(encode(s)) == s` for every Unicode text; the tokenizer of a checkpoint
(`hf_tokenizer`) may normalise it first. Text that the project did not write (questions, tool
output) is encoded without control tokens: `<|im_end|>` in a tool's answer stays text.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import sentencepiece

_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED_TOKENIZER = _FOLDER / "tokenizer.model"
# Others that ship with the package, by what `policy.tokenizer` calls them.
EMBEDDED = {f"embedded:{name}": _FOLDER / f"{name}.model" for name in ("code", "search")}

CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

_SPACE = "\u2581"  # what SentencePiece writes for a space, so a literal one needs its bytes
_SPACE_BYTES = tuple(f"<0x{byte:02X}>" for byte in _SPACE.encode())
_LITERAL_SPACE = re.compile(f"({_SPACE})")
# Between the '<' and the rest of a control string: cut there, no part holds one.
_INSIDE_CONTROL = re.compile(f"(?<=<)(?={'|'.join(re.escape(text[1:]) for text in CONTROL)})")
_PROBE = f"  a\tb  \n\n{_SPACE}\u00e9\U0001f600\x00 "


class Tokenizer(Protocol):
    """What chat, episodes and reports need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`; control tokens appear only with `allow_special`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of any ids; bytes that are not UTF-8 become U+FFFD."""
        ...

    def id_of(self, piece: str) -> int:
        """The id of one piece of the vocabulary."""
        ...


def tokenizer_file(setting: str) -> Path:
    """The file that a `policy.tokenizer` names; the embedded one if it is empty."""
    return EMBEDDED.get(setting) or (Path(setting) if setting else EMBEDDED_TOKENIZER)


def check_unicode(text: str) -> None:
    """Raises ValueError for a lone surrogate, which no UTF-8 text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text to encode: expected Unicode without lone surrogates, got "
            f"{text[error.start]!r} at {error.start}"
        ) from error


class SentencePieceTokenizer:
    """A lossless SentencePiece model: byte fallback, identity normalisation, no dummy prefix.

    SentencePiece itself never makes its control pieces of a text and shows none of them: `<s>`,
    `</s>` and others that a model may have are made and shown here, as `Tokenizer` asks.
    """

    def __init__(self, path: str | Path = EMBEDDED_TOKENIZER):
        """Loads a `.model` file.

        Raises:
          ValueError: when the file is no SentencePiece model, or one that changes text.
        """
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{path}: expected a readable SentencePiece model, got: {error}"
            ) from error
        self._ids = {self._model.id_to_piece(i): i for i in range(self.vocab_size)}
        self._control = {i: p for p, i in self._ids.items() if self._model.is_control(i)}
        longest_first = sorted(map(re.escape, self._control.values()), key=len, reverse=True)
        self._control_pieces = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        if "<0x00>" not in self._ids or self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                f"{path}: expected a model trained with byte_fallback, identity "
                f"normalisation, no dummy prefix and no whitespace removal, got one that changes "
                f"the text {_PROBE!r}"
            )

    @property
    def vocab_size(self) -> int:
        return int(self._model.vocab_size())

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`, exactly: `decode(encode(text)) == text`.

        Args:
          text: any Unicode text.
          allow_special: turn control strings into their tokens; only for text that the project
            or its templates wrote.

        Raises:
          ValueError: for a lone surrogate, which no UTF-8 text can hold.
        """
        check_unicode(text)
        if not allow_special:
            return [t for part in _INSIDE_CONTROL.split(text) for t in self._encode_part(part)]
        ids: list[int] = []
        for number, part in enumerate(self._control_pieces.split(text)):
            ids += [self._ids[part]] if number % 2 else self._encode_part(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of any ids, control pieces included; bytes that are not UTF-8 become U+FFFD."""
        return "".join(self._decoded(int(token) for token in ids))

    def id_of(self, piece: str) -> int:
        """The id of one piece of the vocabulary, spaces written as spaces.

        Raises:
          ValueError: when the vocabulary has no such piece.
        """
        token = self._ids.get(piece.replace(" ", _SPACE))
        if token is None:
            raise ValueError(
                f"tokenizer: expected a piece {piece!r} in the vocabulary of {self.vocab_size}"
            )
        return token

    def _decoded(self, ids: Iterator[int]) -> Iterator[str]:
        for is_control, run in groupby(ids, self._control.__contains__):
            if is_control:
                yield from (self._control[token] for token in run)
            else:
                yield str(self._model.decode(list(run)))

    def _encode_part(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _LITERAL_SPACE.split(text):
            if part == _SPACE:
                ids += [self._ids[byte] for byte in _SPACE_BYTES]
            else:
                ids += self._model.encode(part)
        return ids
