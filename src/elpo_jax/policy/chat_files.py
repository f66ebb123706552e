"""The tokenizer and the chat that a config asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.policy.checkpoint_folder import SENTENCE_PIECE, TOKENIZER
from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer
from elpo_jax.policy.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    tokenizer_file,
)
from elpo_jax.policy.tokenizer_settings import (
    check_added_tokens,
    check_special_tokens,
    choose_template,
    end_ids,
    read_settings,
)


def make_chat(policy: PolicyConfig, tools: Sequence[Mapping[str, Any]]) -> Chat:
    """The chat with its tokenizer: `policy.tokenizer`'s, else the checkpoint's, else the embedded.

    Args:
      policy: the config's section.
      tools: function schemas for the system turn.

    Raises:
      UsageError: the tokenizer or the chat template can't be read or used, or doesn't read an
        option.
    """
    key = "policy.checkpoint" if policy.checkpoint and not policy.tokenizer else "policy.tokenizer"
    try:
        tokenizer, template, variables = _parts(policy, bool(tools))
        return Chat(
            tokenizer,
            template,
            tools,
            variables=variables,
            thinking=policy.thinking,
            earlier_turns=policy.earlier_turns,
            # Those of a checkpoint are its own tokenizer's.
            other_ends=() if policy.tokenizer else end_ids(policy.checkpoint),
        )
    except ValueError as error:
        raise UsageError([f"{key}: {error}"]) from error


def chat_files(policy: PolicyConfig) -> list[Path]:
    """The files that decide on ids, but for the ones that every policy falls back on, in order."""
    files = [tokenizer_file(policy.tokenizer)] if policy.tokenizer else []
    if policy.checkpoint:
        folder = Path(policy.checkpoint)
        files += sorted(file for pattern in TOKENIZER for file in folder.glob(pattern))
    return files


def own_sentence_piece(folder: Path) -> SentencePieceTokenizer | None:
    """The folder's SentencePiece model, unless transformers' tokenizer.json is the one to read.

    Policies that started from scratch are exported with both, and give the same ids with both.
    Beside a byte-level `tokenizer.json` a `tokenizer.model` is another library's, or changes text.

    Raises:
      ValueError: the model can't be used, and there is nothing else.
    """
    model = folder / SENTENCE_PIECE
    if not model.exists():
        return None
    try:
        return SentencePieceTokenizer(model)
    except ValueError:
        if (folder / "tokenizer.json").exists():
            return None
        raise


def _parts(policy: PolicyConfig, with_tools: bool) -> tuple[Tokenizer, str, Mapping[str, str]]:
    """Tokenizer, template and the template's variables."""
    folder = Path(policy.checkpoint) if policy.checkpoint else None
    if policy.tokenizer:
        tokenizer = SentencePieceTokenizer(tokenizer_file(policy.tokenizer))
        if folder is None or not read_settings(folder).templates:
            return tokenizer, EMBEDDED_TEMPLATE.read_text(encoding="utf-8"), {}
        return tokenizer, *_template_beside(tokenizer, folder, with_tools)
    if folder is None:
        return SentencePieceTokenizer(), EMBEDDED_TEMPLATE.read_text(encoding="utf-8"), {}
    own = own_sentence_piece(folder)
    if own is not None:
        check_added_tokens(folder, own)
        return own, *_template_beside(own, folder, with_tools)
    loaded = HuggingFaceTokenizer(folder)
    return loaded, loaded.template(with_tools), loaded.special_tokens


def _template_beside(
    tokenizer: SentencePieceTokenizer, folder: Path, with_tools: bool
) -> tuple[str, Mapping[str, str]]:
    """The folder's template and special tokens, for a SentencePiece model."""
    settings = read_settings(folder)
    template = choose_template(settings.templates, with_tools, folder)
    check_special_tokens(template, settings.special_tokens, tokenizer)
    return template, settings.special_tokens
