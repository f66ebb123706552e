"""The rules of an episode: turns, tool calls, observations and ends. No sampling, no threads.

The scheduler samples a turn, hands it to `finish_turn`, runs the `PendingCall` that may come of it
(on any thread), hands the observation to `observe`, and so on until an `Outcome` has an `end`;
`conclude` makes the rollout. Tokens are taken as they were sampled; text is only read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elpo_jax.config import EpisodeConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import Chat
from elpo_jax.rollout.tool_calls import CallParser
from elpo_jax.rollout.tree import ROOT, Rollout, Step, ToolCall, Tree
from elpo_jax.tasks.base import Message, Suite, Task, Verdict
from elpo_jax.tools.base import Observation, Tool, guarded_call


@dataclass(frozen=True, eq=False)
class Turn:
    """An assistant turn as sampled.

    Attributes:
      tokens: int32 [T], T >= 1, the end-of-turn token included.
      log_probs: float32 [T].
      entropies: float32 [T] nats.
      stopped: the last token ends the turn; else the turn was cut at its budget.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray
    stopped: bool


@dataclass(frozen=True)
class Progress:
    """Where an episode stands before its next turn.

    Attributes:
      turns: turns so far. Each one made a call that was answered, or the episode would be over.
      length: tokens so far, the prompt included.
      states: tool states by name; a tool that wasn't called yet has none.
      max_calls: calls that the episode may make.
    """

    turns: int
    length: int
    states: Mapping[str, Any]
    max_calls: int

    @property
    def calls(self) -> int:
        """Calls so far, those answered with an error included."""
        return self.turns


@dataclass(frozen=True)
class Outcome:
    """What a turn came to.

    Attributes:
      step: the turn with its observation.
      progress: where the episode stands after it.
      end: None when the episode goes on; else 'answer', 'length', 'turns', 'calls', 'observation'
        or 'eos'.
    """

    step: Step
    progress: Progress
    end: str | None


@dataclass(frozen=True)
class PendingCall:
    """A call to be run; `run` is safe on any thread and may be repeated after a `ToolFailure`.

    Attributes:
      request: the call, or the error observation that a bad one gets.
      tools: the suite's tools by name.
      states: tool states before the call, by name.
    """

    request: ToolCall | Observation
    tools: Mapping[str, Tool]
    states: Mapping[str, Any]

    def run(self) -> tuple[Mapping[str, Any], Observation]:
        """The tool states after the call, and the answer.

        Raises:
          ToolFailure: when the tool raised anything at all, or returned something else.
        """
        if isinstance(self.request, Observation):
            return self.states, self.request
        # A copy: what the policy wrote is kept in the tree, whatever the tool does to it.
        arguments = json.loads(json.dumps(self.request.arguments))
        return guarded_call(self.tools[self.request.name], self.states, arguments)

    def __str__(self) -> str:
        if isinstance(self.request, Observation):
            return self.request.text
        return f"{self.request.name}({json.dumps(self.request.arguments)[:80]})"


class Environment:
    """A suite's tasks under a chat template and the caps of an episode."""

    def __init__(
        self, suite: Suite, chat: Chat, limits: EpisodeConfig, reward: Callable[[Verdict], float]
    ):
        """Checks the suite's tools (see `CallParser`)."""
        self._suite = suite
        self._chat = chat
        self._limits = limits
        self._reward = reward
        self._parser = CallParser(suite.tools, chat.call_form)

    def prompt_ids(self, task: Task) -> np.ndarray:
        """int32 [P]: the suite's system prompt, the question and the first turn's header."""
        return np.array(self._chat.prompt_ids(self.prompt(task)), np.int32)

    def prompt(self, task: Task) -> list[Message]:
        """The messages before the first turn."""
        question = {"role": "user", "content": task.question}
        if not self._suite.system_prompt:
            return [question]
        return [{"role": "system", "content": self._suite.system_prompt}, question]

    def begin(self, task: Task, prompt_length: int) -> Progress:
        """Where an episode stands before its first turn.

        Raises:
          UsageError: the prompt leaves no room for a turn.
        """
        if prompt_length >= self._limits.max_length:
            raise UsageError(
                [
                    f"episode.max_length: expected more than the {prompt_length} tokens of the "
                    f"prompt of {task.id}, got {self._limits.max_length}"
                ]
            )
        max_calls = self._limits.max_calls
        if self._limits.spare_calls is not None and task.calls is not None:
            max_calls = min(max_calls, task.calls + self._limits.spare_calls)
        return Progress(0, prompt_length, {}, max_calls)

    def resume(self, tree: Tree, node: int) -> Progress:
        """Where an episode stands after `node`, or at the start for ROOT.

        Raises:
          ValueError: when the episode ended there.
        """
        start = self.begin(tree.task, len(tree.prompt))
        if node == ROOT:
            return start
        step = tree.nodes[node].step
        if not step.is_open:
            raise ValueError(f"node {node}: expected a step that can be continued, got a final one")
        path = tree.path(node)
        length = start.length + sum(len(tree.nodes[i].step.tokens) for i in path)
        return replace(start, turns=len(path), length=length, states=step.states)

    def turn_budget(self, progress: Progress) -> int:
        """Tokens that the next turn may have, its end-of-turn token included; at least 1."""
        return min(self._limits.max_turn_tokens, self._limits.max_length - progress.length)

    def finish_turn(self, progress: Progress, turn: Turn) -> Outcome | PendingCall:
        """Reads a turn: an outcome if the episode ends with it, else the call to run.

        The last turn allowed must be the answer: its call is not run. Nor is a call that ended
        with another token than the template's end of turn, such as `<|endoftext|>`: it is as it was
        sampled, and no template renders a conversation that goes on so.

        Raises:
          ValueError: for a turn that is empty, over its budget, or neither stopped nor cut.
        """
        self._check_turn(progress, turn)
        request = self._parser.parse(self._text(turn.tokens, turn.stopped))
        if not turn.stopped:
            return self._final(progress, turn, request, "length")
        if request is None:
            return self._final(progress, turn, request, "answer")
        if turn.tokens[-1] != self._chat.end_of_turn:
            return self._final(progress, turn, request, "eos")
        if progress.turns + 1 >= self._limits.max_turns:
            return self._final(progress, turn, request, "turns")
        if progress.calls >= progress.max_calls:
            return self._final(progress, turn, request, "calls")
        return PendingCall(request, self._parser.tools, progress.states)

    def observe(
        self,
        progress: Progress,
        turn: Turn,
        pending: PendingCall,
        states: Mapping[str, Any],
        observation: Observation,
    ) -> Outcome:
        """Appends the answer to a turn's call.

        An observation that leaves no room for another turn is dropped and ends the episode.

        Args:
          progress: as given to `finish_turn`.
          turn: the turn that called.
          pending: what `finish_turn` returned.
          states: tool states after the call.
          observation: the answer; cut to `max_observation_chars`.
        """
        text = clip_text(observation.text, self._limits.max_observation_chars)
        answer = np.array(self._chat.tool_result_ids(text), np.int32)
        length = progress.length + len(turn.tokens) + len(answer)
        if length >= self._limits.max_length:
            return self._final(progress, turn, pending.request, "observation")
        step = _step(turn, pending.request, states, answer, Observation(text, observation.error))
        after = replace(progress, turns=progress.turns + 1, length=length, states=states)
        return Outcome(step, after, None)

    def conclude(
        self, task: Task, ordinal: int, parent: int, steps: Sequence[Step], end: str
    ) -> Rollout:
        """The rollout of an episode that ended; only an answer is put before the verifier."""
        verdict = Verdict(success=False, extracted=None)
        if end == "answer":
            last = steps[-1]
            verdict = self._suite.verify(task, self._text(last.tokens[last.is_policy], True))
        return Rollout(
            ordinal,
            parent,
            tuple(steps),
            end,
            verdict.success,
            float(self._reward(verdict)),
            verdict.extracted,
        )

    def _check_turn(self, progress: Progress, turn: Turn) -> None:
        budget = self.turn_budget(progress)
        tokens = len(turn.tokens)
        if not 1 <= tokens <= budget:
            raise ValueError(f"turn: expected 1 to {budget} tokens, got {tokens}")
        if turn.stopped != (turn.tokens[-1] in self._chat.stop_tokens):
            raise ValueError(
                f"turn: expected stopped={turn.stopped} to say whether the last token is one of "
                f"{self._chat.stop_tokens}, got {turn.tokens[-1]}"
            )
        if not turn.stopped and tokens < budget:
            raise ValueError(f"turn: expected a cut turn to fill its {budget} tokens, got {tokens}")

    def _text(self, tokens: np.ndarray, stopped: bool) -> str:
        return self._chat.tokenizer.decode(tokens[: len(tokens) - stopped].tolist())

    def _final(
        self, progress: Progress, turn: Turn, request: ToolCall | Observation | None, end: str
    ) -> Outcome:
        step = _step(turn, request, progress.states, np.zeros(0, np.int32), None)
        length = progress.length + len(turn.tokens)
        after = replace(progress, turns=progress.turns + 1, length=length)
        return Outcome(step, after, end)


def clip_text(text: str, limit: int) -> str:
    """Cuts the middle out of a text over `limit` characters; a marker says how much is gone.

    Lone surrogates, which no UTF-8 text can hold, become '?'.

    Raises:
      ValueError: for a limit below 2.
    """
    if limit < 2:
        raise ValueError(f"episode.max_observation_chars: expected at least 2, got {limit}")
    cut = len(text) - limit
    if cut > 0:
        tail = limit // 2
        text = f"{text[: limit - tail]}\n[{cut} characters cut]\n{text[len(text) - tail :]}"
    return text.encode(errors="replace").decode()


def _step(
    turn: Turn,
    request: ToolCall | Observation | None,
    states: Mapping[str, Any],
    answer: np.ndarray,
    observation: Observation | None,
) -> Step:
    unsampled = np.zeros(len(answer), np.float32)
    return Step(
        tokens=np.concatenate([turn.tokens, answer]).astype(np.int32),
        is_policy=np.arange(len(turn.tokens) + len(answer)) < len(turn.tokens),
        log_probs=np.concatenate([turn.log_probs, unsampled]).astype(np.float32),
        entropies=np.concatenate([turn.entropies, unsampled]).astype(np.float32),
        is_call=request is not None,
        call=request if isinstance(request, ToolCall) else None,
        observation=observation,
        states=states,
        is_open=observation is not None,
    )
