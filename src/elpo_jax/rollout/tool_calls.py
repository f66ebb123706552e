"""Finds and checks the tool calls of an assistant turn.

How a call is written is the chat template's (`tools.call_forms`). Nothing is repaired; whatever is
wrong with a call is told to the policy as an error observation.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jsonschema
from jsonschema.exceptions import best_match

from elpo_jax.rollout.tree import ToolCall
from elpo_jax.tools.base import Observation, Tool
from elpo_jax.tools.call_forms import HERMES, CallForm

FIRST, ALL = "first", "all"  # which of a turn's calls are run
Request = ToolCall | Observation  # a call, or the error observation that a bad one gets

_MAX_DETAIL = 160  # characters of an error message that the policy has to read


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON schema takes 3.0 for an integer, but Python makes a float of it, which no tool expects there.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


class Requests(NamedTuple):
    """What a turn asks for.

    Attributes:
      calls: each call in order, or the error observation ('malformed_call', 'unknown_tool',
        'bad_arguments') that it deserves.
      has_more: further calls follow that aren't run.
    """

    calls: tuple[Request, ...]
    has_more: bool


class CallParser:
    """Finds and checks the tool calls of a turn.

    Attributes:
      tools: tools by name.
    """

    def __init__(self, tools: Sequence[Tool], form: CallForm = HERMES, calls: str = FIRST):
        """Compiles the argument schemas.

        Args:
          tools: what can be called.
          form: how a turn's text holds a call.
          calls: of a turn with several, FIRST: the first one; ALL: all in order.

        Raises:
          ValueError: for two tools of one name, or a schema that is no JSON schema.
        """
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            names = [tool.name for tool in tools]
            raise ValueError(f"tools: expected distinct names, got {names}")
        self._form = form
        self._calls = calls
        self._validators = {name: _validator(tool) for name, tool in self.tools.items()}

    def parse(self, text: str) -> Requests:
        """The calls of a turn.

        Args:
          text: the turn's text, without its end-of-turn token.

        Returns:
          What is asked for. Nothing when the turn makes no call (it is an answer).
        """
        rest = self._form.find(text)
        requests: list[Request] = []
        while rest is not None and not (requests and self._calls == FIRST):
            request, rest = self._read(rest)
            requests.append(request)
        return Requests(tuple(requests), rest is not None)

    def _read(self, text: str) -> tuple[Request, str | None]:
        """A call, or the error that it deserves, and the text from the next one on.

        What comes after a malformed call isn't looked for.
        """
        try:
            call, rest = self._form.read(text)
            if call.name not in self.tools:
                return _error("unknown_tool", "unknown tool", call.name), rest
            fault = best_match(self._validators[call.name].iter_errors(call.arguments))
        except RecursionError:
            return _error("malformed_call", "malformed call", "nested too deeply"), None
        except json.JSONDecodeError as error:
            words = f"{error.msg} (char {error.pos})"
            return _error("malformed_call", "malformed call", words), None
        except ValueError as error:
            return _error("malformed_call", "malformed call", str(error)), None
        if fault is not None:
            words = f"{fault.json_path}: {fault.message}"
            return _error("bad_arguments", "bad arguments", words), rest
        return call, rest


def _validator(tool: Tool) -> Any:
    parameters = tool.schema.get("parameters")
    try:
        jsonschema.Draft202012Validator.check_schema(parameters)
    except jsonschema.SchemaError as error:
        raise ValueError(
            f"tool {tool.name!r}: expected a JSON schema in 'parameters', got: {error.message}"
        ) from error
    return _Validator(parameters)


def _error(kind: str, title: str, detail: str) -> Observation:
    line = " ".join(detail.split())
    if len(line) > _MAX_DETAIL:
        line = line[: _MAX_DETAIL - 3] + "..."
    return Observation(f"error: {title}: {line}", kind)
