"""What a chat template does, found out by rendering probe conversations and comparing them.

Nothing is read out of the template's source. All of it is checked once, before a run starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elpo_jax.policy.template import CONTENT_FORMS, ContentForm, Template, hole, split_holes
from elpo_jax.policy.tokenizer import Tokenizer
from elpo_jax.tasks.base import Message, call_message
from elpo_jax.tools.call_forms import FORMS, HERMES, CallForm

AS_RENDERED, AS_SAMPLED = "as_rendered", "as_sampled"
_SETTING = f"policy.earlier_turns={AS_SAMPLED} keeps them as they were sampled"

_PROMPT: tuple[Message, ...] = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
)
_OPEN_THOUGHT = "<think>"
_THOUGHT = "t\n</think>\n\na"

# Tells the content forms apart.
_TEXT = ' "\u00e9"\n\\ <b> '

# Some templates can't be rendered without tools, so their prompt is compared with this one's.
_OTHER_TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
_CALL = ("f", {"x": 'q "\u00e9"\n\\', "n": 1})
_CALL_ID = "call00001"  # some templates want nine letters or digits


@dataclass(frozen=True)
class Layout:
    """What is constant in a template's renderings.

    Attributes:
      end_of_turn: the id that ends an assistant turn.
      ending: its text.
      after: what follows it where the turn is the last message.
      around_tool: what stands before a tool result, from behind the end of the turn that called,
        and after it, with the header of the next turn.
      between_tools: what stands between the results of one turn's calls; None where the template
        has no place for several.
      contents: by role 'user' and 'tool', what becomes of a content.
      call_form: how tool calls are written.
    """

    end_of_turn: int
    ending: str
    after: str
    around_tool: tuple[str, str]
    between_tools: str | None
    contents: Mapping[str, ContentForm]
    call_form: CallForm


def derive_layout(
    template: Template,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    earlier_turns: str,
) -> Layout:
    """The layout of a template.

    Args:
      template: the template.
      tools: function schemas for the system turn.
      tokenizer: knows the ids of control tokens.
      earlier_turns: AS_RENDERED: the template has to render earlier turns as they were sampled;
        AS_SAMPLED: it needn't.

    Raises:
      ValueError: the template leaves out or rewrites what it mustn't, ends turns with no control
        token, or writes tool calls in a form that isn't known.
    """
    prompt = template.render(_PROMPT, tools)
    if tools and prompt == template.render(_PROMPT, [_OTHER_TOOL]):
        raise ValueError("chat template: expected one that shows tools to the policy, got none")
    episode = template.render([*_PROMPT, _said(hole(0)), _result(hole(1))], tools)
    around, numbers = split_holes(episode)
    if numbers != [0, 1]:
        raise ValueError(
            f"chat template: expected an assistant turn and a tool result to extend the prompt "
            f"{prompt!r}, got {_shown(episode)}"
        )
    before, between, tail = around
    end_of_turn, ending = _end_of_turn(between, tokenizer)
    last = template.render([*_PROMPT, _said(hole(0))], tools, header=False).partition(hole(0))[2]
    if not last.startswith(ending):
        raise ValueError(
            f"chat template: expected the last turn to end with {ending!r} as others do, "
            f"got {last!r}"
        )
    around_tool = (between.removeprefix(ending), tail)
    layout = Layout(
        end_of_turn=end_of_turn,
        ending=ending,
        after=last.removeprefix(ending),
        around_tool=around_tool,
        between_tools=_between_tools(template, tools, [before, between, tail]),
        contents={
            "user": _content_form(template, tools, [_PROMPT[0]], "user"),
            "tool": _content_form(template, tools, [*_PROMPT, _said("a")], "tool"),
        },
        call_form=_call_form(template, tools, before, hole(1).join([between, tail])),
    )
    if earlier_turns != AS_SAMPLED:
        _check_earlier_turns(template, tools, prompt, layout)
    return layout


def with_thinking(
    template: Template, tools: Sequence[Mapping[str, Any]], thinking: bool | None
) -> Template:
    """The template with its `enable_thinking` set, or as it is for None.

    Raises:
      ValueError: the template doesn't read it.
    """
    if thinking is None:
        return template
    options = {
        value: replace(template, variables={**template.variables, "enable_thinking": value})
        for value in (True, False)
    }
    on, off = (option.render(_PROMPT, tools) for option in options.values())
    if on == off:
        raise ValueError(
            f"chat template: expected one that reads enable_thinking, since "
            f"policy.thinking={thinking}, got one that doesn't"
        )
    return options[thinking]


def _end_of_turn(between: str, tokenizer: Tokenizer) -> tuple[int, str]:
    """The id that ends an assistant turn, and its text, from what follows the turn."""
    first = tokenizer.encode(between, allow_special=True)[:1]
    text = tokenizer.decode(first)
    if not text or not between.startswith(text) or first[0] in tokenizer.encode(text):
        raise ValueError(
            f"chat template: expected assistant turns to end with a control token of the "
            f"tokenizer, got {between!r} after one"
        )
    return first[0], text


def _between_tools(
    template: Template, tools: Sequence[Mapping[str, Any]], around: Sequence[str]
) -> str | None:
    """What stands between neighbouring tool results; None where the template has no place for them.

    Args:
      template: the template.
      tools: function schemas for the system turn.
      around: what stands before and after the turn that called, and after a single result.
    """
    messages = [*_PROMPT, _said(hole(0)), _result(hole(1)), _result(hole(2))]
    try:
        texts, numbers = split_holes(template.render(messages, tools))
    except ValueError:
        return None
    is_same = numbers == [0, 1, 2] and [*texts[:2], texts[3]] == list(around)
    return texts[2] if is_same else None


def _content_form(
    template: Template, tools: Sequence[Mapping[str, Any]], before: Sequence[Message], role: str
) -> ContentForm:
    """What the template makes of the content of a message of a role."""
    masked = template.render([*before, {"role": role, "content": hole(0)}], tools)
    around, numbers = split_holes(masked)
    if numbers != [0]:
        raise ValueError(
            f"chat template: expected the content of a {role} message rendered once, got "
            f"{_shown(masked)}"
        )
    rendered = template.render([*before, {"role": role, "content": _TEXT}], tools)
    for form in CONTENT_FORMS:
        if rendered == form.apply(_TEXT).join(around):
            return form
    raise ValueError(
        f"chat template: expected the content {_TEXT!r} of a {role} message "
        f"{' or '.join(form.name for form in CONTENT_FORMS)}, got {_shown(rendered)}"
    )


def _call_form(
    template: Template, tools: Sequence[Mapping[str, Any]], before: str, after: str
) -> CallForm:
    """The form in which the template writes a call.

    Args:
      template: the template.
      tools: where there are none, nothing is called and any form will do.
      before: what stands before an earlier turn.
      after: what stands after it, up to the next turn, a tool result between.
    """
    name, arguments = _CALL
    said = dict(call_message(name, arguments))
    said["tool_calls"] = [{"id": _CALL_ID, **call} for call in said["tool_calls"]]
    result = {**_result(hole(1)), "tool_call_id": _CALL_ID}
    try:
        rendered = template.render([*_PROMPT, said, result], tools)
    except ValueError:
        if tools:
            raise
        return HERMES
    for form in FORMS.values():
        if rendered == before + form.write(name, arguments) + after:
            return form
    if not tools:
        return HERMES
    got = rendered.removeprefix(before).removesuffix(after)
    raise ValueError(
        f"chat template: expected a tool call in one of the forms {', '.join(FORMS)}, as in "
        f"{HERMES.write(name, arguments)!r}, got {_shown(got)}"
    )


def _check_earlier_turns(
    template: Template, tools: Sequence[Mapping[str, Any]], prompt: str, layout: Layout
) -> None:
    """Raises ValueError where earlier turns aren't rendered as they were sampled."""
    # Where the header opens the thought, a turn begins inside it.
    opened = prompt.rstrip().endswith(_OPEN_THOUGHT)
    for said in [_THOUGHT] if opened else ["a", f"{_OPEN_THOUGHT}\n{_THOUGHT}"]:
        expected, messages = prompt, list(_PROMPT)
        for _ in range(2):
            messages += [_said(said), _result("r")]
            head, tail = layout.around_tool
            result = layout.contents["tool"].apply("r")
            expected += f"{said}{layout.ending}{head}{result}{tail}"
            got = template.render(messages, tools)
            if got != expected:
                raise rewrites(expected, got)


def rewrites(expected: str, got: str) -> ValueError:
    """The error for a template that rewrites earlier turns."""
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    start = max(0, same - 40)
    return ValueError(
        f"chat template: rewrites earlier turns ({_SETTING}): expected "
        f"{expected[start : same + 40]!r}, got {got[start : same + 40]!r}"
    )


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _result(text: str) -> Message:
    return {"role": "tool", "content": text}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}")
