"""Rewards: functions from a verifier's verdict to a number.

An episode that ended without an answer counts as a verdict of no success. Success itself is never
read back from a reward.
"""

from collections.abc import Callable

from elpo_jax.tasks.base import Verdict

Reward = Callable[[Verdict], float]


def plus_minus_one(verdict: Verdict) -> float:
    """1 for a success, -1 for a failure (Open-AgentRL's unshaped form)."""
    return 1.0 if verdict.success else -1.0


def zero_one(verdict: Verdict) -> float:
    """1 for a success, 0 for a failure."""
    return 1.0 if verdict.success else 0.0


BY_SUCCESS = {"plus_minus_one", "zero_one"}  # the others look at the score too
REWARDS: dict[str, Reward] = {"plus_minus_one": plus_minus_one, "zero_one": zero_one}


def get_reward(name: str) -> Reward:
    """The reward function of that name.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in REWARDS:
        raise ValueError(f"suite.reward: expected one of {sorted(REWARDS)}, got {name!r}")
    return REWARDS[name]
