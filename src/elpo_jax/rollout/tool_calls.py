"""Finds and checks the tool call of an assistant turn.

How a call is written is the chat template's (`tools.call_forms`). Nothing is repaired; whatever is
wrong with a call is told to the policy as an error observation.
"""

import json
from collections.abc import Sequence

import jsonschema
from jsonschema.exceptions import best_match

from elpo_jax.rollout.tree import ToolCall
from elpo_jax.tools.base import Observation, Tool
from elpo_jax.tools.call_forms import HERMES, CallForm

_MAX_DETAIL = 160  # characters of an error message that the policy has to read


class CallParser:
    """Finds and checks the tool call of a turn.

    Attributes:
      tools: tools by name.
    """

    def __init__(self, tools: Sequence[Tool], form: CallForm = HERMES):
        """Compiles the argument schemas.

        Args:
          tools: what can be called.
          form: how a turn's text holds a call.

        Raises:
          ValueError: for two tools of one name, or a schema that is no JSON schema.
        """
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            names = [tool.name for tool in tools]
            raise ValueError(f"tools: expected distinct names, got {names}")
        self._form = form
        self._validators = {name: _validator(tool) for name, tool in self.tools.items()}

    def parse(self, text: str) -> ToolCall | Observation | None:
        """The call of a turn.

        Args:
          text: the turn's text, without its end-of-turn token.

        Returns:
          None when the turn makes no call (it is an answer); the call; or the error observation
          ('malformed_call', 'unknown_tool', 'bad_arguments') that it deserves.
        """
        rest = self._form.find(text)
        if rest is None:
            return None
        try:
            call = self._form.read(rest)
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


def _error(kind: str, title: str, detail: str) -> Observation:
    line = " ".join(detail.split())
    if len(line) > _MAX_DETAIL:
        line = line[: _MAX_DETAIL - 3] + "..."
    return Observation(f"error: {title}: {line}", kind)
