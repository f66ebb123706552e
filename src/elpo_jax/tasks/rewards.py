"""Rewards: a sum of terms, each a function of how an episode ended.

An episode that ended without an answer counts as a verdict of no success. Success itself is never
read back from a reward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elpo_jax.config import RewardConfig
from elpo_jax.tasks.base import Verdict


@dataclass(frozen=True)
class Ending:
    """What a reward may depend on, of the whole trajectory: a branch counts with its prefix.

    Attributes:
      verdict: the verifier's.
      turns: the policy's.
      tokens: of the response, the environment's included.
      max_tokens: that the response may have.
    """

    verdict: Verdict
    turns: int
    tokens: int
    max_tokens: int


Term = Callable[[Ending, RewardConfig], float]


def plus_minus_one(ending: Ending, config: RewardConfig) -> float:
    """1 for a success, -1 for a failure (Open-AgentRL's unshaped form)."""
    return 1.0 if ending.verdict.success else -1.0


def zero_one(ending: Ending, config: RewardConfig) -> float:
    """1 for a success, 0 for a failure."""
    return 1.0 if ending.verdict.success else 0.0


def fraction(ending: Ending, config: RewardConfig) -> float:
    """The verdict's score: the fraction of tests passed."""
    return ending.verdict.score


def demyagent(ending: Ending, config: RewardConfig) -> float:
    """1 for a success; a failure is the less bad the more turns it took, from -1 to -0.6.

    min(-0.6, -1 + 0.1 (turns - 1)), which is DemyAgent's min(-0.6, -1 + 0.1 (turns - 2) / 2) with
    the turns of all roles counted as it does (https://arxiv.org/abs/2510.11701).
    """
    return 1.0 if ending.verdict.success else min(-0.6, -1.0 + 0.1 * (ending.turns - 1))


def overlong(ending: Ending, config: RewardConfig) -> float:
    """From 0 down to -1 over the last `overlong_buffer` tokens that a response may have.

    min(0, -(tokens - (max_tokens - buffer)) / buffer), DAPO's soft punishment
    (https://arxiv.org/abs/2503.14476, Eq. 13).
    """
    buffer = config.overlong_buffer
    return min(0.0, -(ending.tokens - (ending.max_tokens - buffer)) / buffer)


TERMS: Mapping[str, Term] = {
    term.__name__: term for term in (plus_minus_one, zero_one, fraction, demyagent, overlong)
}


def looks_at_tests(config: RewardConfig) -> bool:
    """Whether it matters which tests a program passes that doesn't pass all."""
    return fraction.__name__ in config.terms


def reward(ending: Ending, config: RewardConfig) -> float:
    """The sum of the config's terms."""
    return sum(TERMS[name](ending, config) for name in config.terms)
