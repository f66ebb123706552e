"""One task's tree while it grows: numbers rollouts, gathers waves, replaces what was dropped."""

from dataclasses import dataclass

from elpo_jax.rollout.controller import Controller, Wave
from elpo_jax.rollout.tree import Leaf, Rollout, Tree


@dataclass(frozen=True)
class Request:
    """One rollout to make: its number within the task, and the node it continues (or ROOT)."""

    ordinal: int
    parent: int


class Growth:
    """Drives a controller wave by wave.

    Ordinals are given when a rollout is requested, and a wave is handed over whole and in ordinal
    order, so the order in which rollouts end is invisible to the controller. A rollout dropped for
    infrastructure failure is replaced, once its wave is otherwise done, under the next ordinal.

    Args:
      draw: the task's number in the run, part of its sampling keys.
      tree: the tree to grow.
      controller: what to sample.
      max_drops: dropped rollouts after which the task is abandoned.
    """

    def __init__(self, draw: int, tree: Tree, controller: Controller, max_drops: int):
        self.draw = draw
        self.tree = tree
        self.wave = Wave(())
        self.is_over = False
        self.is_abandoned = False
        self.drops = 0
        self._controller = controller
        self._max_drops = max_drops
        self._next_ordinal = 0
        self._outstanding = 0
        self._finished: list[Rollout] = []
        self._lost: list[Request] = []

    def start(self) -> list[Request]:
        """The first wave's requests."""
        requests = self._advance(None)
        self.tree.first_wave = len(requests)
        return requests

    def finish(self, rollout: Rollout) -> list[Request]:
        """Takes a rollout; returns the next requests if it was the last of its wave."""
        self._finished.append(rollout)
        return self._settle()

    def drop(self, request: Request) -> list[Request]:
        """Takes word that a rollout's tools broke; returns replacements once the wave is done."""
        self.drops += 1
        self._lost.append(request)
        return self._settle()

    def _settle(self) -> list[Request]:
        self._outstanding -= 1
        if self._outstanding:
            return []
        if self.drops >= self._max_drops:
            self.is_over = self.is_abandoned = True
            self._controller.close()
            return []
        if self._lost:
            lost, self._lost = sorted(self._lost, key=lambda request: request.ordinal), []
            return [self._request(request.parent) for request in lost]
        rollouts, self._finished = sorted(self._finished, key=lambda r: r.ordinal), []
        return self._advance([self.tree.add(rollout) for rollout in rollouts])

    def _advance(self, leaves: list[Leaf] | None) -> list[Request]:
        try:
            self.wave = next(self._controller) if leaves is None else self._controller.send(leaves)
        except StopIteration:
            self.is_over = True
            return []
        if not self.wave.parents:
            raise ValueError(
                "controller: expected a wave of at least one rollout, got an empty one"
            )
        return [self._request(parent) for parent in self.wave.parents]

    def _request(self, parent: int) -> Request:
        self._outstanding += 1
        self._next_ordinal += 1
        return Request(self._next_ordinal - 1, parent)
