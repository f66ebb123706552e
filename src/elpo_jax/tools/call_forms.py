"""How chat templates write a tool call in an assistant turn: a table of forms.

hermes, of Qwen's and many others:

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>

Text may come before the call, after it only further calls and whitespace, so that a policy can't
write the answer to its own call.

llama3, where the call is the whole turn:

    {"name": "...", "parameters": {...}}

perhaps behind `<|python_tag|>`, which templates of the form llama3_tag write. Text before it makes
the turn an answer, and there is one call a turn.

Nothing is repaired: what is wrong with a call raises.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from elpo_jax.rollout.tree import ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
PYTHON_TAG = "<|python_tag|>"

# The first key tells a call from an answer that is JSON too.
_LLAMA3_CALL = re.compile(rf'\s*(?:{re.escape(PYTHON_TAG)}|(?=\{{\s*"(?:name|parameters)"))')


@dataclass(frozen=True)
class CallForm:
    """One form.

    Attributes:
      name: its key in the table.
      find: the text from the first call's JSON object on in a turn's text; None when the turn makes
        no call.
      read: the first call in that text, and the text from the next call's JSON object on; None
        when there is none. Raises ValueError (json.JSONDecodeError where it is no JSON) or
        RecursionError for a malformed one.
      write: the text of a call of a name with arguments, as a template writes it.
    """

    name: str
    find: Callable[[str], str | None]
    read: Callable[[str], tuple[ToolCall, str | None]]
    write: Callable[[str, Mapping[str, Any]], str]


def _find_hermes(text: str) -> str | None:
    _, opened, rest = text.partition(OPEN)
    return rest if opened else None


def _read_hermes(text: str) -> tuple[ToolCall, str | None]:
    value, rest = _decode(text)
    if not rest.startswith(CLOSE):
        raise ValueError(f"expected {CLOSE} after the JSON object")
    after = rest[len(CLOSE) :].strip()
    if after and not after.startswith(OPEN):
        raise ValueError(f"expected the turn to end after {CLOSE}")
    return _call(value, "arguments"), after.removeprefix(OPEN) if after else None


def _write_hermes(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{OPEN}\n{_object(name, 'arguments', arguments)}\n{CLOSE}"


def _find_llama3(text: str) -> str | None:
    mark = _LLAMA3_CALL.match(text)
    return text[mark.end() :] if mark else None


def _read_llama3(text: str) -> tuple[ToolCall, str | None]:
    value, rest = _decode(text)
    if rest:
        raise ValueError("expected the turn to end after the JSON object")
    return _call(value, "parameters"), None


def _write_llama3(name: str, arguments: Mapping[str, Any]) -> str:
    return _object(name, "parameters", arguments)


def _write_llama3_tag(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{PYTHON_TAG}{_write_llama3(name, arguments)}"


HERMES = CallForm("hermes", _find_hermes, _read_hermes, _write_hermes)
LLAMA3 = CallForm("llama3", _find_llama3, _read_llama3, _write_llama3)
LLAMA3_TAG = CallForm("llama3_tag", _find_llama3, _read_llama3, _write_llama3_tag)
FORMS: Mapping[str, CallForm] = {form.name: form for form in (HERMES, LLAMA3, LLAMA3_TAG)}


def _object(name: str, key: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def _decode(text: str) -> tuple[Any, str]:
    """The first JSON value of a text, and what follows it."""
    body = text.lstrip()
    # The decoder finds where the object ends, so a string in it may hold the closing tag.
    # strict=False: code in a string may hold raw newlines and tabs.
    decoder = json.JSONDecoder(
        strict=False, parse_constant=_reject_constant, object_pairs_hook=_unambiguous
    )
    value, end = decoder.raw_decode(body)
    return value, body[end:].lstrip()


def _call(value: Any, key: str) -> ToolCall:
    if not isinstance(value, dict) or value.keys() != {"name", key}:
        raise ValueError(f'expected an object with "name" and "{key}"')
    if not isinstance(value["name"], str) or not isinstance(value[key], dict):
        raise ValueError(f'expected "name" a string and "{key}" an object')
    check_text(value)
    return ToolCall(value["name"], value[key])


def _unambiguous(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which each key stands once."""
    value = dict(pairs)
    if len(value) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"expected each key once, got duplicate key {key[:40]!r}")
    return value


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"expected JSON numbers, got {constant}")


def check_text(value: Any) -> None:
    r"""Rejects what JSON text can smuggle in: lone surrogates ("\ud800") and infinities (1e999).

    Raises:
      ValueError: `value` holds one.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected Unicode text, got a lone surrogate") from error
