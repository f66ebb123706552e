"""Episodes with a counting tool, for tests of their rules."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from elpo_jax.config import EpisodeConfig, RewardConfig
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.policy.tokenizer import SentencePieceTokenizer
from elpo_jax.rollout.episode import (
    NO_ANSWER,
    Environment,
    PendingCalls,
    Turn,
)
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tasks.rewards import reward
from elpo_jax.tools.base import Observation, ToolFailure

TOKENIZER = SentencePieceTokenizer()
TASK = Task("train/0", "count", "Count to 3.", {"value": "3"}, calls=3)


SCHEMA = {
    "name": "count",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"by": {"type": "integer"}},
        "required": ["by"],
    },
}


class Counter:
    """Adds to its state and says the sum; fails when told to."""

    name = "count"
    schema = SCHEMA

    def initial_state(self):
        return 0

    def call(self, state, arguments):
        if arguments["by"] == 13:
            raise ToolFailure("the counter broke")
        if arguments["by"] == 14:
            raise ZeroDivisionError("by zero")
        if arguments["by"] < 0:
            return state, Observation("error: negative", "tool_error")
        return state + arguments["by"], Observation(str(state + arguments["by"]))


@dataclass
class CountingSuite:
    name: str = "counting"
    system_prompt: str = "Use the tool."
    tools: tuple = (Counter(),)

    def verify(self, task, response):
        return Verdict(response == task.answer["value"], response)


CHAT = Chat(TOKENIZER, EMBEDDED_TEMPLATE.read_text(encoding="utf-8"), [SCHEMA])
LIMITS = EpisodeConfig(
    max_turns=4, max_calls=4, max_length=600, max_turn_tokens=100, max_observation_chars=40
)


REWARD = partial(reward, config=RewardConfig())


def environment(terms=("plus_minus_one",), chat=CHAT, **limits):
    shaped = partial(reward, config=RewardConfig(terms, overlong_buffer=20))
    return Environment(CountingSuite(), chat, replace(LIMITS, **limits), shaped)


def turn(text, stopped=True):
    ids = TOKENIZER.encode(text, allow_special=True) + [CHAT.end_of_turn] * stopped
    log_probs = -np.arange(1, len(ids) + 1, dtype=np.float32)
    return Turn(np.array(ids, np.int32), log_probs, 2 * -log_probs, stopped)


def call(by, name="count"):
    arguments = json.dumps({"name": name, "arguments": {"by": by}})
    return turn(f"<tool_call>\n{arguments}\n</tool_call>")


def play(env, turns, progress=None):
    """The outcomes of turns played one after the other."""
    outcomes = []
    progress = progress or env.begin(TASK, len(env.prompt_ids(TASK)))
    for played in turns:
        outcome = env.finish_turn(progress, played)
        if isinstance(outcome, PendingCalls):
            outcome = env.observe(progress, played, outcome, *outcome.run())
        outcomes.append(outcome)
        progress = outcome.progress
    return outcomes


def concluded(env, task, ordinal, parent, outcomes, end="answer"):
    """The rollout of outcomes, its last step judged if it is an answer."""
    last = outcomes[-1]
    verdict = env.verify(task, last.step) if end == "answer" else NO_ANSWER
    return env.conclude(task, ordinal, parent, steps(outcomes), last.progress, end, verdict)


def observation(outcome):
    """The answer to the only call of an outcome's turn."""
    (exchange,) = outcome.step.exchanges
    return exchange.observation


def steps(outcomes):
    return tuple(outcome.step for outcome in outcomes)
