"""Hierarchical advantage attribution (ELPO 4.2, Eq. 6-10).

Source: https://arxiv.org/abs/2602.09598. Credit is float64 on the host: in float32, rounding
divided by eps would give equal siblings advantages of several hundredths.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from elpo_jax.config import CreditConfig
from elpo_jax.credit.tokens import to_tokens
from elpo_jax.rollout.tree import ROOT, Tree

ROUNDING = 1e-12  # values closer than this, relative to the largest, are equal


class HierarchicalAdvantages(NamedTuple):
    """Values of a tree's nodes.

    Attributes:
      step_reward: float64 [N], r of Eq. 6.
      branch: float64 [N], A_b of Eq. 7.
      trajectory: float64 [N], A_t of Eq. 8 and 9.
      hierarchical: float64 [N], A_hier of Eq. 10.
    """

    step_reward: np.ndarray
    branch: np.ndarray
    trajectory: np.ndarray
    hierarchical: np.ndarray


def hierarchical_advantages(
    parents: ArrayLike, rewards: ArrayLike, lambda_tree: float = 0.5, eps: float = 1e-6
) -> HierarchicalAdvantages:
    """Step rewards and advantages of every node of a rollout tree.

    Eq. 6:  r(leaf) = R;  r(s) = mean of r over the direct children of s.
    Eq. 7:  A_b(c) = (r(c) - mean) / (std + eps) over c and its siblings. An only child inherits its
            parent's A_b (0 below the root).
    Eq. 8:  A_t(leaf) = (R - mean) / (std + eps) over all leaves.
    Eq. 9:  A_t(s) = mean of A_t over the leaves below s.
    Eq. 10: A_hier = lambda_tree A_b + (1 - lambda_tree) A_t.

    std is the population's (ddof 0). Values that are equal up to rounding get exactly 0.

    Args:
      parents: int [N], -1 for the root's children, parents before children.
      rewards: float [N], read at the leaves (nodes without children) only.
      lambda_tree: weight of the branch-level advantage, in [0, 1].
      eps: added to each standard deviation, above 0.

    Returns:
      `HierarchicalAdvantages`, float64 [N] each.

    Raises:
      ValueError: for wrong shapes or dtypes, a parent that does not precede its child, a reward
        that is not finite at a leaf, or a setting outside its range.
    """
    parent, reward = _checked(parents, rewards)
    if not 0.0 <= lambda_tree <= 1.0:
        raise ValueError(f"lambda_tree: expected a number in [0, 1], got {lambda_tree}")
    if not (eps > 0.0 and math.isfinite(eps)):
        raise ValueError(f"eps: expected a finite number above 0, got {eps}")
    size = len(parent)
    children: list[list[int]] = [[] for _ in range(size + 1)]  # the root's at [ROOT], the last
    for node, above in enumerate(parent):
        children[above].append(node)
    leaves = [node for node in range(size) if not children[node]]
    for node in leaves:
        if not math.isfinite(reward[node]):
            raise ValueError(
                f"rewards[{node}]: expected a finite reward at a leaf, got {reward[node]}"
            )

    step_reward = _step_rewards(children, reward)
    r = np.array(step_reward, np.float64)
    a_b = np.array(_branch(children, step_reward, eps), np.float64)
    a_t = np.array(_trajectory(children, leaves, reward, eps), np.float64)
    return HierarchicalAdvantages(r, a_b, a_t, lambda_tree * a_b + (1.0 - lambda_tree) * a_t)


def tree_advantages(tree: Tree, config: CreditConfig) -> HierarchicalAdvantages:
    """`hierarchical_advantages` of a rollout tree."""
    return hierarchical_advantages(tree.parents, tree.rewards, config.lambda_tree, config.eps)


def hierarchical(trees: Sequence[Tree], config: CreditConfig) -> list[list[np.ndarray]]:
    """ELPO's credit: A_hier of a token's node.

    Returns:
      Per tree, per node: float64 [T] over the step's tokens, 0 where the environment wrote.
    """
    return [to_tokens(tree, tree_advantages(tree, config).hierarchical) for tree in trees]


def standardize(values: Sequence[float], eps: float, ddof: int = 0) -> list[float]:
    """(x - mean) / (std + eps), and exactly 0 where all values are equal up to rounding.

    Args:
      values: any number of them.
      eps: added to the standard deviation.
      ddof: 0 for the population's standard deviation, 1 for the sample's.
    """
    array = np.array(values, np.float64)
    if array.size == 0 or np.ptp(array) <= ROUNDING * np.abs(array).max():
        return [0.0] * len(values)
    standardized: list[float] = ((array - array.mean()) / (array.std(ddof=ddof) + eps)).tolist()
    return standardized


def _step_rewards(children: list[list[int]], reward: list[float]) -> list[float]:
    """Eq. 6. `children` has the root's as its last entry."""
    values = list(reward)
    for node in reversed(range(len(values))):
        if kids := children[node]:
            # Taken from the first child, the mean of equal values is exact.
            first = values[kids[0]]
            values[node] = first + sum(values[kid] - first for kid in kids) / len(kids)
    return values


def _branch(children: list[list[int]], step_reward: list[float], eps: float) -> list[float]:
    """Eq. 7."""
    values = [0.0] * len(step_reward)
    for node in range(ROOT, len(values)):  # parents first, so that only children can inherit
        siblings = children[node]
        if len(siblings) > 1:
            advantages = standardize([step_reward[each] for each in siblings], eps)
            for sibling, advantage in zip(siblings, advantages, strict=True):
                values[sibling] = advantage
        elif siblings and node != ROOT:
            values[siblings[0]] = values[node]
    return values


def _trajectory(
    children: list[list[int]], leaves: list[int], reward: list[float], eps: float
) -> list[float]:
    """Eq. 8 at the leaves, Eq. 9 above them."""
    values, through = [0.0] * len(reward), [1] * len(reward)
    advantages = standardize([reward[leaf] for leaf in leaves], eps)
    for leaf, advantage in zip(leaves, advantages, strict=True):
        values[leaf] = advantage
    for node in reversed(range(len(values))):
        if kids := children[node]:
            through[node] = sum(through[kid] for kid in kids)
            values[node] = sum(through[kid] * values[kid] for kid in kids) / through[node]
    return values


def _checked(parents: ArrayLike, rewards: ArrayLike) -> tuple[list[int], list[float]]:
    parent, reward = np.asarray(parents), np.asarray(rewards)
    if parent.ndim != 1 or reward.shape != parent.shape:
        raise ValueError(
            "parents, rewards: expected two arrays of one shape [N], got "
            f"{parent.shape} and {reward.shape}"
        )
    if parent.size and parent.dtype.kind not in "iu":
        raise ValueError(f"parents: expected integers, got dtype {parent.dtype}")
    if reward.dtype.kind not in "iuf":
        raise ValueError(f"rewards: expected real numbers, got dtype {reward.dtype}")
    wrong = np.flatnonzero((parent < ROOT) | (parent >= np.arange(parent.size)))
    if wrong.size:
        node = int(wrong[0])
        raise ValueError(
            f"parents[{node}]: expected {ROOT} or an earlier node, got {int(parent[node])}"
        )
    return parent.astype(np.int64).tolist(), reward.astype(np.float64).tolist()
