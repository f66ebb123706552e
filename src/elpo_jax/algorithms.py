"""The table of algorithms: how trees grow, who gets the credit, how ratios are clipped.

All rows run at the same rollout budget on the same sampler and learner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from elpo_jax.config import CreditConfig, LossConfig
from elpo_jax.credit.group import group_normalized
from elpo_jax.credit.hierarchical import hierarchical
from elpo_jax.learner.base import LossSettings
from elpo_jax.rollout.bel import bel
from elpo_jax.rollout.controller import Strategy
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.tree import Tree

Credit = Callable[[Sequence[Tree], CreditConfig], list[list[np.ndarray]]]


@dataclass(frozen=True)
class Algorithm:
    """One row.

    Attributes:
      strategy: makes the controller that grows a task's tree.
      credit: a batch of trees -> advantages: per tree, per node, float64 [T] for its tokens.
      loss: clip bounds of the surrogate, and how tokens are aggregated.
    """

    strategy: Strategy
    credit: Credit
    loss: LossSettings


ALGORITHMS = {
    # ELPO, https://arxiv.org/abs/2602.09598, Table 2.
    "elpo": Algorithm(bel, hierarchical, LossSettings()),
    # GRPO, https://arxiv.org/abs/2402.03300, aggregated as printed there.
    "grpo": Algorithm(
        independent, group_normalized, LossSettings(eps_low=0.2, eps_high=0.2, eps_elc=0.0)
    ),
}


def loss_settings(algorithm: Algorithm, overrides: LossConfig) -> LossSettings:
    """The row's loss settings with those of the config that are set."""
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    return replace(algorithm.loss, **given)
