"""Advantages of trajectories within their group, the tree's trajectories (GRPO)."""

from collections.abc import Sequence

import numpy as np

from elpo_jax.config import CreditConfig
from elpo_jax.credit.hierarchical import standardize
from elpo_jax.credit.tokens import to_tokens
from elpo_jax.rollout.tree import Tree


def group_normalized(trees: Sequence[Tree], config: CreditConfig) -> list[list[np.ndarray]]:
    """GRPO's credit: A = (R - mean) / (std + eps) over a tree's trajectories, for all their tokens.

    std is the sample's (ddof 1), as verl has it (https://github.com/volcengine/verl); a group
    without variance, or of one, gets exactly 0. A node that several trajectories share gets the
    mean of their advantages, each weighted by 1/|tau|, the weight of the node's tokens in that
    trajectory's mean over policy tokens: away from the clip, the gradient of the objective (ELPO,
    https://arxiv.org/abs/2602.09598, Eq. 1) is then that of separate trajectories.

    Returns:
      Per tree, per node: float64 [T] over the step's tokens, 0 where the environment wrote.
    """
    return [to_tokens(tree, _node_values(tree, config.eps)) for tree in trees]


def _node_values(tree: Tree, eps: float) -> np.ndarray:
    advantages = standardize([leaf.reward for leaf in tree.leaves], eps, ddof=1)
    policy_tokens = [int(node.step.is_policy.sum()) for node in tree.nodes]
    total, weight = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    for leaf, advantage in zip(tree.leaves, advantages, strict=True):
        path = tree.path(leaf.node)
        share = 1.0 / max(sum(policy_tokens[node] for node in path), 1)
        total[path] += share * advantage
        weight[path] += share
    return total / weight
