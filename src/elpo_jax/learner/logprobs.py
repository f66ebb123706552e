"""Log-probabilities and entropies of given tokens, without the whole [B, T, V] of logits."""

from collections.abc import Callable
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

LogitsFn = Callable[[jax.Array], jax.Array]  # [..., D] -> float32 [..., V]
Out = TypeVar("Out")  # a pytree of arrays


def token_log_probs(
    logits_fn: LogitsFn,
    hidden: jax.Array,
    tokens: jax.Array,
    temperature: jax.typing.ArrayLike,
    chunk: int,
) -> jax.Array:
    """log softmax(logits / temperature) at each token, given the tokens before it.

    Logits exist for `chunk` time steps at once, [B, chunk, V], in the forward pass and, computed
    again, in the backward pass.

    Args:
      logits_fn: the policy's head.
      hidden: float [B, T, D]; hidden[:, t] predicts tokens[:, t + 1].
      tokens: int32 [B, T].
      temperature: float [], > 0.
      chunk: time steps whose logits exist at once; part of the program's shape.

    Returns:
      float32 [B, T]. Column t is that of tokens[:, t] given tokens[:, :t]; column 0, which has no
      prediction, is 0.
    """

    def of_chunk(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return _picked(*_normalized(logits_fn(hidden) / temperature), targets)

    return _by_chunks(of_chunk, hidden, tokens, chunk)


def token_log_probs_and_entropies(
    logits_fn: LogitsFn,
    hidden: jax.Array,
    tokens: jax.Array,
    temperature: jax.typing.ArrayLike,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """As `token_log_probs`, with the full-vocabulary entropies (ELPO Eq. 3).

    Returns:
      float32 [B, T] each: the log-probabilities, and the entropy in nats of the distribution that
      each token is a draw of; column 0 is 0 in both.
    """

    def of_chunk(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        shifted, log_normalizer = _normalized(logits_fn(hidden) / temperature)
        log_probs = shifted - log_normalizer[..., None]
        probs = jnp.exp(log_probs)
        # Below temperature 1 the ids that only fill a vocabulary have -inf. NaN stays NaN.
        entropies = -jnp.sum(jnp.where(probs == 0, 0.0, probs * log_probs), axis=-1)
        return _picked(shifted, log_normalizer, targets), entropies

    return _by_chunks(of_chunk, hidden, tokens, chunk)


def _normalized(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits less their largest, [B, C, V], and the log of the sum of their exps, [B, C].

    Kept apart because their difference is precise where a probability is close to 1, which
    `logits - logsumexp(logits)` isn't.
    """
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    return shifted, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def _picked(shifted: jax.Array, log_normalizer: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probabilities [B, C] of targets int32 [B, C]."""
    return jnp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0] - log_normalizer


def _by_chunks(
    of_chunk: Callable[[jax.Array, jax.Array], Out],
    hidden: jax.Array,
    tokens: jax.Array,
    chunk: int,
) -> Out:
    """Maps (hidden [B, C, D], next tokens [B, C]) -> [B, C] over time; every result is [B, T]."""
    chex.assert_rank([hidden, tokens], [3, 2])
    chex.assert_equal_shape_prefix([hidden, tokens], 2)
    chex.assert_type([hidden, tokens], [float, int])
    if chunk < 1:
        raise ValueError(f"chunk: expected at least one time step, got {chunk}")
    batch, length = tokens.shape
    chunk = min(chunk, length)
    chunks = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [chunks, B, C, ...]"""
        spare = [(0, 0)] * x.ndim
        spare[1] = (0, chunks * chunk - length)
        padded = jnp.pad(x, spare)
        return jnp.moveaxis(padded.reshape(batch, chunks, chunk, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        """[chunks, B, C], at the token that predicts -> [B, T], at the token predicted."""
        joined = jnp.moveaxis(x, 0, 1).reshape(batch, chunks * chunk)[:, : length - 1]
        return jnp.pad(joined, ((0, 0), (1, 0)))

    # Without the checkpoint the map would stack every chunk's softmax for the backward pass, which
    # is [B, T, V] again. In a loop nothing can merge the two computations, hence prevent_cse=False.
    step = jax.checkpoint(of_chunk, prevent_cse=False)
    targets = jnp.roll(tokens, -1, axis=1)
    return jax.tree.map(join, jax.lax.map(lambda x: step(*x), (split(hidden), split(targets))))
