"""What a checkpoint's folder says beside its SentencePiece model: special tokens, chat templates.

As transformers reads it: templates in files go before those in `tokenizer_config.json`, and special
tokens in `special_tokens_map.json` before those where that file has no `added_tokens_decoder`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.policy.checkpoint_folder import (
    CONFIG,
    GENERATION,
    MORE_TEMPLATES,
    SENTENCE_PIECE,
    TEMPLATE,
)
from elpo_jax.policy.tokenizer import Tokenizer


class TokenizerSettings(NamedTuple):
    """What templates need.

    Attributes:
      templates: chat templates by name; 'default' where there is one only.
      special_tokens: by the names that templates know them by: bos_token, eos_token ...
    """

    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of a folder; empty ones where it has no such files.

    Raises:
      ValueError: a file can't be read, or holds something else.
    """
    config = _json(folder / "tokenizer_config.json")
    tokens = dict(config)
    if "added_tokens_decoder" not in config:
        tokens |= _json(folder / "special_tokens_map.json")
    special = {
        name: text
        for name, token in tokens.items()
        if name.endswith("_token") and (text := _text(token)) is not None
    }
    files = {"default": folder / TEMPLATE}
    files |= {path.stem: path for path in sorted(folder.glob(MORE_TEMPLATES))}
    templates = {name: _read(path) for name, path in files.items() if path.exists()}
    return TokenizerSettings(templates or _templates(folder, config), special)


def end_ids(checkpoint: str) -> list[int]:
    """The ids at which transformers ends what a policy writes; none without a checkpoint.

    Those of `generation_config.json`, else those of `config.json`.

    Raises:
      ValueError: a file can't be read, or they aren't ids.
    """
    if not checkpoint:
        return []
    for name in (GENERATION, CONFIG):
        found = _json(Path(checkpoint) / name).get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if any(type(token) is not int or not 0 <= token < 2**31 for token in ids):
            where = f"{Path(checkpoint) / name}: eos_token_id"
            raise ValueError(f"{where}: expected an id, or a list of ids, got {found!r:.80}")
        return ids
    return []


def choose_template(templates: Mapping[str, str], with_tools: bool, folder: Path) -> str:
    """The chat template: the one named 'tool_use' with tools, where there are several.

    Raises:
      ValueError: there is none of these names.
    """
    names = ("tool_use", "default") if with_tools else ("default",)
    for name in names:
        if name in templates:
            return templates[name]
    expected = f"{folder}: expected a chat template ({TEMPLATE}, or in tokenizer_config.json)"
    if not templates:
        raise ValueError(f"{expected}, found none")
    raise ValueError(f"{expected} named {' or '.join(names)}, got {', '.join(sorted(templates))}")


def check_special_tokens(
    template: str, special_tokens: Mapping[str, str], tokenizer: Tokenizer
) -> None:
    """Raises ValueError unless those that the template reads are pieces of the model."""
    for name, text in special_tokens.items():
        if re.search(rf"\b{name}\b", template) and piece_id(tokenizer, text) is None:
            raise ValueError(
                f"chat template: reads {name}, {text!r} by the checkpoint's files: expected a "
                "piece of the SentencePiece model, found none"
            )


def check_added_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless the tokens that the folder's files add are pieces of its model."""
    for file, text, token in _added(folder):
        found = piece_id(tokenizer, text)
        if found is None or token not in (None, found):
            with_id = "" if token is None else f" with id {token!r}"
            raise ValueError(
                f"{folder / file}: expected no tokens besides the pieces of the SentencePiece "
                f"model beside it, got the added token {text!r}{with_id}, which is "
                f"{'no piece' if found is None else f'piece {found}'}; "
                f"policy.tokenizer={folder / SENTENCE_PIECE} goes without added tokens"
            )


def piece_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of a text that is one piece; None: it isn't."""
    try:
        return tokenizer.id_of(text)
    except ValueError:
        return None


def _added(folder: Path) -> Iterator[tuple[str, str, Any]]:
    """(file, text, id) of the tokens that the folder adds; id None: transformers takes a free one.

    transformers 5 writes them to `tokenizer.json` alone, and leaves a `tokenizer.model` that lies
    beside it as it was.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        config = _json(folder / file)
        for key, token in _items(config, "added_tokens_decoder", folder / file):
            yield file, token, int(key) if str(key).isdecimal() else key
        for name in ("additional_special_tokens", "extra_special_tokens"):
            for _, token in _items(config, name, folder / file):
                yield file, token, None
    for text, number in _json(folder / "added_tokens.json").items():
        yield "added_tokens.json", text, number
    whole = _json(folder / "tokenizer.json")
    for number, token in _items(whole, "added_tokens", folder / "tokenizer.json"):
        yield "tokenizer.json", token, number


def _items(config: Mapping[str, Any], name: str, path: Path) -> Iterator[tuple[Any, str]]:
    """(key or id, text) of tokens in an object or a list."""
    found = config.get(name) or []
    if not isinstance(found, Mapping | list):
        raise ValueError(f"{path}: {name}: expected a list or an object, got {found!r:.80}")
    pairs = found.items() if isinstance(found, Mapping) else ((None, token) for token in found)
    for key, token in pairs:
        text = _text(token)
        if text is None:
            raise ValueError(f"{path}: {name}: expected tokens, got {token!r:.80}")
        yield (token.get("id") if key is None and isinstance(token, Mapping) else key), text


def _text(token: Any) -> str | None:
    """A token's text, be it alone or in an object."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates in `tokenizer_config.json`: one, or a list of {name, template}."""
    found = config.get("chat_template")
    if not found:
        return {}
    if isinstance(found, str):
        return {"default": found}
    try:
        return {str(each["name"]): str(each["template"]) for each in found}
    except (TypeError, KeyError):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: chat_template: expected a text, or a list of "
            f"objects with name and template, got {found!r:.80}"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """An object; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text to read, got: {error}") from error
