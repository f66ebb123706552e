"""Tool calls in an assistant turn's text (the Qwen/Hermes form).

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>

A turn holds one call and ends with it: text may come before it, only whitespace after it, so that a
policy can't write the answer to its own call. Nothing is repaired; whatever is wrong with a call is
told to the policy as an error observation.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonschema
from jsonschema.exceptions import best_match

from elpo_jax.rollout.tree import ToolCall
from elpo_jax.tools.base import Observation, Tool

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_MAX_DETAIL = 160  # characters of an error message that the policy has to read


class CallParser:
    """Finds and checks the tool call of a turn.

    Attributes:
      tools: tools by name.
    """

    def __init__(self, tools: Sequence[Tool]):
        """Compiles the argument schemas.

        Raises:
          ValueError: for two tools of one name, or a schema that is no JSON schema.
        """
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            names = [tool.name for tool in tools]
            raise ValueError(f"tools: expected distinct names, got {names}")
        self._validators = {name: _validator(tool) for name, tool in self.tools.items()}

    def parse(self, text: str) -> ToolCall | Observation | None:
        """The call of a turn.

        Args:
          text: the turn's text, without its end-of-turn token.

        Returns:
          None when the turn holds no `<tool_call>` (it is an answer); the call; or the error
          observation ('malformed_call', 'unknown_tool', 'bad_arguments') that it deserves.
        """
        _, opened, rest = text.partition(OPEN)
        if not opened:
            return None
        try:
            call = _read_call(rest)
            if call.name not in self.tools:
                return _error("unknown_tool", "unknown tool", call.name)
            fault = best_match(self._validators[call.name].iter_errors(call.arguments))
        except RecursionError:
            return _error("malformed_call", "malformed call", "nested too deeply")
        except json.JSONDecodeError as error:
            return _error("malformed_call", "malformed call", f"{error.msg} (char {error.pos})")
        except ValueError as error:
            return _error("malformed_call", "malformed call", str(error))
        if fault is not None:
            return _error("bad_arguments", "bad arguments", f"{fault.json_path}: {fault.message}")
        return call


def _validator(tool: Tool) -> jsonschema.Draft202012Validator:
    parameters = tool.schema.get("parameters")
    try:
        jsonschema.Draft202012Validator.check_schema(parameters)
    except jsonschema.SchemaError as error:
        raise ValueError(
            f"tool {tool.name!r}: expected a JSON schema in 'parameters', got: {error.message}"
        ) from error
    return jsonschema.Draft202012Validator(parameters)


def _read_call(text: str) -> ToolCall:
    """The call in the text behind the opening tag. Raises ValueError for a malformed one."""
    body = text.lstrip()
    # The decoder finds where the object ends, so a string in it may hold the closing tag.
    # strict=False: code in a string may hold raw newlines and tabs.
    decoder = json.JSONDecoder(strict=False, parse_constant=_reject_constant)
    value, end = decoder.raw_decode(body)
    rest = body[end:].lstrip()
    if not rest.startswith(CLOSE):
        raise ValueError(f"expected {CLOSE} after the JSON object")
    if rest[len(CLOSE) :].strip():
        raise ValueError(f"expected the turn to end after {CLOSE}")
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        raise ValueError('expected an object with "name" and "arguments"')
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
        raise ValueError('expected "name" a string and "arguments" an object')
    _check_text(value)
    return ToolCall(value["name"], value["arguments"])


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"expected JSON numbers, got {constant}")


def _check_text(value: Any) -> None:
    r"""Rejects what JSON text can smuggle in: lone surrogates ("\ud800") and infinities (1e999)."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected Unicode text, got a lone surrogate") from error


def _error(kind: str, title: str, detail: str) -> Observation:
    line = " ".join(detail.split())
    if len(line) > _MAX_DETAIL:
        line = line[: _MAX_DETAIL - 3] + "..."
    return Observation(f"error: {title}: {line}", kind)
