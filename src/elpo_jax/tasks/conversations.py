"""Whole conversations from a file, to learn from: columns `messages` and `tools`.

Open-AgentRL-SFT-3K and most files for fine-tuning with tools have them. How a conversation becomes
tokens is the chat template's to say, so it comes in as a function.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elpo_jax.errors import UsageError
from elpo_jax.tasks.rows import Row, check_unicode, convert, field_of, one_line, read_content, shown
from elpo_jax.tools.call_forms import OPEN

KEY = "sft.data"  # the setting that names the file

Tokens = tuple[np.ndarray, np.ndarray]  # ids int32 [T], and which are the policy's, bool [T]
ToTokens = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Tokens]


class Conversations(NamedTuple):
    """What was read.

    Attributes:
      pairs: of each usable row, in order.
      digest: SHA-256 of the file.
      tools: names of the tools in the usable rows, in alphabetical order.
      notes: lines for the user: bad rows, how many are good, and how many teach what an episode
        refuses.
    """

    pairs: tuple[Tokens, ...]
    digest: str
    tools: tuple[str, ...]
    notes: tuple[str, ...]


class _Read(NamedTuple):
    """A row that can be used: its tokens, its tools' names, its turns with more than one call."""

    pair: Tokens
    tools: frozenset[str]
    several_calls: int


def read_conversations(path: str, to_tokens: ToTokens, max_length: int) -> Conversations:
    """Reads the file.

    Args:
      path: JSON lines, a JSON list or Parquet, see `rows.convert`.
      to_tokens: (messages, tools) -> ids and which are the policy's.
      max_length: tokens that a row may have.

    Raises:
      UsageError: it can't be read, or has no row that can be used.
    """
    content, digest = read_content(Path(path), KEY)
    try:
        make = partial(_tokens, to_tokens=to_tokens, max_length=max_length)
        rows = convert(content, path, make, drop_nulls=True)
    except ValueError as error:
        raise UsageError([f"{KEY}: {path}: {error}"]) from None
    if not rows.good:
        expected = "a row with messages that can be learnt from"
        raise UsageError([f"{KEY}: {path}: expected {expected}, got none", *rows.named(path)])
    good = [row for _, row in rows.good]
    tools = sorted(set().union(*(row.tools for row in good)))
    counts = f"conversations: {len(good)}, bad rows: {len(rows.bad)}"
    notes = [*rows.named(path), f"{KEY}: {path}: {counts}"]
    several = [row.several_calls for row in good if row.several_calls]
    if several:
        notes.append(
            f"warning: {KEY}: {path}: {len(several)} conversations have turns with several calls "
            f"({sum(several)} turns); they are learnt, but an episode runs more than the first "
            "call of a turn only with episode.calls_in_turn=all"
        )
    return Conversations(tuple(row.pair for row in good), digest, tuple(tools), tuple(notes))


def _tokens(row: Row, to_tokens: ToTokens, max_length: int) -> _Read:
    """What a row holds.

    Raises:
      ValueError: why it can't be used, in one line.
    """
    try:
        messages, tools = _messages(row), _tools(row)
        ids, is_policy = to_tokens(messages, tools)
    except RecursionError:
        raise ValueError("expected messages and tools of fewer levels, got too many") from None
    except ValueError as error:
        raise ValueError(one_line(error)) from None
    if len(ids) > max_length:
        limit = f"at most the {max_length} tokens of the last of train.length_buckets"
        raise ValueError(f"messages: expected {limit}, got {len(ids)}")
    if not is_policy[1:].any():  # nothing predicts the first token
        raise ValueError("messages: expected an assistant turn to learn from, got none")
    several = sum(_calls(message) > 1 for message in messages)
    return _Read((ids, is_policy), frozenset(map(_name, tools)), several)


def _calls(message: Mapping[str, Any]) -> int:
    """Calls of a turn, be they in a field of their own or, as Hermes writes them, in its text."""
    if message["role"] != "assistant":
        return 0
    return len(message.get("tool_calls") or ()) + (message.get("content") or "").count(OPEN)


def _messages(row: Row) -> list[Mapping[str, Any]]:
    messages = _objects("messages", field_of(row, "messages"))
    if not messages:
        raise ValueError("messages: expected at least one, got none")
    return messages


def _tools(row: Row) -> list[Mapping[str, Any]]:
    """The schemas; none where the row has no such field."""
    tools = row.get("tools")
    return [] if tools is None or tools == "" else _objects("tools", tools)


def _objects(field: str, value: Any) -> list[Mapping[str, Any]]:
    """A list of objects, also where a column holds it as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{field}: expected JSON, got {shown(value)}") from None
    if not isinstance(value, list):
        raise ValueError(f"{field}: expected a list, got {shown(value)}")
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise ValueError(f"{field}[{number}]: expected an object, got {shown(item)}")
    check_unicode(field, value)
    return value


def _name(tool: Mapping[str, Any]) -> str:
    """A schema's name, be it within 'function' or not; fit for a message."""
    inner = tool.get("function")
    name = (inner if isinstance(inner, Mapping) else tool).get("name")
    return name if isinstance(name, str) and name.isidentifier() else shown(name)
