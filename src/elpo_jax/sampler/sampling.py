"""One draw: from a row of logits to a token, its log-probability and the entropy it came from."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Draw(NamedTuple):
    """One token a lane.

    Attributes:
      token: int32 [S].
      log_prob: float32 [S], under the temperature-scaled distribution before truncation, so that
        the learner, which knows no truncation, computes the same number.
      entropy: float32 [S] nats, of that same full-vocabulary distribution (ELPO Eq. 3,
        https://arxiv.org/abs/2602.09598).
    """

    token: jax.Array
    log_prob: jax.Array
    entropy: jax.Array


def _cutoff(
    logits: jax.Array, temperature: jax.Array, top_p: jax.Array, top_k: jax.Array
) -> jax.Array:
    """The smallest logit that truncation keeps (ties with it are kept): [V], [], [], [] -> [].

    A logit and not a probability: it is compared as it is, while a probability computed twice may
    differ by a rounding and drop the very token that sets the bound.
    """
    descending = jnp.sort(logits, descending=True)
    probs = jax.nn.softmax(descending / temperature)
    before = jnp.cumsum(probs) - probs
    in_nucleus = jnp.where(before < top_p, descending, jnp.inf).min()
    kth = descending[jnp.clip(top_k, 1, logits.shape[0]) - 1]
    # A lane that asks for no truncation keeps every token, whatever rounding made of its sums.
    in_nucleus = jnp.where(top_p < 1.0, in_nucleus, -jnp.inf)
    kth = jnp.where(top_k > 0, kth, -jnp.inf)
    return jnp.maximum(in_nucleus, kth)


def _draw_one(
    logits: jax.Array, uniform: jax.Array, temperature: jax.Array, cutoff: jax.Array
) -> Draw:
    log_probs = jax.nn.log_softmax(logits / jnp.where(temperature > 0, temperature, 1.0))
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0))
    # Inverse CDF: one uniform a token instead of V Gumbel draws.
    cdf = jnp.cumsum(jnp.where(logits >= cutoff, probs, 0.0))
    drawn = jnp.sum(cdf <= uniform * cdf[-1])
    last_kept = jnp.argmax(cdf)  # the first index that reaches the total is the last kept token
    token = jnp.where(temperature > 0, jnp.minimum(drawn, last_kept), jnp.argmax(logits))
    # NaN logits would pass unseen through comparisons; they stay visible in the log-probability.
    return Draw(token.astype(jnp.int32), log_probs[token], entropy)


def draw(
    logits: jax.Array,
    uniforms: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array,
) -> Draw:
    """Draws a token for every lane; settings are arguments, so no setting compiles anew.

    Args:
      logits: float32 [S, V].
      uniforms: float32 [S] in [0, 1).
      temperature: float32 [S]; 0 takes the most likely token (log-probability and entropy are then
        those of temperature 1).
      top_p: float32 [S]; the smallest set of most likely tokens with at least this mass; 1 is off.
      top_k: int32 [S]; 0 is off.
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([uniforms, temperature, top_p, top_k])
    scale = jnp.where(temperature > 0, temperature, 1.0)

    def cutoffs() -> jax.Array:
        return jax.vmap(_cutoff)(logits, scale, top_p, top_k)

    # Sorting V numbers a lane costs more than the rest of the draw: only where a lane asks for it.
    truncated = jnp.any((top_p < 1.0) | (top_k > 0))
    cutoff = jax.lax.cond(truncated, cutoffs, lambda: jnp.full_like(temperature, -jnp.inf))
    return jax.vmap(_draw_one)(logits, uniforms, temperature, cutoff)
