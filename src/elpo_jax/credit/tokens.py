"""From values of nodes to values of tokens."""

import numpy as np

from elpo_jax.rollout.tree import Tree


def to_tokens(tree: Tree, values: np.ndarray) -> list[np.ndarray]:
    """Gives every policy token its node's value.

    Args:
      tree: N nodes.
      values: float64 [N].

    Returns:
      Per node: float64 [T] over the step's tokens, 0 where the environment wrote.

    Raises:
      ValueError: for another number of values than nodes.
    """
    if values.shape != (len(tree.nodes),):
        raise ValueError(f"values: expected shape ({len(tree.nodes)},), got {values.shape}")
    return [
        np.where(node.step.is_policy, value, 0.0)
        for node, value in zip(tree.nodes, values, strict=True)
    ]
