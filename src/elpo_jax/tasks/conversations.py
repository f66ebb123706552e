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

KEY = "sft.data"  # the setting that names the file

Tokens = tuple[np.ndarray, np.ndarray]  # ids int32 [T], and which are the policy's, bool [T]
ToTokens = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Tokens]


class Conversations(NamedTuple):
    """What was read.

    Attributes:
      pairs: of each usable row, in order.
      digest: SHA-256 of the file.
      tools: names of the tools in the usable rows, in alphabetical order.
      notes: lines for the user: bad rows, and how many are good.
    """

    pairs: tuple[Tokens, ...]
    digest: str
    tools: tuple[str, ...]
    notes: tuple[str, ...]


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
    pairs = tuple(pair for _, (pair, _) in rows.good)
    tools = sorted(set().union(*(names for _, (_, names) in rows.good)))
    counts = f"conversations: {len(pairs)}, bad rows: {len(rows.bad)}"
    notes = (*rows.named(path), f"{KEY}: {path}: {counts}")
    return Conversations(pairs, digest, tuple(tools), notes)


def _tokens(row: Row, to_tokens: ToTokens, max_length: int) -> tuple[Tokens, frozenset[str]]:
    """A row's tokens and the names of its tools.

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
    return (ids, is_policy), frozenset(_name(tool) for tool in tools)


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
