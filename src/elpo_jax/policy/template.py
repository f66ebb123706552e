"""Chat templates as text: rendering, and holes for text that must stay text.

A template is foreign code that reads and writes strings. Text that the project didn't write is kept
out of it: a hole stands for it while the template is rendered, and what was to stand there is
encoded on its own afterwards, without control tokens.
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elpo_jax.tasks.base import Message

# Private-use characters, so no template looks into a hole.
_HOLE = "\ue000{}\ue001"
_HOLES = re.compile("\ue000(\\d+)\ue001")

# Templates of the Llama-3 family write today's date unless they are given one, and prompts would
# change over night. This is the date that they fall back on themselves.
_FIXED = {"date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Template:
    """A Jinja chat template with what else it reads.

    Attributes:
      text: as checkpoints on the Hugging Face hub carry it.
      variables: special tokens by name (bos_token, eos_token ...) and options.
    """

    text: str
    variables: Mapping[str, Any] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        header: bool = True,
    ) -> str:
        """The text of a conversation.

        Args:
          messages: {'role', 'content'} each, and what else the template reads.
          tools: function schemas, bare or in OpenAI's form.
          header: with the header of the next assistant turn.

        Raises:
          ValueError: the template is broken, or refuses the conversation.
        """
        renderer = _renderer()
        try:
            rendered, _ = renderer(
                [[dict(message) for message in messages]],
                tools=[_openai_form(tool) for tool in tools] or None,
                chat_template=self.text,
                add_generation_prompt=header,
                **_FIXED,
                **self.variables,
            )
        except Exception as error:  # foreign code: its faults have any type
            line = " ".join(f"{error}".split()) or type(error).__name__
            raise ValueError(f"chat template: can't be rendered: {line}") from error
        return str(rendered[0])


def render(
    template: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """`Template.render` of a template without variables."""
    return Template(template).render(messages, tools)


@dataclass(frozen=True)
class ContentForm:
    """What a template makes of a message's content.

    Attributes:
      name: for messages.
      apply: from the content to what stands in place of its hole.
    """

    name: str
    apply: Callable[[str], str]


def _json_inside(text: str) -> str:
    """A JSON string as templates' `tojson` writes it, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


CONTENT_FORMS = (
    ContentForm("as it is", lambda text: text),
    ContentForm("trimmed", str.strip),
    ContentForm("as a JSON string", _json_inside),
    ContentForm("as a trimmed JSON string", lambda text: _json_inside(text.strip())),
)


def hole(number: int) -> str:
    """What stands for the content of message `number`."""
    return _HOLE.format(number)


def split_holes(text: str) -> tuple[list[str], list[int]]:
    """What stands around the holes of a text, one more than there are holes; and their numbers."""
    parts = _HOLES.split(text)
    return parts[::2], [int(number) for number in parts[1::2]]


def _openai_form(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "function" and "function" in tool:
        return dict(tool)
    return {"type": "function", "function": dict(tool)}


def _renderer() -> Any:
    """Hugging Face's own renderer, imported at first use (it takes seconds)."""
    with quiet_import():
        from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Logging is off while transformers is imported.

    Without PyTorch the import logs advice at warning level, and no logger of the library can be
    configured before it is imported.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
