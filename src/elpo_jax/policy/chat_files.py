"""The tokenizer and the chat that a config asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.policy.checkpoint_folder import SENTENCE_PIECE, TEMPLATE, TOKENIZER
from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer
from elpo_jax.policy.tokenizer import (
    EMBEDDED,
    SentencePieceTokenizer,
    Tokenizer,
    tokenizer_file,
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
        )
    except ValueError as error:
        raise UsageError([f"{key}: {error}"]) from error


def chat_files(policy: PolicyConfig) -> list[Path]:
    """The user's files that decide on ids, in order."""
    is_own = policy.tokenizer and policy.tokenizer not in EMBEDDED
    files = [Path(policy.tokenizer)] if is_own else []
    if policy.checkpoint:
        folder = Path(policy.checkpoint)
        files += sorted(file for pattern in TOKENIZER for file in folder.glob(pattern))
    return files


def _parts(policy: PolicyConfig, with_tools: bool) -> tuple[Tokenizer, str, Mapping[str, str]]:
    """Tokenizer, template and the template's variables."""
    folder = Path(policy.checkpoint) if policy.checkpoint else None
    if policy.tokenizer:
        tokenizer = SentencePieceTokenizer(tokenizer_file(policy.tokenizer))
        has_own = folder is not None and (folder / TEMPLATE).exists()
        return tokenizer, _read(folder if has_own else None), {}
    if folder is None:
        return SentencePieceTokenizer(), _read(None), {}
    model = folder / SENTENCE_PIECE
    if model.exists() and not (folder / "tokenizer.json").exists():
        return SentencePieceTokenizer(model), _read(folder), {}
    loaded = HuggingFaceTokenizer(folder)
    return loaded, loaded.template(with_tools), loaded.special_tokens


def _read(folder: Path | None) -> str:
    """The template of a folder, or the embedded one."""
    path = folder / TEMPLATE if folder else EMBEDDED_TEMPLATE
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a chat template, got: {error}") from error
