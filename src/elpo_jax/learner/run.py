"""One optimiser update from its micro-batches, driven by the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elpo_jax.config import TrainConfig
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.update import Applied, TrainState, UpdatePrograms

Metrics = dict[str, float]


class NonFiniteUpdateError(FloatingPointError):
    """A loss or gradient was NaN or infinite. `state` is intact: the one before that update."""

    def __init__(self, message: str, state: TrainState):
        super().__init__(message)
        self.state = state


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
      NonFiniteUpdateError: when the loss or the gradient isn't finite.
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
        raise NonFiniteUpdateError(
            f"update {int(state.step)}: expected a finite loss and gradient, got loss "
            f"{float(applied.loss)} and gradient norm {float(applied.grad_norm)}; "
            "the parameters are unchanged",
            state,
        )
    return state, statistics, applied


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
