"""A SentencePiece tokenizer into an exported folder, for this package and for transformers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import PolicyConfig
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.policy.chat_layout import AS_SAMPLED
from elpo_jax.policy.checkpoint_folder import (
    GENERATION,
    MORE_TEMPLATES,
    SENTENCE_PIECE,
    TEMPLATE,
    carry_over,
)
from elpo_jax.policy.families import read_config
from elpo_jax.policy.tokenizer_json import NotTheSameError, same_tokenizer
from elpo_jax.policy.tokenizer_settings import (
    TokenizerSettings,
    end_ids,
    piece_id,
    read_settings,
)


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
    shutil.copyfile(tokenizer, folder / SENTENCE_PIECE)
    settings = TokenizerSettings({}, {}) if source is None else read_settings(source)
    if not settings.templates:
        settings = TokenizerSettings({"default": EMBEDDED_TEMPLATE.read_text("utf-8")}, {})
    for name, text in settings.templates.items():
        path = folder / (TEMPLATE if name == "default" else MORE_TEMPLATES.replace("*", name))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    pieces = {
        name: text
        for name, text in settings.special_tokens.items()
        if piece_id(chat.tokenizer, text) is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **pieces,
        "eos_token": chat.tokenizer.decode([chat.end_of_turn]),
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    try:
        same_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    except NotTheSameError as error:
        note = (
            f"warning: {tokenizer}: transformers can't be made to give the ids of this tokenizer "
            f"({error}); the policy's ids are those of {SENTENCE_PIECE} as this package reads it"
        )
        return Written(chat.end_of_turn, [note])
    return Written(chat.end_of_turn, [])


def write_generation(folder: Path, source: Path | None, end_of_turn: int) -> None:
    """Writes `generation_config.json`: the source's, with the ids of another tokenizer.

    Raises:
      ValueError: the source's is no JSON object.
    """
    config = _generation(source) if source is not None else None
    write_json(folder / GENERATION, with_ids(config or {}, end_of_turn))


def carry_generation(folder: Path, source: Path, end_of_turn: int) -> list[str]:
    """Carries the source's `generation_config.json` over; an end of turn that it lacks is added.

    Where there is none, transformers goes by the ids in `config.json`, and so does what is written.

    Args:
      folder: the export's.
      source: the checkpoint.
      end_of_turn: the id at which the policy's turns end.

    Returns:
      Lines for the user.

    Raises:
      ValueError: a file of the source is no JSON object, or its ends aren't ids.
    """
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
