"""The rules of an episode: turns, tool calls, observations and ends. No sampling, no threads.

The scheduler samples a turn, hands it to `finish_turn`, runs the `PendingCalls` that may come of
it (on any thread), hands the observations to `observe`, and so on until an `Outcome` has an `end`.
An answer is put before `verify` (on any thread); `conclude` makes the rollout. Tokens are taken as
they were sampled; text is only read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from elpo_jax.config import EpisodeConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import Chat
from elpo_jax.rollout.tool_calls import ALL, FIRST, CallParser, Requests
from elpo_jax.rollout.tree import ROOT, Exchange, Rollout, Step, ToolCall, Tree
from elpo_jax.tasks.base import Message, Suite, Task, Verdict
from elpo_jax.tasks.rewards import Ending
from elpo_jax.tools.base import Observation, Tool, ToolFailure, as_failure, guarded_call

# Stands after the answer to a turn's first call, where further ones aren't run.
NOT_RUN = "\n[only the first call of a turn is run]"
NO_ANSWER = Verdict(success=False, extracted=None)  # on an episode that ended without one


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
      turns: turns so far. Each one made calls that were answered, or the episode would be over.
      calls: calls so far, those answered with an error included.
      prompt_length: tokens of the prompt.
      length: tokens so far, the prompt included.
      states: tool states by name; a tool that wasn't called yet has none.
      max_calls: calls that the episode may make.
    """

    turns: int
    calls: int
    prompt_length: int
    length: int
    states: Mapping[str, Any]
    max_calls: int


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
class PendingCalls:
    """A turn's calls to be run; `run` is safe on any thread and may be repeated after a
    `ToolFailure`.

    Attributes:
      requests: what the turn asks for; at least one call.
      tools: the suite's tools by name.
      states: tool states before the calls, by name.
    """

    requests: Requests
    tools: Mapping[str, Tool]
    states: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many calls there are."""
        return len(self.requests.calls)

    def run(self) -> tuple[Mapping[str, Any], list[Observation]]:
        """The tool states after the calls, and the answer to each of them, in order.

        Raises:
          ToolFailure: when a tool raised anything at all, or returned something else.
        """
        states, observations = self.states, []
        for request in self.requests.calls:
            if isinstance(request, Observation):
                observations.append(request)
                continue
            # A copy: what the policy wrote is kept in the tree, whatever the tool does to it.
            arguments = json.loads(json.dumps(request.arguments))
            states, observation = guarded_call(self.tools[request.name], states, arguments)
            observations.append(observation)
        return states, observations

    def __str__(self) -> str:
        return "; ".join(
            request.text
            if isinstance(request, Observation)
            else f"{request.name}({json.dumps(request.arguments)[:80]})"
            for request in self.requests.calls
        )


class Environment:
    """A suite's tasks under a chat template and the caps of an episode."""

    def __init__(
        self, suite: Suite, chat: Chat, limits: EpisodeConfig, reward: Callable[[Ending], float]
    ):
        """Checks the suite's tools (see `CallParser`) and the template.

        Raises:
          UsageError: all calls of a turn are to be run, and the template has no place for their
            results.
        """
        if limits.calls_in_turn == ALL and chat.between_tools is None:
            raise UsageError(
                [
                    f"episode.calls_in_turn: expected {FIRST!r}, since the chat template has no "
                    f"place for several tool results after a turn, got {ALL!r}"
                ]
            )
        self._suite = suite
        self._chat = chat
        self._limits = limits
        self._reward = reward
        self._parser = CallParser(suite.tools, chat.call_form, limits.calls_in_turn)

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
        return Progress(0, 0, prompt_length, prompt_length, {}, max_calls)

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
        steps = [tree.nodes[i].step for i in tree.path(node)]
        return replace(
            start,
            turns=len(steps),
            calls=sum(len(each.exchanges) for each in steps),
            length=start.length + sum(len(each.tokens) for each in steps),
            states=step.states,
        )

    def turn_budget(self, progress: Progress) -> int:
        """Tokens that the next turn may have, its end-of-turn token included; at least 1."""
        return min(self._limits.max_turn_tokens, self._limits.max_length - progress.length)

    def finish_turn(self, progress: Progress, turn: Turn) -> Outcome | PendingCalls:
        """Reads a turn: an outcome if the episode ends with it, else the calls to run.

        The last turn allowed must be the answer: its calls are not run. Neither are those of a turn
        with more calls than the episode may still make, or of one that ended with another token
        than the template's end of turn, such as `<|endoftext|>`: it is as it was sampled, and no
        template renders a conversation that goes on so.

        Raises:
          ValueError: for a turn that is empty, over its budget, or neither stopped nor cut.
        """
        self._check_turn(progress, turn)
        requests = self._parser.parse(self._text(turn.tokens, turn.stopped))
        if not turn.stopped:
            return self._final(progress, turn, requests, "length")
        if not requests.calls:
            return self._final(progress, turn, requests, "answer")
        if turn.tokens[-1] != self._chat.end_of_turn:
            return self._final(progress, turn, requests, "eos")
        if progress.turns + 1 >= self._limits.max_turns:
            return self._final(progress, turn, requests, "turns")
        if progress.calls + len(requests.calls) > progress.max_calls:
            return self._final(progress, turn, requests, "calls")
        return PendingCalls(requests, self._parser.tools, progress.states)

    def observe(
        self,
        progress: Progress,
        turn: Turn,
        pending: PendingCalls,
        states: Mapping[str, Any],
        observations: Sequence[Observation],
    ) -> Outcome:
        """Appends the answers to a turn's calls.

        Observations that leave no room for another turn are dropped and end the episode.

        Args:
          progress: as given to `finish_turn`.
          turn: the turn that called.
          pending: what `finish_turn` returned.
          states: tool states after the calls.
          observations: the answer to each call; each is cut to `max_observation_chars`.
        """
        limit = self._limits.max_observation_chars
        texts = [clip_text(each.text, limit) for each in observations]
        if pending.requests.has_more:
            texts[-1] += NOT_RUN
        answer = np.array(self._chat.tool_result_ids(*texts), np.int32)
        length = progress.length + len(turn.tokens) + len(answer)
        if length >= self._limits.max_length:
            return self._final(progress, turn, pending.requests, "observation")
        seen = [replace(each, text=text) for each, text in zip(observations, texts, strict=True)]
        step = _step(turn, _exchanges(pending.requests, seen), states, answer, is_open=True)
        after = replace(
            progress,
            turns=progress.turns + 1,
            calls=progress.calls + len(texts),
            length=length,
            states=states,
        )
        return Outcome(step, after, None)

    def verify(self, task: Task, answer: Step) -> Verdict:
        """Puts an answer before the suite's verifier; safe on any thread.

        Raises:
          ToolFailure: when the verifier raised anything at all, or returned something else.
        """
        text = self._text(answer.tokens[answer.is_policy], True)
        what = f"verifier of suite {self._suite.name!r}"
        with as_failure(what):
            verdict = self._suite.verify(task, text)
            _check_verdict(verdict)
        return verdict

    def conclude(
        self,
        task: Task,
        ordinal: int,
        parent: int,
        steps: Sequence[Step],
        progress: Progress,
        end: str,
        verdict: Verdict = NO_ANSWER,
    ) -> Rollout:
        """The rollout of an episode that ended.

        Args:
          task: its task.
          ordinal: of the rollout.
          parent: node that it continues, or ROOT.
          steps: the new ones.
          progress: where the whole trajectory stands.
          end: why it ended.
          verdict: on the answer, if it ended with one.
        """
        ending = Ending(
            verdict=verdict,
            turns=progress.turns,
            tokens=progress.length - progress.prompt_length,
            max_tokens=self._limits.max_length - progress.prompt_length,
        )
        reward = float(self._reward(ending))
        return Rollout(
            ordinal, parent, tuple(steps), end, verdict.success, reward, verdict.extracted
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

    def _final(self, progress: Progress, turn: Turn, requests: Requests, end: str) -> Outcome:
        """The outcome of a turn that ends the episode, its calls unanswered."""
        nothing = np.zeros(0, np.int32)
        step = _step(turn, _exchanges(requests, []), progress.states, nothing, is_open=False)
        length = progress.length + len(turn.tokens)
        after = replace(progress, turns=progress.turns + 1, length=length)
        return Outcome(step, after, end)


def _check_verdict(verdict: Any) -> None:
    """Raises ToolFailure unless a reward, JSON and votes can be made of what a verifier gave."""
    if not isinstance(verdict, Verdict):
        raise ToolFailure(f"expected a Verdict, got {type(verdict).__name__}")
    passed = verdict.passed
    for name, is_right in (
        ("success", isinstance(verdict.success, bool | np.bool_)),
        ("extracted", isinstance(verdict.extracted, str | None)),
        ("passed", passed is None or (isinstance(passed, int | float) and 0 <= passed <= 1)),
    ):
        if not is_right:
            got = repr(getattr(verdict, name))[:80]
            raise ToolFailure(f"expected a Verdict, got one with {name}={got}")


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


def _exchanges(requests: Requests, observations: Sequence[Observation]) -> tuple[Exchange, ...]:
    """The calls of a turn, with their answers as far as there are any."""
    return tuple(
        Exchange(request if isinstance(request, ToolCall) else None, observation)
        for request, observation in zip_longest(requests.calls, observations)
    )


def _step(
    turn: Turn,
    exchanges: tuple[Exchange, ...],
    states: Mapping[str, Any],
    answer: np.ndarray,
    is_open: bool,
) -> Step:
    unsampled = np.zeros(len(answer), np.float32)
    return Step(
        tokens=np.concatenate([turn.tokens, answer]).astype(np.int32),
        is_policy=np.arange(len(turn.tokens) + len(answer)) < len(turn.tokens),
        log_probs=np.concatenate([turn.log_probs, unsampled]).astype(np.float32),
        entropies=np.concatenate([turn.entropies, unsampled]).astype(np.float32),
        exchanges=exchanges,
        states=states,
        is_open=is_open,
    )
