"""Independent rollouts: the strategy of GRPO and its kin, and of evaluation."""

from elpo_jax.config import RolloutConfig
from elpo_jax.rollout.controller import Controller, Wave
from elpo_jax.rollout.tree import ROOT, Tree


def independent(tree: Tree, config: RolloutConfig) -> Controller:
    """Asks for `config.budget` full trajectories in one wave.

    Raises:
      ValueError: for a budget below 1.
    """
    if config.budget < 1:
        raise ValueError(f"rollout.budget: expected at least 1, got {config.budget}")
    return _grow(config.budget)


def _grow(budget: int) -> Controller:
    yield Wave((ROOT,) * budget)
