"""Conversations as token ids: the prompt, and what follows each assistant turn.

An episode is never rendered twice. The template is asked once, at construction, what it puts around
a tool result; after that the ids of a tool result are those of its text between two constant runs.
The newline that templates put after the end-of-turn token belongs to the first of them.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elpo_jax.policy.tokenizer import Tokenizer
from elpo_jax.tasks.base import Message

EMBEDDED_TEMPLATE = Path(__file__).parent / "embedded" / "chat_template.jinja"

# Stands for text that must not become control tokens while the template is rendered. Private-use
# characters, so no template looks into it.
_HOLE = "\ue000{}\ue001"
_HOLES = re.compile("\ue000(\\d+)\ue001")
_UNTRUSTED = ("user", "tool")


class Chat:
    """A chat template over a tokenizer.

    Attributes:
      tokenizer: the tokenizer.
      end_of_turn: the id that ends an assistant turn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        tools: Sequence[Mapping[str, Any]] = (),
        end_of_turn: str = "<|im_end|>",
    ):
        """Derives the ids around a tool result and checks the template with a probe conversation.

        Args:
          tokenizer: the tokenizer.
          template: a Jinja chat template, as checkpoints on the Hugging Face hub carry it.
          tools: function schemas for the system turn.
          end_of_turn: the piece that ends an assistant turn.

        Raises:
          ValueError: when the template rewrites earlier turns, or the end-of-turn piece is not one
            token or does not end the template's assistant turns.
        """
        self.tokenizer = tokenizer
        self.end_of_turn = tokenizer.id_of(end_of_turn)
        self._template = template
        self._tools = tuple(tools)
        self._around_tool = self._derive_around_tool(end_of_turn)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to and with the header of the next assistant turn.

        Control strings in the content of user and tool messages stay text.

        Args:
          messages: {'role', 'content'} each.

        Raises:
          ValueError: when the template does not render every message exactly once.
        """
        contents = [m["content"] if m["role"] in _UNTRUSTED else None for m in messages]
        masked = [
            m if content is None else {**m, "content": _HOLE.format(i)}
            for i, (m, content) in enumerate(zip(messages, contents, strict=True))
        ]
        # Odd parts are the numbers of the holes.
        parts = _HOLES.split(self._render(masked))
        expected = [str(i) for i, content in enumerate(contents) if content is not None]
        if parts[1::2] != expected:
            raise ValueError(
                f"chat template: expected messages {expected} rendered once, in order, got "
                f"{parts[1::2]}"
            )
        ids = self.tokenizer.encode(parts[0], allow_special=True)
        for index, text in zip(parts[1::2], parts[2::2], strict=True):
            ids += self.tokenizer.encode(messages[int(index)]["content"])
            ids += self.tokenizer.encode(text, allow_special=True)
        return ids

    def tool_result_ids(self, text: str) -> list[int]:
        """Ids from the end-of-turn token of a call to the first token of the next assistant turn.

        Control strings in `text` stay text.
        """
        head, tail = self._around_tool
        return [*head, *self.tokenizer.encode(text), *tail]

    def demonstration(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """A whole conversation, put together as an episode is.

        Args:
          messages: the prompt's messages, then assistant, tool, assistant, ..., assistant.

        Returns:
          ids: int32 [T].
          is_policy: bool [T], true for assistant text and its end-of-turn tokens.

        Raises:
          ValueError: when assistant and tool messages do not alternate to a last assistant one.
        """
        roles = [m["role"] for m in messages]
        start = roles.index("assistant") if "assistant" in roles else len(roles)
        turns = roles[start:]
        if len(turns) % 2 == 0 or turns[::2] != ["assistant"] * len(turns[::2]):
            raise ValueError(
                f"demonstration: expected it to end with an assistant turn, got {roles}"
            )
        if turns[1::2] != ["tool"] * len(turns[1::2]):
            raise ValueError(f"demonstration: expected tool results between turns, got {roles}")
        ids = self.prompt_ids(messages[:start])
        is_policy = [False] * len(ids)
        for message in messages[start:]:
            by_policy = message["role"] == "assistant"
            added = (
                [*self.tokenizer.encode(message["content"], allow_special=True), self.end_of_turn]
                if by_policy
                else self.tool_result_ids(message["content"])
            )
            ids += added
            is_policy += [by_policy] * len(added)
        return np.array(ids, np.int32), np.array(is_policy)

    def _render(self, messages: Sequence[Message]) -> str:
        return render(self._template, messages, self._tools)

    def _derive_around_tool(self, end_of_turn: str) -> tuple[list[int], list[int]]:
        """Head and tail ids around a tool result, from a conversation with two calls."""
        probe: list[Message] = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "tool", "content": _HOLE.format(0)},
            {"role": "assistant", "content": "b"},
            {"role": "tool", "content": "r"},
        ]
        prompt, once, twice = (self._render(probe[:n]) for n in (2, 4, 6))
        head, hole, tail = once.removeprefix(f"{prompt}a{end_of_turn}").partition(_HOLE.format(0))
        if not once.startswith(f"{prompt}a{end_of_turn}") or not hole:
            raise ValueError(
                f"chat template: expected an assistant turn and a tool result to extend the prompt "
                f"{prompt!r}, the turn ending with {end_of_turn!r}, got {once!r}"
            )
        if twice != f"{once}b{end_of_turn}{head}r{tail}":
            raise ValueError(
                f"chat template: rewrites earlier turns, expected {once!r} to be kept when a call "
                f"is added, got {twice!r}"
            )
        encode = self.tokenizer.encode
        return encode(head, allow_special=True), encode(tail, allow_special=True)


def render(
    template: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The template's text for a conversation, with the header of the next assistant turn.

    Args:
      template: a Jinja chat template.
      messages: {'role', 'content'} each.
      tools: function schemas.
    """
    rendered, _ = _renderer()(
        [[dict(message) for message in messages]],
        tools=[dict(tool) for tool in tools] or None,
        chat_template=template,
        add_generation_prompt=True,
    )
    return str(rendered[0])


def _renderer() -> Any:
    """Hugging Face's own renderer, imported at first use (it takes seconds).

    Without PyTorch the import logs advice at warning level; logging is off meanwhile, because no
    logger of the library can be configured before it is imported.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    finally:
        logging.disable(previous)
    return render_jinja_template
