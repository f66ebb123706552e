"""Credit: advantages per token as functions of a batch of trees."""

from elpo_jax.credit.group import group_normalized
from elpo_jax.credit.hierarchical import (
    HierarchicalAdvantages,
    hierarchical,
    hierarchical_advantages,
    tree_advantages,
)
from elpo_jax.credit.tokens import to_tokens

__all__ = [
    "HierarchicalAdvantages",
    "group_normalized",
    "hierarchical",
    "hierarchical_advantages",
    "to_tokens",
    "tree_advantages",
]
