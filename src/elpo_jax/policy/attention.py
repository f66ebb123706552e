"""Attention of whole rows over their past, in two forms that agree to rounding.

`causal_attention` holds the scores of a block of queries against all keys, and is the faster one
for short rows. `blockwise_attention` holds those of one block of queries against one block of keys
(https://arxiv.org/abs/2205.14135), forward and backward, so that memory grows with a row's length
and not with its square.

Axes: B batch, T time, H query heads, K kv heads, G = H / K, C head size, N blocks, S and R the
positions in a block of queries and of keys.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MIN_QUERY_BLOCK = 64
MAX_QUERY_BLOCKS = 8  # they are unrolled, so their number is compile time
LOWEST = float(np.finfo(np.float32).min)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, block: int, window: jax.Array | None = None
) -> jax.Array:
    """Attention of each token over itself and its past, in the form that suits the length.

    Args:
      q: [B, T, H, C].
      k, v: [B, T, K, C].
      block: rows longer than this attend block by block.
      window: int32 [], how many positions a token sees, itself included; None: all.

    Returns:
      [B, T, H, C] in q's dtype; softmax in float32.
    """
    if q.shape[1] <= block:
        return causal_attention(q, k, v, window)
    return blockwise_attention(q, k, v, block, window)


def visible(queries: jax.Array, keys: jax.Array, window: jax.Array | None) -> jax.Array:
    """Whether positions of queries see those of keys: int32 [S], [R] -> bool [S, R]."""
    behind = queries[:, None] - keys[None, :]
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array | None = None
) -> jax.Array:
    """As `attend`, with the scores of one block of queries at once.

    Queries are taken in blocks, each against the keys up to its end: the masked half of the scores
    is mostly never computed. One batched product a query head, since XLA's CPU products over
    grouped heads take twice as long.
    """
    length, heads, size = q.shape[1:]
    k, v = (jnp.repeat(x.swapaxes(1, 2), heads // x.shape[2], axis=1) for x in (k, v))
    q = q.swapaxes(1, 2)  # [B, H, T, C]
    positions = jnp.arange(length)
    mask = visible(positions, positions, window)[None, None]
    block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    context = []
    for start in range(0, length, block):
        end = min(start + block, length)
        scores = jnp.einsum(
            "bhtc,bhsc->bhts",
            q[:, :, start:end],
            k[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        masked = jnp.where(mask[:, :, start:end, :end], scores * size**-0.5, LOWEST)
        weights = jax.nn.softmax(masked, axis=-1).astype(v.dtype)
        context.append(jnp.einsum("bhts,bhsc->bhtc", weights, v[:, :, :end]))
    return jnp.concatenate(context, axis=2).swapaxes(1, 2)


class Softmax(NamedTuple):
    """A softmax-weighted sum on the way, over the keys seen so far."""

    context: jax.Array  # float32 [..., C], the sum of exp(score - largest) * value
    largest: jax.Array  # float32 [...], score
    total: jax.Array  # float32 [...], of exp(score - largest)


def begin_softmax(shape: tuple[int, ...], size: int) -> Softmax:
    """Nothing seen yet."""
    return Softmax(
        jnp.zeros((*shape, size), jnp.float32),
        jnp.full(shape, LOWEST, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )


def extend_softmax(
    so_far: Softmax, scores: jax.Array, mask: jax.Array, values: jax.Array, product: str
) -> Softmax:
    """Takes more keys in. Where all of them are masked the result is what was given, bit for bit.

    Args:
      so_far: over the keys before.
      scores: float32 [..., R].
      mask: bool, broadcast against scores; false: not seen.
      values: of those keys.
      product: the einsum of weights and values.
    """
    masked = jnp.where(mask, scores, LOWEST)
    largest = jnp.maximum(so_far.largest, masked.max(axis=-1))
    weights = jnp.where(mask, jnp.exp(masked - largest[..., None]), 0.0)
    shrunk = jnp.exp(so_far.largest - largest)
    added = jnp.einsum(
        product, weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return Softmax(
        so_far.context * shrunk[..., None] + added,
        largest,
        so_far.total * shrunk + weights.sum(axis=-1),
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def blockwise_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, block: int, window: jax.Array | None = None
) -> jax.Array:
    """As `attend`, with the scores of one block of queries and one of keys at once."""
    return _forward(q, k, v, block, window)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, block: int, window: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    queries, keys, values = _blocks(q, k, v, block)

    def step(state: Softmax, pair: tuple[jax.Array, jax.Array]) -> tuple[Softmax, None]:
        i, j = pair
        scores, mask = _scores(queries[i], keys[j], i, j, window)
        one = jax.tree.map(lambda x: x[i], state)
        one = extend_softmax(one, scores, mask, values[j], "bkgsr,bkrc->bkgsc")
        return jax.tree.map(lambda x, new: x.at[i].set(new), state, one), None

    state, _ = jax.lax.scan(step, begin_softmax(queries.shape[:-1], q.shape[-1]), _pairs(q, block))
    context = state.context / state.total[..., None]
    log_total = state.largest + jnp.log(state.total)
    out = _join(context, q.shape[1]).astype(q.dtype)
    return out, (q, k, v, out, log_total)


def _forward_rule(
    q: jax.Array, k: jax.Array, v: jax.Array, block: int, window: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    out, saved = _forward(q, k, v, block, window)
    return out, (*saved, window)


def _backward_rule(
    block: int, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, out, log_total, window = saved
    queries, keys, values = _blocks(q, k, v, block)
    scale = q.shape[-1] ** -0.5
    inner = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    d_out = _cut(cotangent, k.shape[2], block)
    inner = _cut(inner[..., None], k.shape[2], block)[..., 0]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(
        gradients: tuple[jax.Array, ...], pair: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, ...], None]:
        i, j = pair
        dq, dk, dv = gradients
        scores, mask = _scores(queries[i], keys[j], i, j, window)
        weights = jnp.where(mask, jnp.exp(scores - log_total[i][..., None]), 0.0)
        d_weights = product("bkgsc,bkrc->bkgsr", d_out[i], values[j])
        d_scores = (weights * (d_weights - inner[i][..., None]) * scale).astype(q.dtype)
        weights = weights.astype(q.dtype)
        return (
            dq.at[i].add(product("bkgsr,bkrc->bkgsc", d_scores, keys[j])),
            dk.at[j].add(product("bkgsr,bkgsc->bkrc", d_scores, queries[i])),
            dv.at[j].add(product("bkgsr,bkgsc->bkrc", weights, d_out[i])),
        ), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    (dq, dk, dv), _ = jax.lax.scan(step, zeros, _pairs(q, block))
    length = q.shape[1]
    return (
        _join(dq, length).astype(q.dtype),
        _join(dk[:, :, :, None], length).astype(k.dtype),
        _join(dv[:, :, :, None], length).astype(v.dtype),
        None,
    )


blockwise_attention.defvjp(_forward_rule, _backward_rule)


def _pairs(q: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The blocks of queries and of keys that meet: int32 [P] each, no key after its query."""
    rows, columns = np.tril_indices(-(-q.shape[1] // block))
    return jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32)


def _cut(x: jax.Array, kv_heads: int, block: int) -> jax.Array:
    """[B, T, K G, C] -> [N, B, K, G, S, C], zeros at the end, where nothing before sees them."""
    batch, length, heads, size = x.shape
    blocks = -(-length // block)
    padded = jnp.pad(x, ((0, 0), (0, blocks * block - length), (0, 0), (0, 0)))
    cut = padded.reshape(batch, blocks, block, kv_heads, heads // kv_heads, size)
    return cut.transpose(1, 0, 3, 4, 2, 5)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`."""
    blocks, batch, kv_heads, group, block, size = x.shape
    rows = x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, blocks * block, kv_heads * group, size)
    return rows[:, :length]


def _blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q -> [N, B, K, G, S, C]; k, v -> [N, B, K, R, C]."""
    kv_heads = k.shape[2]
    keys, values = (_cut(x, kv_heads, block)[:, :, :, 0] for x in (k, v))
    return _cut(q, kv_heads, block), keys, values


def _scores(
    queries: jax.Array,
    keys: jax.Array,
    i: jax.Array,
    j: jax.Array,
    window: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Products of block i's queries and block j's keys [B, K, G, S, R], and who sees whom."""
    scores = jnp.einsum("bkgsc,bkrc->bkgsr", queries, keys, preferred_element_type=jnp.float32)
    places = jnp.arange(keys.shape[2])
    block = keys.shape[2]
    mask = visible(i * block + places, j * block + places, window)
    return scores * queries.shape[-1] ** -0.5, mask[None, None, None]
