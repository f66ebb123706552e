"""The tool protocol: a tool is a pure function of its state.

`call(state, arguments) -> (state, observation)` never mutates `state`, so a branch of the
rollout tree goes on from any earlier point by reusing the state that was current there.

Tools run on threads of the training process, several at once. What a tool raises, and what it
returns in place of an observation, counts as its failure, as does a call that takes longer than
`episode.tool_seconds`: the rollout is replaced, never scored. A tool that may crash the process, or
whose runaway calls have to be killed, runs its work in a process of its own.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_LINE = 200  # characters of an error's message that are told


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


def guarded_call(
    tool: Tool, states: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Observation]:
    """Calls a tool that may do anything but hang.

    Args:
      tool: the tool.
      states: tool states before the call, by name; one that is missing is the tool's initial one.
      arguments: of the call, for the tool to keep.

    Returns:
      The states after the call, and the answer.

    Raises:
      ToolFailure: in one short line, when the tool raised anything at all, or returned something
        else than a state and an observation.
    """
    name = tool.name
    with as_failure(f"tool {name!r}"):
        state = states[name] if name in states else tool.initial_state()
        state, observation = tool.call(state, arguments)
    is_answer = type(observation) is Observation and type(observation.text) is str
    if not is_answer or type(observation.error) not in (str, type(None)):
        kind = type(observation).__name__
        raise ToolFailure(f"tool {name!r}: expected an Observation of text, got {kind}")
    return {**states, name: state}, observation


@contextlib.contextmanager
def as_failure(what: str) -> Iterator[None]:
    """Whatever is raised inside comes out as a `ToolFailure` in one short line about `what`."""
    try:
        yield
    except ToolTimeout as failure:
        raise ToolTimeout(f"{what}: {_line(failure)}") from failure
    except ToolFailure as failure:
        raise ToolFailure(f"{what}: {_line(failure)}") from failure
    except BaseException as error:  # SystemExit too; interrupts only reach the main thread
        words = ": ".join(filter(None, (type(error).__name__, _line(error))))
        raise ToolFailure(f"{what} raised {words}") from error


def _line(error: BaseException) -> str:
    """An error's message without line breaks, cut where it gets long."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # its __str__ is broken too
        return ""
    return text if len(text) <= _LINE else f"{text[:_LINE]}..."
