"""Losses of a micro-batch: sums over tokens with explicit weights, and what the metrics need.

A loss maps (log_probs [B, T], micro_batch, bounds) to (loss [], statistics). Because it is a
plain sum, the gradients of micro-batches add up to the gradient of their update's whole batch.
"""

import jax
import jax.numpy as jnp

from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.surrogate import ClipBounds, clipped_surrogate

Statistics = dict[str, jax.Array]  # float32 [] each: sums over tokens, and 'ratio_max'


def policy_loss(
    log_probs: jax.Array, micro_batch: MicroBatch, bounds: ClipBounds
) -> tuple[jax.Array, Statistics]:
    """Minus the weighted sum of the clipped surrogate (ELPO Eq. 1 and 12).

    The statistics count policy tokens. `kl_old` sums the estimate k3 = r - 1 - log r of
    KL(π_old || π), r = π / π_old, which is never negative (http://joschu.net/blog/kl-approx.html).

    Args:
      log_probs: float32 [B, T] under the parameters being trained.
      micro_batch: the rows; their weights hold Eq. 1's means.
      bounds: the clip's numbers.
    """
    surrogate = clipped_surrogate(
        log_probs, micro_batch.old_log_probs, micro_batch.advantages, micro_batch.elc, bounds
    )
    loss = -jnp.sum(micro_batch.weights * surrogate.objective)
    elc = micro_batch.mask * micro_batch.elc
    plain = micro_batch.mask - elc
    statistics = {
        "tokens": jnp.sum(micro_batch.mask),
        "elc_tokens": jnp.sum(elc),
        "clipped_low_elc": jnp.sum(elc * surrogate.clipped_low),
        "clipped_low_plain": jnp.sum(plain * surrogate.clipped_low),
        "clipped_high_elc": jnp.sum(elc * surrogate.clipped_high),
        "clipped_high_plain": jnp.sum(plain * surrogate.clipped_high),
        "kl_old": jnp.sum(
            micro_batch.mask * (jnp.expm1(surrogate.log_ratio) - surrogate.log_ratio)
        ),
        "ratio_max": jnp.max(micro_batch.mask * surrogate.ratio),
    }
    return loss, jax.lax.stop_gradient(statistics)


def cross_entropy_loss(
    log_probs: jax.Array, micro_batch: MicroBatch, bounds: None
) -> tuple[jax.Array, Statistics]:
    """Minus the weighted sum of log-probabilities, in nats; it has no `bounds`."""
    del bounds
    loss = -jnp.sum(micro_batch.weights * log_probs)
    return loss, {"tokens": jnp.sum(micro_batch.mask)}
