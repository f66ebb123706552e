"""Controllers: generators that grow one task's tree.

A controller yields a `Wave` and receives the wave's leaves, in ordinal order, once all of them are
in the tree. It sees neither tokens being sampled nor slots; the scheduler multiplexes many
controllers and numbers the rollouts as they are requested.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from elpo_jax.config import RolloutConfig
from elpo_jax.rollout.tree import Leaf, Rollout, Tree


def nothing(rollout: Rollout) -> bool:
    """Retains no rollout."""
    return False


@dataclass(frozen=True)
class Wave:
    """Rollouts asked for together.

    Attributes:
      parents: the node each rollout continues, or ROOT; one rollout per entry.
      keep: ordinals of earlier rollouts whose nodes may be branched from after this wave or in it.
        What an earlier wave retained and `keep` doesn't name is released.
      retain: which of this wave's rollouts may be branched from later; their KV is kept until the
        next wave.
    """

    parents: tuple[int, ...]
    keep: frozenset[int] = frozenset()
    retain: Callable[[Rollout], bool] = nothing


Controller = Generator[Wave, list[Leaf], None]
Strategy = Callable[[Tree, RolloutConfig], Controller]
