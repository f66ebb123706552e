"""Conversations as token ids: the prompt, and what follows each assistant turn.

An episode is never rendered twice. The template is asked once, at construction, what it puts around
a tool result; after that the ids of a tool result are those of its text between two constant runs.
The newline that templates put after the end-of-turn token belongs to the first of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elpo_jax.config import STOP_TOKENS
from elpo_jax.policy.chat_layout import AS_RENDERED, AS_SAMPLED, derive_layout, with_thinking
from elpo_jax.policy.conversation import check_holes, checked_messages, masked, segments
from elpo_jax.policy.template import Template, split_holes
from elpo_jax.policy.tokenizer import Tokenizer
from elpo_jax.tasks.base import Message
from elpo_jax.tools.call_forms import CallForm

EMBEDDED_TEMPLATE = Path(__file__).parent / "embedded" / "chat_template.jinja"


class Chat:
    """A chat template over a tokenizer.

    Attributes:
      tokenizer: the tokenizer.
      end_of_turn: the id that ends an assistant turn.
      stop_tokens: ids at which a turn ends when it is sampled, the end of turn first.
      call_form: how the template writes tool calls.
      around_tool: the texts before and after a tool result, see `tool_result_ids`.
      between_tools: the text between the results of a turn's calls; None where the template has no
        place for several.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        variables: Mapping[str, Any] | None = None,
        thinking: bool | None = None,
        earlier_turns: str = AS_RENDERED,
        other_ends: Sequence[int] = (),
    ):
        """Finds out what the template does, and checks it, with probe conversations.

        Args:
          tokenizer: the tokenizer.
          template: a Jinja chat template, as checkpoints on the Hugging Face hub carry it.
          tools: function schemas for the system turn.
          variables: what else the template reads: special tokens by name.
          thinking: the template's `enable_thinking`; None: the template decides.
          earlier_turns: 'as_rendered': a template that rewrites earlier turns is refused;
            'as_sampled': it isn't, and turns stay as they were sampled.
          other_ends: ids that end what the policy writes, besides the template's end of turn.

        Raises:
          ValueError: when the template can't be used (see `derive_layout`) or doesn't read
            `thinking`; there are too many ends.
        """
        if earlier_turns not in (AS_RENDERED, AS_SAMPLED):
            raise ValueError(
                f"earlier_turns: expected {AS_RENDERED!r} or {AS_SAMPLED!r}, got {earlier_turns!r}"
            )
        self.tokenizer = tokenizer
        self._tools = tuple(tools)
        self._earlier_turns = earlier_turns
        self._template = with_thinking(Template(template, dict(variables or {})), tools, thinking)
        self._layout = derive_layout(self._template, self._tools, tokenizer, earlier_turns)
        self.end_of_turn = self._layout.end_of_turn
        self.stop_tokens = tuple(dict.fromkeys([self.end_of_turn, *other_ends]))
        if len(self.stop_tokens) > STOP_TOKENS:
            raise ValueError(
                f"eos_token_id: expected at most {STOP_TOKENS} ids that end a turn, the chat "
                f"template's with them, got {len(self.stop_tokens)}"
            )
        self.call_form: CallForm = self._layout.call_form
        self.around_tool = self._layout.around_tool
        self.between_tools = self._layout.between_tools
        head, tail = self.around_tool
        self._around_tool_ids = self._trusted(head), self._trusted(tail)
        self._between_tools_ids = self._trusted(self.between_tools or "")

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to and with the header of the next assistant turn.

        Control strings in the content of user and tool messages stay text.

        Args:
          messages: {'role', 'content'} each.

        Raises:
          ValueError: when the template does not render every message exactly once.
        """
        rendered = self._template.render(masked(messages), self._tools)
        check_holes(split_holes(rendered)[1], messages)
        return self._told(rendered, messages)

    def tool_result_ids(self, *texts: str) -> list[int]:
        """Ids from behind the end-of-turn token of a turn with calls to the first of the next turn.

        Control strings in `texts` stay text.

        Args:
          texts: the result of each call, in order.

        Raises:
          ValueError: for several where the template has no place for them, or none.
        """
        if not texts or (len(texts) > 1 and self.between_tools is None):
            raise ValueError(f"tool_result_ids: expected one text, got {len(texts)}")
        head, tail = self._around_tool_ids
        ids = list(head)
        for number, text in enumerate(texts):
            ids += self._between_tools_ids if number else []
            ids += self._content({"role": "tool", "content": text})
        return [*ids, *tail]

    def demonstration(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """A whole conversation, put together as an episode is.

        Args:
          messages: the prompt's messages, then assistant, tool, assistant, ..., assistant. A turn
            is its content, taken as sampled, or the one call in its `tool_calls`.

        Returns:
          ids: int32 [T].
          is_policy: bool [T], true for assistant text and its end-of-turn tokens.

        Raises:
          ValueError: when assistant and tool messages do not alternate to a last assistant one, or
            a turn has a content beside its call, or several calls.
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
        runs = [(self.prompt_ids(messages[:start]), False)]
        for message in messages[start:]:
            if message["role"] == "assistant":
                text = self._turn_text(message)
                runs.append(([*self._trusted(text), self.end_of_turn], True))
            else:
                runs.append((self.tool_result_ids(message["content"]), False))
        return _joined(runs)

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """A whole conversation from elsewhere, as the template renders it.

        Several user turns and neighbouring tool messages are allowed. Control strings in the
        content of user and tool messages stay text; system and assistant messages are trusted.

        Args:
          messages: of roles 'system', 'user', 'assistant' and 'tool', the last an assistant's;
            {'role', 'content'}, and in assistant ones 'tool_calls' in OpenAI's form (arguments an
            object, or JSON text of one) and 'reasoning_content'. Keys that are None count as left
            out.
          tools: function schemas of this conversation, bare or in OpenAI's form.

        Returns:
          ids: int32 [T], up to the last end-of-turn token.
          is_policy: bool [T], true for assistant text, calls and end-of-turn tokens.

        Raises:
          ValueError: for messages of another shape; the template leaves out a part of one; it
            rewrites earlier turns (with earlier_turns='as_sampled' each turn is taken as rendered
            when it was the newest); a turn holds its end-of-turn token.
        """
        checked = checked_messages(messages)
        runs = []
        for text, is_policy in segments(
            self._template, self._layout, checked, tools, self._earlier_turns
        ):
            if not is_policy:
                runs.append((self._told(text, checked), False))
                continue
            ids = self._trusted(text)
            if self.end_of_turn in ids:
                raise ValueError(
                    f"messages: expected no {self._layout.ending!r} inside an assistant turn, got "
                    f"{text!r:.160}"
                )
            runs.append(([*ids, self.end_of_turn], True))
        return _joined(runs)

    def _trusted(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allow_special=True)

    def _content(self, message: Message) -> list[int]:
        form = self._layout.contents[message["role"]]
        return self.tokenizer.encode(form.apply(message["content"]))

    def _told(self, rendered: str, messages: Sequence[Message]) -> list[int]:
        """Ids of a rendering with holes; each part on its own."""
        around, numbers = split_holes(rendered)
        ids = self._trusted(around[0])
        for number, text in zip(numbers, around[1:], strict=True):
            ids += self._content(messages[number])
            ids += self._trusted(text)
        return ids

    def _turn_text(self, message: Message) -> str:
        calls = message.get("tool_calls")
        if not calls:
            return str(message["content"])
        if len(calls) != 1 or message["content"]:
            raise ValueError(
                f"demonstration: expected one call and no content beside it, got {message}"
            )
        function = calls[0]["function"]
        return self.call_form.write(function["name"], function["arguments"])


def _joined(runs: Sequence[tuple[list[int], bool]]) -> tuple[np.ndarray, np.ndarray]:
    ids = [token for run, _ in runs for token in run]
    is_policy = [by_policy for run, by_policy in runs for _ in run]
    return np.array(ids, np.int32), np.array(is_policy, bool)
