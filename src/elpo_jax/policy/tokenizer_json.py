"""A SentencePiece BPE model as the `tokenizers` library has it, so that transformers gives our ids.

What transformers makes of a `tokenizer.model` itself puts a space before texts and cuts the pieces
that hold spaces. Here spaces stay spaces in all pieces, so that a literal U+2581 is bytes as in
`SentencePieceTokenizer`, and user-defined pieces, which SentencePiece matches first and the longest
at each place, are added tokens, which are matched in the same way.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models

from elpo_jax.policy.tokenizer import SentencePieceTokenizer

_SPACE = "\u2581"
_MODEL: Any = getattr(sentencepiece_model_pb2, "ModelProto")  # noqa: B009, made at import
_PIECE = _MODEL.SentencePiece
_PROBES = 2000
_OTHER = (
    *("a", "Z", "7", " ", "  ", "\t", "\n", "\r\n", "\x00", _SPACE, "\u00e9", "e\u0301", "\u4e2d"),
    *("\U0001f600", "<0x41>", "<|", "|>", "</", "\ufeff", "\ufffd"),
)


class NotTheSameError(ValueError):
    """The library can't be made to give a model's ids."""


def same_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer that gives the ids of `SentencePieceTokenizer.encode(..., allow_special=True)`.

    Raises:
      NotTheSameError: with what it is about the model that the library has no counterpart of, or a
        text of which the ids differ.
    """
    proto = _MODEL()
    proto.ParseFromString(path.read_bytes())
    made = _converted(proto)
    ours = SentencePieceTokenizer(path)
    for text in _probes([_text(piece) for piece in proto.pieces]):
        expected = ours.encode(text, allow_special=True)
        got = made.encode(text, add_special_tokens=False).ids
        if got != expected:
            raise NotTheSameError(f"of {text!r:.80} it makes {got[:20]}, not {expected[:20]}")
        if made.decode(got, skip_special_tokens=False) != text:
            raise NotTheSameError(f"it doesn't give {text!r:.80} back")
    return made


def _converted(proto: Any) -> tokenizers.Tokenizer:
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise NotTheSameError("the model isn't BPE")
    if any(piece.type == _PIECE.UNUSED for piece in proto.pieces):
        raise NotTheSameError("the model has unused pieces")
    vocabulary = {_text(piece): token for token, piece in enumerate(proto.pieces)}
    model = models.BPE(vocab=vocabulary, merges=_merges(proto), byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    for kind, is_special in ((_PIECE.CONTROL, True), (_PIECE.USER_DEFINED, False)):
        texts = [_text(piece) for piece in proto.pieces if piece.type == kind]
        made.add_tokens([AddedToken(text, special=is_special, normalized=False) for text in texts])
    return made


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, those that are merged first first.

    SentencePiece merges whatever two neighbours make a piece, and of those that make the same
    piece the leftmost; the library knows pairs, each with a rank of its own. So two ways to make a
    piece of neighbours that overlap (aa + a, a + aa) would be told apart there.
    """
    normal = {_text(piece): piece.score for piece in proto.pieces if piece.type == _PIECE.NORMAL}
    scores = [score for text, score in normal.items() if len(text) > 1]
    if len(set(scores)) < len(scores):
        raise NotTheSameError("the model has pieces of equal scores")
    merges: list[tuple[str, str]] = []
    for text in sorted(normal, key=lambda text: -normal[text]):
        if not normal.keys() >= set(text):
            raise NotTheSameError(f"{text!r:.40} holds a character that is no piece")
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        pairs = [pair for pair in cuts if normal.keys() >= set(pair)]
        if any(one[1] == two[0] for one in pairs for two in pairs if one != two):
            raise NotTheSameError(f"neighbours that overlap make the same {text!r:.40}")
        merges += pairs
    return merges


def _text(piece: Any) -> str:
    return str(piece.piece).replace(_SPACE, " ")


def _probes(pieces: list[str]) -> Iterator[str]:
    """Texts of a model's pieces and of other characters, always the same."""
    yield from pieces
    drawing = random.Random(0)
    for _ in range(_PROBES):
        sources = drawing.choices((pieces, _OTHER), (2, 1), k=drawing.randint(2, 12))
        yield "".join(map(drawing.choice, sources))
