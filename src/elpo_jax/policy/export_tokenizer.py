"""A SentencePiece tokenizer into an exported folder, for this package and for transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import PolicyConfig
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import make_chat, own_sentence_piece
from elpo_jax.policy.chat_layout import AS_SAMPLED
from elpo_jax.policy.checkpoint_folder import (
    GENERATION,
    MORE_TEMPLATES,
    SENTENCE_PIECE,
    TEMPLATE,
    TOKENIZER,
    carry_over,
    copy_file,
)
from elpo_jax.policy.families import read_config
from elpo_jax.policy.tokenizer import Tokenizer
from elpo_jax.policy.tokenizer_json import NotTheSameError, same_tokenizer
from elpo_jax.policy.tokenizer_settings import (
    TokenizerSettings,
    end_ids,
    piece_id,
    read_settings,
)

TOKENIZER_CONFIG = "tokenizer_config.json"
# It takes tokenizer.json as it stands.
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
_KEPT = ("chat_template", "model_max_length", "padding_side", "truncation_side")
_TOKENS = ("added_tokens.json", "special_tokens_map.json")


class Written(NamedTuple):
    """What came of it.

    Attributes:
      end_of_turn: the id at which answers end.
      notes: lines for the user.
    """

    end_of_turn: int
    notes: list[str]


def write_tokenizer(folder: Path, tokenizer: Path, source: Path | None) -> Written:
    """Writes the model, what transformers needs to give its ids, and the chat template.

    Where transformers can't be made to give the same ids, that is a note, and there is no
    tokenizer.json.

    Args:
      folder: the export's.
      tokenizer: the SentencePiece file.
      source: the checkpoint whose chat template the run used; None, or one without: the embedded.

    Raises:
      UsageError: the tokenizer and the template don't fit each other.
      OSError: a file can't be written.
    """
    policy = PolicyConfig(
        checkpoint=str(source or ""), tokenizer=str(tokenizer), earlier_turns=AS_SAMPLED
    )
    chat = make_chat(policy, ())
    copy_file(tokenizer, folder / SENTENCE_PIECE)
    settings = TokenizerSettings({}, {}) if source is None else read_settings(source)
    if not settings.templates:
        settings = TokenizerSettings({"default": EMBEDDED_TEMPLATE.read_text("utf-8")}, {})
    for name, text in settings.templates.items():
        path = folder / (TEMPLATE if name == "default" else MORE_TEMPLATES.replace("*", name))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    end = chat.tokenizer.decode([chat.end_of_turn])
    config = {**_CLASS, **_pieces(settings, chat.tokenizer), "eos_token": end}
    write_json(folder / TOKENIZER_CONFIG, config)
    return Written(chat.end_of_turn, _write_same(folder, tokenizer))


def carry_tokenizer(folder: Path, source: Path) -> list[str]:
    """Carries the source's tokenizer and chat templates over.

    Where that is a SentencePiece model, transformers gets what gives the same ids in place of what
    lies beside it in the source; where there is nothing that does, the source's files stay as they
    are, with a note.

    Args:
      folder: the export's.
      source: the checkpoint.

    Returns:
      Lines for the user.

    Raises:
      ValueError: the source's files can't be read.
    """
    carry_over(source, folder, TOKENIZER)
    tokenizer = own_sentence_piece(source)
    if tokenizer is None:
        return []
    notes = _write_same(folder, source / SENTENCE_PIECE)
    if not notes:
        path = source / TOKENIZER_CONFIG
        config = json.loads(path.read_bytes()) if path.exists() else {}
        kept = {name: config[name] for name in _KEPT if name in config}
        write_json(folder / path.name, kept | _CLASS | _pieces(read_settings(source), tokenizer))
        for name in _TOKENS:  # what they say of tokens is in the two files that were written
            (folder / name).unlink(missing_ok=True)
    return notes


def _pieces(settings: TokenizerSettings, tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that the model has."""
    tokens = settings.special_tokens.items()
    return {name: text for name, text in tokens if piece_id(tokenizer, text) is not None}


def _write_same(folder: Path, tokenizer: Path) -> list[str]:
    """Writes the `tokenizer.json` with the model's ids; a note where there is no such."""
    try:
        same_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    except NotTheSameError as error:
        return [
            f"warning: {tokenizer}: transformers can't be made to give the ids of this tokenizer "
            f"({error}); the policy's ids are those of {SENTENCE_PIECE} as this package reads it"
        ]
    return []


def write_generation(folder: Path, source: Path | None, end_of_turn: int) -> None:
    """Writes `generation_config.json`: the source's, with the ids of another tokenizer.

    Raises:
      ValueError: the source's is no JSON object.
    """
    config = _generation(source) if source is not None else None
    write_json(folder / GENERATION, with_ids(config or {}, end_of_turn))


def carry_generation(folder: Path, source: Path, end_of_turn: int | None) -> list[str]:
    """Carries the source's `generation_config.json` over; an end of turn that it lacks is added.

    Where there is none, transformers goes by the ids in `config.json`, and so does what is written.

    Args:
      folder: the export's.
      source: the checkpoint.
      end_of_turn: the id at which the policy's turns end; None: nothing is added.

    Returns:
      Lines for the user.

    Raises:
      ValueError: a file of the source is no JSON object, or its ends aren't ids.
    """
    if end_of_turn is None:
        carry_over(source, folder, (GENERATION,))
        return []
    ends = end_ids(str(source))
    config = _generation(source)
    if end_of_turn in ends and (config is None or config.get("eos_token_id") is not None):
        carry_over(source, folder, (GENERATION,))
        return []
    if config is None:
        ids = read_config(source).items()
        config = {k: v for k, v in ids if k.endswith("_token_id") and v is not None}
    all_ends = list(dict.fromkeys([end_of_turn, *ends]))
    write_json(folder / GENERATION, config | {"eos_token_id": all_ends})
    return [
        f"{GENERATION}: eos_token_id is {all_ends}: the chat template's turns end at "
        f"{end_of_turn}, where the checkpoint's generation settings don't stop"
    ]


def _generation(source: Path) -> dict[str, Any] | None:
    """The source's `generation_config.json`; None: it has none."""
    path = source / GENERATION
    if not path.exists():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def with_ids(config: Mapping[str, Any], end_of_turn: int) -> dict[str, Any]:
    """A config without the ids of its own tokenizer's special tokens, and with this one."""
    kept = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    return kept | {"eos_token_id": end_of_turn}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
