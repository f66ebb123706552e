"""The tool protocol: a tool is a pure function of its state.

`call(state, arguments) -> (state, observation)` never mutates `state`, so a branch of the
rollout tree goes on from any earlier point by reusing the state that was current there.

Tools run on threads of the training process, several at once. What a tool raises, and what it
returns in place of an observation, counts as its failure, as does a call that takes longer than
`episode.tool_seconds`: the rollout is replaced, never scored. A tool that may crash the process, or
whose runaway calls have to be killed, runs its work in a process of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Observation:
    """What the environment answers to a tool call.

    Attributes:
      text: what the policy reads.
      error: None for a result; else the kind of error: 'malformed_call', 'unknown_tool',
        'bad_arguments' or 'tool_error'. An error is the policy's doing and the episode goes on.
    """

    text: str
    error: str | None = None


class ToolFailure(Exception):
    """The infrastructure of a tool broke. Never scored as the policy's failure."""


class ToolTimeout(ToolFailure):
    """A call didn't answer in its time (`episode.tool_seconds`)."""


class Tool(Protocol):
    """A tool as the episode sees it.

    Attributes:
      name: the name that calls use.
      schema: the function schema shown to the policy: {'name', 'description', 'parameters'}, with
        `parameters` a JSON schema of the arguments object.
    """

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def initial_state(self) -> Any:
        """The state at the start of an episode (None for a stateless tool)."""
        ...

    def call(self, state: Any, arguments: Mapping[str, Any]) -> tuple[Any, Observation]:
        """Runs one call whose arguments fit the schema.

        Raises:
          ToolFailure: when the tool itself broke.
        """
        ...
