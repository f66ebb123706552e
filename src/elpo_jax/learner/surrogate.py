"""ELPO's clipped surrogate, one token at a time (https://arxiv.org/abs/2602.09598)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from elpo_jax.learner.base import Array


class ClipBounds(NamedTuple):
    """The surrogate's numbers, float32 [] each: values of a program, never part of its shape."""

    eps_low: Array
    eps_high: Array
    eps_elc: Array
    log_ratio_clamp: Array


class Surrogate(NamedTuple):
    """Per-token results; `shape` is the inputs'."""

    objective: jax.Array  # float32 [shape], to be maximised
    log_ratio: jax.Array  # float32 [shape], clamped
    ratio: jax.Array  # float32 [shape]
    clipped_low: jax.Array  # bool [shape], the lower bound decides the objective
    clipped_high: jax.Array  # bool [shape], the upper bound decides the objective


def clipped_surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    elc: jax.Array,
    bounds: ClipBounds,
) -> Surrogate:
    """Clipped surrogate with error-localized adaptive clipping (Eq. 2, 11 and 12).

    J = min(r A, clip(r, 1 - ε_low - ε_elc·elc, 1 + ε_high) A),  r = exp(log π - log π_old)

    The log ratio is clamped first, so that r stays finite; beyond the clamp no gradient flows. NaN
    in any of the three first arguments gives NaN, so that a broken update is seen, not hidden.

    See "Learning from the Irrecoverable" (https://arxiv.org/abs/2602.09598), sections 4.3 and 4.4.

    Args:
      log_probs: float [...], log π of the tokens under the parameters being trained.
      old_log_probs: float [...], log π_old; a constant.
      advantages: float [...]; constants.
      elc: float [...], 1 where the lower bound is widened, 0 elsewhere.
      bounds: the clip's numbers.

    Returns:
      The objective and which side of the clip decided it. The lower bound can only act where A < 0
      and the upper one where A > 0: elsewhere the minimum takes the unclipped term.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, elc])
    chex.assert_type([log_probs, old_log_probs, advantages, elc], float)

    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    advantages = jax.lax.stop_gradient(advantages)
    limit = bounds.log_ratio_clamp
    log_ratio = jnp.clip(log_probs - old_log_probs, -limit, limit)
    ratio = jnp.exp(log_ratio)
    low = 1.0 - (bounds.eps_low + bounds.eps_elc * elc)
    high = jnp.broadcast_to(1.0 + bounds.eps_high, low.shape)
    objective = jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages)
    return Surrogate(
        objective=objective,
        log_ratio=log_ratio,
        ratio=ratio,
        clipped_low=(advantages < 0) & (ratio < low),
        clipped_high=(advantages > 0) & (ratio > high),
    )
