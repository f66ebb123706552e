"""Attention of new tokens over rows of the KV cache.

A cache no longer than `Compute.attention_block` is attended to at once. A longer one is taken block
by block, up to the last block that any row has reached: neither the scores of a whole context nor
time for the part that nothing has been written to. A row's own result is the same bits however far
the others reach, since a block that it doesn't see leaves its sums as they are.

Axes: S rows, N new tokens of a row, K kv heads, G query heads of each, C head size, T the cache's
length, R positions of a block.
"""

import jax
import jax.numpy as jnp

from elpo_jax.policy.attention import LOWEST, Softmax, begin_softmax, extend_softmax


def capacity(length: int, block: int) -> int:
    """Positions of a cache with room for `length` tokens: whole blocks if more than one."""
    return length if length <= block else -(-length // block) * block


def attend_chunk(
    q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array, block: int, window: int
) -> jax.Array:
    """Attention of chunks of tokens, whose own keys and values are in the cache already.

    Args:
      q: [S, N, K, G, C].
      keys: [S, K, C, T].
      values: [S, K, T, C].
      positions: int32 [S, N], of the tokens.
      block: R.
      window: positions that a token sees, itself included; 0: all before it.

    Returns:
      [S, N, K, G, C] in q's dtype; softmax in float32.
    """
    length = keys.shape[-1]
    if length <= block:
        return _chunk_at_once(q, keys, values, _visible(positions, jnp.arange(length), window))
    return _by_blocks(q, keys, values, positions, block, window)


def attend_one(
    q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array, block: int, window: int
) -> jax.Array:
    """Attention of one token a row: q [S, K, G, C], positions int32 [S]; else as `attend_chunk`."""
    length = keys.shape[-1]
    if length <= block:
        mask = _visible(positions[:, None], jnp.arange(length), window)[:, 0]
        return _one_at_once(q, keys, values, mask)
    return _by_blocks(q[:, None], keys, values, positions[:, None], block, window)[:, 0]


def _visible(positions: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """int32 [S, N], [R] -> bool [S, N, R]."""
    behind = positions[:, :, None] - keys[None, None, :]
    return (behind >= 0) & (behind < window) if window else behind >= 0


def _softmax_where(scores: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.where(mask, scores, LOWEST), axis=-1)


def _chunk_at_once(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    scores = jnp.einsum("pnkgc,pkct->pkgnt", q, keys, preferred_element_type=jnp.float32)
    weights = _softmax_where(scores * q.shape[-1] ** -0.5, mask[:, None, None])
    return jnp.einsum("pkgnt,pktc->pnkgc", weights.astype(values.dtype), values)


def _one_at_once(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Products and sums instead of dots: with so few queries a row, XLA's CPU dots are slower."""
    scores = jnp.sum(
        q[..., None].astype(jnp.float32) * keys[:, :, None].astype(jnp.float32), axis=3
    )  # [S, K, G, T]
    weights = _softmax_where(scores * q.shape[-1] ** -0.5, mask[:, None, None])
    context = jnp.sum(weights[..., None] * values[:, :, None].astype(jnp.float32), axis=3)
    return context.astype(q.dtype)


def _by_blocks(
    q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array, block: int, window: int
) -> jax.Array:
    rows, tokens, kv_heads, group, size = q.shape
    grouped = q.transpose(0, 2, 3, 1, 4)  # [S, K, G, N, C]

    def step(number: jax.Array, state: Softmax) -> Softmax:
        start = number * block
        some_keys = jax.lax.dynamic_slice_in_dim(keys, start, block, axis=3)
        some_values = jax.lax.dynamic_slice_in_dim(values, start, block, axis=2)
        scores = jnp.einsum(
            "skgnc,skcr->skgnr", grouped, some_keys, preferred_element_type=jnp.float32
        )
        mask = _visible(positions, start + jnp.arange(block), window)[:, None, None]
        return extend_softmax(state, scores * size**-0.5, mask, some_values, "skgnr,skrc->skgnc")

    begin = begin_softmax((rows, kv_heads, group, tokens), size)
    # Padding may have any position; the cache has only so many blocks.
    reached = jnp.minimum(positions.max() // block + 1, keys.shape[-1] // block)
    state = jax.lax.fori_loop(0, reached, step, begin)
    context = state.context / state.total[..., None]
    return context.transpose(0, 3, 1, 2, 4).astype(q.dtype)
