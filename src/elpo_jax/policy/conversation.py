"""Whole conversations from elsewhere, cut into what the policy said and what it was told.

Cuts are found by rendering the conversation up to each turn and comparing, never by searching a
rendering for markers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from elpo_jax.policy.chat_layout import AS_SAMPLED, Layout, rewrites
from elpo_jax.policy.template import Template, hole, split_holes
from elpo_jax.tasks.base import Message
from elpo_jax.tools.call_forms import check_text

ROLES = ("system", "user", "assistant", "tool")
UNTRUSTED = ("user", "tool")
_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")


class Segment(NamedTuple):
    """A run of a conversation's text.

    Attributes:
      text: with holes for the contents of user and tool messages; an assistant turn's without
        its end-of-turn token.
      is_policy: it is an assistant turn.
    """

    text: str
    is_policy: bool


def masked(messages: Sequence[Message]) -> list[Message]:
    """The messages with holes for the contents of user and tool messages."""
    return [
        {**message, "content": hole(index)} if message["role"] in UNTRUSTED else message
        for index, message in enumerate(messages)
    ]


def check_holes(numbers: Sequence[int], messages: Sequence[Message]) -> None:
    """Raises ValueError unless the holes of a rendering are those of all messages, in order."""
    expected = [i for i, message in enumerate(messages) if message["role"] in UNTRUSTED]
    if list(numbers) != expected:
        raise ValueError(
            f"chat template: expected messages {expected} rendered once, in order, got "
            f"{list(numbers)}"
        )


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as templates expect them: no None, arguments of calls as objects.

    Raises:
      ValueError: for messages of another shape, or where the last isn't the assistant's.
    """
    found = [_checked_message(index, message) for index, message in enumerate(messages)]
    if not found or found[-1]["role"] != "assistant":
        roles = [message["role"] for message in found]
        raise ValueError(f"messages: expected the last to be an assistant's, got roles {roles}")
    return found


def segments(
    template: Template,
    layout: Layout,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    earlier_turns: str,
) -> list[Segment]:
    """What the policy is told and what it says, in turns.

    Args:
      template: the template.
      layout: what is constant in it.
      messages: as `checked_messages` returns them.
      tools: function schemas for the system turn.
      earlier_turns: AS_RENDERED: each turn has to stay as it was when it was the newest one;
        AS_SAMPLED: it is taken as it was then.

    Raises:
      ValueError: the template leaves out a part of a message, or rewrites earlier turns.
    """
    holed = masked(messages)
    found: list[Segment] = []
    previous: int | None = None
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = template.render(holed[:index], tools)
        newest = template.render(holed[: index + 1], tools, header=False)
        closing = layout.ending + layout.after
        if not newest.startswith(prompt) or not newest[len(prompt) :].endswith(closing):
            raise ValueError(
                f"messages[{index}]: expected the turn to follow its header "
                f"{prompt[-60:]!r} and to end with {closing!r}, got {newest[-200:]!r}"
            )
        turn = newest[len(prompt) : len(newest) - len(closing)]
        _check_said(index, message, turn)
        told = prompt
        if previous is not None:
            told = _told_between(template, layout, holed, previous, index, tools)
        found += [Segment(told, False), Segment(turn, True)]
        previous = index
    check_holes([n for segment in found for n in split_holes(segment.text)[1]], messages)
    if earlier_turns != AS_SAMPLED:
        expected = "".join(s.text + (layout.ending if s.is_policy else "") for s in found)
        whole = template.render(holed, tools, header=False)
        if whole != expected + layout.after:
            raise rewrites(expected + layout.after, whole)
    return found


def _told_between(
    template: Template,
    layout: Layout,
    holed: Sequence[Message],
    previous: int,
    index: int,
    tools: Sequence[Mapping[str, Any]],
) -> str:
    """What stands between the turns `previous` and `index`, from behind the first's ending.

    A hole stands for the first turn, so that it is found again whatever the template makes of it.
    """
    stand_in = {"role": "assistant", "content": hole(previous)}
    rendered = template.render([*holed[:previous], stand_in, *holed[previous + 1 : index]], tools)
    _, turn, rest = rendered.partition(hole(previous))
    if not turn or not rest.startswith(layout.ending):
        raise ValueError(
            f"messages[{previous}]: expected the turn to be kept and to end with "
            f"{layout.ending!r}, got {rendered[-200:]!r}"
        )
    return rest.removeprefix(layout.ending)


def _checked_message(index: int, message: Mapping[str, Any]) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: expected an object, got {message!r:.80}")
    found = {key: value for key, value in message.items() if value not in (None, [], ())}
    role = found.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}.role: expected one of {', '.join(ROLES)}, got {role!r:.80}")
    for key in found:
        if key not in _KEYS or (role != "assistant" and key in ("reasoning_content", "tool_calls")):
            raise ValueError(f"{where}.{key}: expected no such key in a message of role {role!r}")
    if role == "assistant":
        found.setdefault("content", "")
    for key in set(_KEYS) - {"role", "tool_calls"}:
        if not isinstance(found.get(key, "" if key != "content" else None), str):
            raise ValueError(f"{where}.{key}: expected text, got {found.get(key)!r:.80}")
    if "tool_calls" in found:
        found["tool_calls"] = [
            _checked_call(f"{where}.tool_calls[{i}]", call)
            for i, call in enumerate(_as_list(f"{where}.tool_calls", found["tool_calls"]))
        ]
    return found


def _as_list(where: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ValueError(f"{where}: expected a list, got {value!r:.80}")
    return value


def _checked_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: expected a function's name and arguments, got {call!r:.80}")
    name = function["name"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}.arguments: expected JSON, got: {error}") from error
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}.arguments: expected an object, got {arguments!r:.80}")
    arguments = dict(arguments)
    try:
        check_text(arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.arguments: {error}") from error
    identity = {"id": call["id"]} if call.get("id") else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _check_said(index: int, message: Message, turn: str) -> None:
    """Raises ValueError where the template leaves a part of a turn out. Only whitespace may go."""
    parts = {key: message[key] for key in ("content", "reasoning_content") if key in message}
    for number, call in enumerate(message.get("tool_calls", ())):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        parts[f"tool_calls[{number}].name"] = name
        parts[f"tool_calls[{number}].arguments"] = json.dumps(arguments, ensure_ascii=False)
    kept = _squeezed(turn)
    for key, text in parts.items():
        if _squeezed(text) not in kept:
            raise ValueError(
                f"messages[{index}].{key}: expected the chat template to render {text!r:.80}, "
                f"got {turn!r:.160}"
            )


def _squeezed(text: str) -> str:
    return "".join(text.split())
