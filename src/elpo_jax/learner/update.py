"""The learner's compiled programs: log-probabilities, gradient accumulation, the optimiser's step.

Each is jitted once and compiled once for each shape [rows, length] it meets; everything else that
varies is an argument. Learning is: zeros, accumulate over the update's micro-batches, apply.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from elpo_jax.learner.base import Array, MicroBatch
from elpo_jax.learner.logprobs import token_log_probs, token_log_probs_and_entropies
from elpo_jax.learner.loss import Statistics
from elpo_jax.learner.optimizer import Optimizer
from elpo_jax.learner.partition import merge, split
from elpo_jax.policy.sharding import param_shapes, with_shardings

Params = Any  # a nested dict of arrays
Shardings = Any  # a NamedSharding for each parameter, in the same nest
Loss = Callable[[jax.Array, MicroBatch, Any], tuple[jax.Array, Statistics]]


class TrainState(NamedTuple):
    """All that training changes; donated to `apply` and replaced by its result.

    Parameters that aren't float32 would round most updates away. So the optimiser works on masters,
    float32 copies of those that are trained, and the parameters are what rounding leaves of them.
    """

    params: Params
    opt_state: optax.OptState
    step: Array  # int32 [], updates applied
    masters: Params  # float32, of the trained parameters; {} where those are float32 themselves


class Accumulator(NamedTuple):
    """Sums over the micro-batches of one update; donated to `accumulate`."""

    gradients: Params  # float32, shaped as the trained parameters
    loss: Array  # float32 []


class Applied(NamedTuple):
    """What `apply` reports."""

    ok: jax.Array  # bool [], loss, gradient, new parameters are finite; else the state is unchanged
    loss: jax.Array  # float32 []
    grad_norm: jax.Array  # float32 [], global L2 norm before clipping
    learning_rate: jax.Array  # float32 []


class UpdatePrograms(NamedTuple):
    """Jitted programs of one loss and one optimiser.

    shapes: () -> state; of `jax.ShapeDtypeStruct`, as `init` would lay it out.
    init: (params) -> state; with a new optimiser state. The parameters are donated.
    zeros: (params) -> accumulator.
    accumulate: (params, accumulator, micro_batch, temperature, bounds)
      -> (accumulator, statistics).
    apply: (state, accumulator) -> (state, applied).
    accumulator_shardings: where the accumulator lives; None: as it comes.
    """

    shapes: Callable[[], TrainState]
    init: Callable[[Params], TrainState]
    zeros: Callable[[Params], Accumulator]
    accumulate: Callable[..., tuple[Accumulator, Statistics]]
    apply: Callable[[TrainState, Accumulator], tuple[TrainState, Applied]]
    accumulator_shardings: Accumulator | None


def make_log_probs(
    model: nn.Module, chunk: int, batch_sharding: NamedSharding | None = None
) -> Callable[[Params, Array, Array], tuple[jax.Array, jax.Array]]:
    """(params, tokens int32 [B, T], temperature []) -> log-probs and entropies, float32 [B, T]."""

    def log_probs(
        params: Params, tokens: jax.Array, temperature: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden, logits_fn = _forward(model, params, tokens)
        return token_log_probs_and_entropies(logits_fn, hidden, tokens, temperature, chunk)

    return jax.jit(log_probs, in_shardings=(None, batch_sharding, None))


def make_update(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    chunk: int,
    param_shardings: Shardings | None = None,
    batch_sharding: NamedSharding | None = None,
) -> UpdatePrograms:
    """Builds the programs of one kind of update.

    Args:
      model: has methods `hidden` (tokens [B, T] -> [B, T, D]) and `logits` ([..., D] -> [..., V]).
      loss: see `learner.loss`.
      optimizer: see `learner.optimizer`.
      chunk: time steps whose logits exist at once.
      param_shardings: where parameters, gradients and optimiser state live; None: as they come.
      batch_sharding: of arrays [B, T]; None: as they come.
    """

    state_shardings, replicated = _state_shardings(model, optimizer.transform, param_shardings)
    accumulator_shardings = None
    if param_shardings is not None:
        accumulator_shardings = Accumulator(split(param_shardings)[0], replicated)

    def zeros(params: Params) -> Accumulator:
        return Accumulator(
            jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), split(params)[0]),
            jnp.zeros((), jnp.float32),
        )

    def accumulate(
        params: Params,
        accumulator: Accumulator,
        micro_batch: MicroBatch,
        temperature: jax.Array,
        bounds: Any,
    ) -> tuple[Accumulator, Statistics]:
        trained, frozen = split(params)

        def loss_of(trained: Params) -> tuple[jax.Array, Statistics]:
            hidden, logits_fn = _forward(model, merge(trained, frozen), micro_batch.tokens)
            log_probs = token_log_probs(logits_fn, hidden, micro_batch.tokens, temperature, chunk)
            return loss(log_probs, micro_batch, bounds)

        (value, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        gradients = jax.tree.map(lambda total, g: total + g, accumulator.gradients, gradients)
        return Accumulator(gradients, accumulator.loss + value), statistics

    def apply(state: TrainState, accumulator: Accumulator) -> tuple[TrainState, Applied]:
        grad_norm = optax.tree.norm(accumulator.gradients)
        trained, frozen = split(state.params)
        weights = state.masters or trained
        updates, opt_state = optimizer.transform.update(
            accumulator.gradients, state.opt_state, weights
        )
        weights = optax.apply_updates(weights, updates)
        numbers = [accumulator.loss, grad_norm, *jax.tree.leaves(weights)]
        ok = jnp.stack([jnp.isfinite(x).all() for x in numbers]).all()
        rounded = jax.tree.map(lambda weight, p: weight.astype(p.dtype), weights, trained)
        replacement = TrainState(
            merge(rounded, frozen), opt_state, state.step + 1, weights if state.masters else {}
        )
        state_after = jax.tree.map(lambda new, old: jnp.where(ok, new, old), replacement, state)
        rate = jnp.asarray(optimizer.schedule(state.step), jnp.float32)
        return state_after, Applied(ok, accumulator.loss, grad_norm, rate)

    def init(params: Params) -> TrainState:
        masters = _masters(params)
        weights = masters or split(params)[0]
        opt_state = optimizer.transform.init(weights)
        return TrainState(params, opt_state, jnp.zeros((), jnp.int32), masters)

    def shapes() -> TrainState:
        state = jax.eval_shape(init, param_shapes(model))
        return state if state_shardings is None else with_shardings(state, state_shardings)

    return UpdatePrograms(
        shapes=shapes,
        init=jax.jit(init, donate_argnames="params", out_shardings=state_shardings),
        zeros=jax.jit(zeros, out_shardings=accumulator_shardings),
        accumulate=jax.jit(
            accumulate,
            donate_argnames="accumulator",
            in_shardings=(None, None, batch_sharding, None, None),
            out_shardings=(accumulator_shardings, replicated),
        ),
        apply=jax.jit(apply, donate_argnames="state", out_shardings=(state_shardings, replicated)),
        accumulator_shardings=accumulator_shardings,
    )


def _forward(
    model: nn.Module, params: Params, tokens: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Hidden states [B, T, D] of the rows, and the head that turns them into logits."""
    variables = {"params": params}
    hidden = jnp.asarray(model.apply(variables, tokens, method="hidden"))
    return hidden, lambda h: jnp.asarray(model.apply(variables, h, method="logits"))


def _masters(params: Params) -> Params:
    """Float32 copies of the trained parameters; {} where all of them are float32."""
    trained, _ = split(params)
    if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained)):
        return {}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)


def _state_shardings(
    model: nn.Module, transform: optax.GradientTransformation, shardings: Shardings | None
) -> tuple[TrainState | None, NamedSharding | None]:
    """Where a train state lives: moments and masters with their parameter, and where scalars do.

    The programs name their results' shardings rather than leave them to the compiler, whose own
    spelling of the same layout would count as another one, and compile every program again.
    """
    if shardings is None:
        return None, None
    replicated = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    trained, _ = split(shardings)
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), trained)
    opt_state = optax.tree.map_params(
        transform,
        lambda _, sharding: sharding,
        jax.eval_shape(transform.init, shapes),
        trained,
        transform_non_params=lambda _: replicated,
    )
    masters = jax.eval_shape(lambda p: _masters(p), param_shapes(model))
    return TrainState(shardings, opt_state, replicated, trained if masters else {}), replicated
