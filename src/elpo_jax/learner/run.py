"""One optimiser update from its micro-batches, driven by the host."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elpo_jax.config import TrainConfig
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.update import Applied, TrainState, UpdatePrograms

Metrics = dict[str, float]

POLICY, SUPERVISED = "policy update", "supervised update"


class NonFiniteUpdateError(FloatingPointError):
    """A loss, a gradient or a new parameter was NaN or infinite, and the update wasn't made.

    Attributes:
      state: intact, the one before that update.
      micro_batches: those of the update.
      found: 'broken', what wasn't finite; 'loss'; 'grad_norm'; 'gradients', how many elements of
        which array weren't.
      kind: POLICY or SUPERVISED; the learner's to fill, like `where` and `rows`.
      where: the update's place in the batch, {'epoch', 'mini_batch'}.
      rows: for each micro-batch the numbers of its rows in the batch that was learnt from.
      members: the numbers of all rows of the update, those without advantage included.
      labels: as `rows`, with each row's task id and rollout ordinal; the trainer's to fill.
      tasks: ids of the update's tasks; the trainer's to fill.
    """

    def __init__(
        self,
        message: str,
        state: TrainState,
        micro_batches: Sequence[MicroBatch],
        found: Mapping[str, Any],
    ):
        super().__init__(message)
        self.state = state
        self.micro_batches = micro_batches
        self.found = found
        self.kind = POLICY
        self.where: dict[str, int] = {}
        self.rows: list[list[int]] = []
        self.members: list[int] = []
        self.tasks: list[str] = []
        self.labels: list[list[tuple[str, int]]] = []


def run_update(
    programs: UpdatePrograms,
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    temperature: np.float32,
    bounds: Any,
) -> tuple[TrainState, list[Mapping[str, float]], Applied]:
    """One optimiser update from its micro-batches.

    Without any micro-batch the gradient is 0, which still lets momentum and weight decay act.

    Returns:
      The new state (the old one is donated), each micro-batch's statistics, and what `apply` said.

    Raises:
      NonFiniteUpdateError: when the loss, the gradient or a new parameter isn't finite.
    """
    accumulator = programs.zeros(state.params)
    statistics = []
    for micro_batch in micro_batches:
        accumulator, new = programs.accumulate(
            state.params, accumulator, micro_batch, temperature, bounds
        )
        statistics.append(new)
    state, applied = programs.apply(state, accumulator)
    statistics, applied = jax.device_get((statistics, applied))
    if not applied.ok:
        loss, norm = float(applied.loss), float(applied.grad_norm)
        broken = [name for name, x in (("loss", loss), ("gradient", norm)) if not math.isfinite(x)]
        broken = broken or ["new parameters"]
        found = {
            "broken": broken,
            "loss": loss,
            "grad_norm": norm,
            "gradients": non_finite(accumulator.gradients),
        }
        raise NonFiniteUpdateError(
            f"update {int(state.step)}: not finite: {' and '.join(broken)}, with loss "
            f"{loss} and gradient norm {norm}; the parameters are unchanged",
            state,
            micro_batches,
            found,
        )
    return state, statistics, applied


def non_finite(tree: Any) -> dict[str, int]:
    """How many elements of which arrays are NaN or infinite; arrays without any are left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    counts = {jax.tree_util.keystr(path): int((~jnp.isfinite(x)).sum()) for path, x in leaves}
    return {path: count for path, count in counts.items() if count}


def warm_up_update(
    programs: UpdatePrograms,
    state: TrainState,
    train: TrainConfig,
    temperature: np.float32,
    bounds: Any,
) -> TrainState:
    """Compiles an update's programs for every length bucket. Returns the state, unchanged."""
    accumulator = programs.zeros(state.params)
    for length in train.length_buckets:
        shape = (train.micro_batch_rows, length)
        empty = MicroBatch(np.zeros(shape, np.int32), *[np.zeros(shape, np.float32)] * 5)
        accumulator, _ = programs.accumulate(state.params, accumulator, empty, temperature, bounds)
    # A NaN loss is what makes `apply` leave the state alone.
    state, _ = programs.apply(
        state, accumulator._replace(loss=accumulator.loss * np.float32("nan"))
    )
    return state


def compiled_update(programs: UpdatePrograms) -> dict[str, int]:
    """How often each of an update's programs has been compiled so far."""
    return {
        "zeros": cache_size(programs.zeros),
        "accumulate": cache_size(programs.accumulate),
        "apply": cache_size(programs.apply),
    }


def cache_size(program: Any) -> int:
    """How many signatures a jitted function has been compiled for."""
    return int(program._cache_size())


def mean_applied(applied: Sequence[Applied], prefix: str) -> Metrics:
    """Means of loss and gradient norm over updates, and the last learning rate."""
    return {
        f"{prefix}/loss": float(np.mean([a.loss for a in applied])),
        f"{prefix}/grad_norm": float(np.mean([a.grad_norm for a in applied])),
        "optimizer/learning_rate": float(applied[-1].learning_rate),
    }
