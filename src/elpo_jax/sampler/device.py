"""The sampler's compiled programs: prefill, decode and fork over rows of a KV cache.

All are pure functions of arrays with fixed shapes. What a row computes depends on that row alone:
neither on what else is in the batch nor on which row it has, so samples are independent of the
schedule. Rows are addressed by index; an index out of range is padding and writes nothing.

The program counts on two conventions of the host side:
- A row's *pending* token is the last one that is known but not in the cache yet. Decode feeds it,
  draws the next one, and so on; prefill brings in all known tokens but the last.
- A token's place in the shapes is fixed by its segment (prompt, or one tool result): prefill chunks
  are aligned to the start of the segment.

Axes: S rows of a cache (lanes or kept rows), P rows of a prefill, N tokens of a chunk or block, L,
K, G, C, T as in `policy.model`, with T the cache's length.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from elpo_jax.policy.model import Block, Decoder
from elpo_jax.policy.sharding import constrain, gather_fsdp, param_shardings, spec
from elpo_jax.sampler.cache_attention import attend_chunk, attend_one, capacity
from elpo_jax.sampler.sampling import draw

Params = Any
Array: TypeAlias = Any  # np.ndarray where the host fills it, jax.Array inside compiled code


class KVCache(NamedTuple):
    """Keys and values, one array a layer so that each is updated in place.

    The time axis comes last for keys: on CPU scores are then a multiply-reduce over contiguous
    memory.
    """

    keys: tuple[jax.Array, ...]  # L x [S, K, C, T]
    values: tuple[jax.Array, ...]  # L x [S, K, T, C]


class Lanes(NamedTuple):
    """The decode state of each lane."""

    pending: Array  # int32 [S], known but not cached
    position: Array  # int32 [S], of the pending token; also the number of cached tokens
    left: Array  # int32 [S], tokens the lane may still draw; 0 for an idle lane
    identity: Array  # int32 [S, 2], (task draw, rollout ordinal): with seed and step, the key
    temperature: Array  # float32 [S]
    top_p: Array  # float32 [S]
    top_k: Array  # int32 [S]


class Drawn(NamedTuple):
    """Tokens of one decode call; lane s drew the first counts[s] of its row."""

    tokens: jax.Array  # int32 [S, N]
    log_probs: jax.Array  # float32 [S, N]
    entropies: jax.Array  # float32 [S, N]
    counts: jax.Array  # int32 [S]
    stopped: jax.Array  # bool [S], the last token ends the turn
    steps: jax.Array  # int32 [], forward passes made


def init_cache(model: Decoder, rows: int, length: int) -> KVCache:
    """An empty cache of `rows` rows with room for `length` tokens each."""
    heads, size = model.architecture.num_kv_heads, model.architecture.head_dim
    length = capacity(length, model.compute.attention_block)
    layers, dtype = range(model.architecture.num_layers), model.compute.dtype
    return KVCache(
        tuple(jnp.zeros((rows, heads, size, length), dtype) for _ in layers),
        tuple(jnp.zeros((rows, heads, length, size), dtype) for _ in layers),
    )


def _layer(params: Params, index: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[index], params["layers"])


def _windows(model: Decoder) -> tuple[int, ...]:
    return model.architecture.windows or (0,) * model.architecture.num_layers


def prefill(
    model: Decoder,
    params: Params,
    cache: KVCache,
    tokens: jax.Array,
    rows: jax.Array,
    offsets: jax.Array,
    lengths: jax.Array,
) -> KVCache:
    """Writes the keys and values of one chunk of tokens for each of P rows.

    Args:
      model: the policy.
      params: its parameters.
      cache: lanes' cache; every row's tokens before `offsets` are in it.
      tokens: int32 [P, N].
      rows: int32 [P], distinct; S or more for padding.
      offsets: int32 [P], position of each row's first token.
      lengths: int32 [P], tokens of the chunk that are real.
    """
    length = cache.keys[0].shape[-1]
    step = jnp.arange(tokens.shape[1])[None, :]
    positions = offsets[:, None] + step  # [P, N]
    # Padding is sent out of range, where scatters drop it.
    targets = jnp.where(step < lengths[:, None], positions, length)
    x = model.apply({"params": params}, tokens, method="embed")
    block = Block(model.architecture, model.compute, model.mesh)
    keys, values = list(cache.keys), list(cache.values)
    for i, window in enumerate(_windows(model)):
        layer = {"params": _layer(params, i)}
        q, k, v = block.apply(layer, x, positions, method="qkv")
        where = (rows[:, None], slice(None), slice(None), targets)
        keys[i] = keys[i].at[where].set(k, mode="drop")
        values[i] = values[i].at[rows[:, None], :, targets, :].set(v, mode="drop")
        grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
        past_keys = keys[i].at[rows].get(mode="clip")  # [P, K, C, T]
        past_values = values[i].at[rows].get(mode="clip")  # [P, K, T, C]
        context = attend_chunk(
            grouped, past_keys, past_values, positions, model.compute.attention_block, window
        )
        x = block.apply(layer, x, context.reshape(q.shape), method="finish")
    return KVCache(tuple(keys), tuple(values))


@jax.vmap
def _write_one(
    keys: jax.Array, values: jax.Array, target: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Puts one token's key and value [K, C] into a row's cache; nothing where target is T or more.

    Row by row, so that rows on other devices needn't be looked at.
    """
    return (
        keys.at[:, :, target].set(k, mode="drop"),
        values.at[:, target].set(v, mode="drop"),
    )


def _forward_one(
    model: Decoder,
    params: Params,
    layers: list[Params],
    cache: KVCache,
    pending: jax.Array,
    positions: jax.Array,
    writable: jax.Array,
) -> tuple[KVCache, jax.Array]:
    """Feeds one token a lane: int32 [S] at positions [S] -> cache, float32 logits [S, V]."""
    lanes, length = pending.shape[0], cache.keys[0].shape[-1]
    targets = jnp.where(writable, positions, length)
    x = model.apply({"params": params}, pending[:, None], method="embed")  # [S, 1, D]
    block = Block(model.architecture, model.compute, model.mesh)
    keys, values = list(cache.keys), list(cache.values)
    for i, (params_of_layer, window) in enumerate(zip(layers, _windows(model), strict=True)):
        layer = {"params": params_of_layer}
        q, k, v = block.apply(layer, x, positions[:, None], method="qkv")
        keys[i], values[i] = _write_one(keys[i], values[i], targets, k[:, 0], v[:, 0])
        grouped = q.reshape(lanes, k.shape[2], -1, q.shape[-1])
        context = attend_one(
            grouped, keys[i], values[i], positions, model.compute.attention_block, window
        )
        x = block.apply(layer, x, context.reshape(q.shape), method="finish")
    logits = model.apply({"params": params}, x[:, 0], method="logits")
    return KVCache(tuple(keys), tuple(values)), logits


def _slices_fuse(mesh: Mesh | None) -> bool:
    """Whether the compiler reads a layer out of the stacked parameters without a copy of it.

    Compiled for a TPU, slices before the loop are copies of all parameters (a decode of Qwen3-4B on
    v5e:1x1 then holds 20.0 GiB besides its arguments, else 3.6), on a CPU slices in the loop are
    copies in each step (12 to 39 % slower).
    """
    return mesh is not None and mesh.devices.flat[0].platform != "cpu"


def decode(
    model: Decoder,
    block_size: int,
    params: Params,
    cache: KVCache,
    lanes: Lanes,
    step_key: jax.Array,
    stop_tokens: jax.Array,
    exit_below: jax.Array,
) -> tuple[KVCache, Drawn]:
    """Draws up to `block_size` tokens in every active lane.

    Args:
      model: the policy.
      block_size: N, the most tokens a call (static).
      params: its parameters.
      cache: the lanes' cache, S rows.
      lanes: their state; lanes with left = 0 are idle.
      step_key: key of this run's seed and training step. A token's key folds in the task draw, the
        rollout ordinal and the token's position, nothing else.
      stop_tokens: int32 [E], each ends a turn; -1 for padding. It is drawn but not fed: the caller
        prefills it together with the tool's result.
      exit_below: int32 [], leave early once fewer lanes than this are active (at least 1).
    """
    count = lanes.pending.shape[0]
    if model.mesh is not None:
        params = gather_fsdp(params, param_shardings(model, model.mesh))

    def layers_of() -> list[Params]:
        return [_layer(params, i) for i in range(model.architecture.num_layers)]

    layers = None if _slices_fuse(model.mesh) else layers_of()

    def lane_key(identity: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(step_key, identity[0]), identity[1])

    keys = jax.vmap(lane_key)(lanes.identity)
    threshold = jnp.maximum(exit_below, 1)

    def go_on(carry: tuple[Any, ...]) -> jax.Array:
        step, _, _, left, _, _ = carry
        return (step < block_size) & (jnp.sum(left > 0) >= threshold)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, pending, position, left, cache, out = carry
        active = left > 0
        cache, logits = _forward_one(
            model, params, layers or layers_of(), cache, pending, position, active
        )
        logits = constrain(logits, model.mesh, "batch", None)  # draws sum over the vocabulary
        token_keys = jax.vmap(jax.random.fold_in)(keys, position + 1)
        uniforms = jax.vmap(jax.random.uniform)(token_keys)
        drawn = draw(logits, uniforms, lanes.temperature, lanes.top_p, lanes.top_k)
        stop = jnp.any(drawn.token[:, None] == stop_tokens[None], axis=1)
        here = active[:, None] & (jnp.arange(block_size)[None] == step)  # [S, N]
        out = Drawn(
            jnp.where(here, drawn.token[:, None], out.tokens),
            jnp.where(here, drawn.log_prob[:, None], out.log_probs),
            jnp.where(here, drawn.entropy[:, None], out.entropies),
            out.counts + active,
            out.stopped | (active & stop),
            out.steps + 1,
        )
        left = jnp.where(stop, 0, left - active)
        pending = jnp.where(active, drawn.token, pending)
        return step + 1, pending, position + active, left, cache, out

    empty = Drawn(
        jnp.zeros((count, block_size), jnp.int32),
        jnp.zeros((count, block_size), jnp.float32),
        jnp.zeros((count, block_size), jnp.float32),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
        jnp.int32(0),
    )
    start = (jnp.int32(0), lanes.pending, lanes.position, lanes.left, cache, empty)
    *_, cache, out = jax.lax.while_loop(go_on, body, start)
    return cache, out


def fork(target: KVCache, source: KVCache, to_rows: jax.Array, from_rows: jax.Array) -> KVCache:
    """Copies rows: target[to_rows[i]] = source[from_rows[i]]; int32 [F], padding out of range."""

    def copy(target: jax.Array, source: jax.Array) -> jax.Array:
        return target.at[to_rows].set(source.at[from_rows].get(mode="clip"), mode="drop")

    return jax.tree.map(copy, target, source)


def read_row(cache: KVCache, row: jax.Array) -> KVCache:
    """One row, for swapping it to the host."""
    # Indexing a spread axis with one number would bring all of the cache to every device.
    return jax.tree.map(lambda leaf: leaf.at[row[None]].get(mode="clip")[0], cache)


def write_row(cache: KVCache, row: jax.Array, content: KVCache) -> KVCache:
    """Puts a swapped row back, bit for bit."""
    return jax.tree.map(lambda leaf, value: leaf.at[row].set(value), cache, content)


class Programs(NamedTuple):
    """The jitted programs of one policy and block size. The cache argument is donated."""

    prefill: Any
    decode: Any
    fork: Any
    read_row: Any
    write_row: Any


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, kv heads over tensor."""
    return NamedSharding(mesh, spec("batch", "kv_heads"))


def compile_programs(model: Decoder, block_size: int, mesh: Mesh) -> Programs:
    """Wraps the functions above in `jax.jit`; the shapes they get decide what is compiled.

    The caches' sharding is stated for outputs too: a cache that came back with another, equivalent
    one would compile its next program anew.

    Args:
      model: the policy.
      block_size: the most tokens a decode call.
      mesh: where the caches live.
    """
    cache, row = cache_sharding(mesh), NamedSharding(mesh, spec("kv_heads"))
    lanes = NamedSharding(mesh, spec("batch"))
    return Programs(
        jax.jit(partial(prefill, model), donate_argnums=1, out_shardings=cache),
        jax.jit(
            partial(decode, model, block_size),
            donate_argnums=1,
            in_shardings=(None, None, lanes, None, None, None),
            out_shardings=(cache, None),
        ),
        # Each a function of its own, or JAX would count other engines' programs with this one's.
        jax.jit(partial(fork), donate_argnums=0, out_shardings=cache),
        jax.jit(partial(read_row), out_shardings=row),
        jax.jit(
            partial(write_row),
            donate_argnums=0,
            in_shardings=(None, None, row),
            out_shardings=cache,
        ),
    )
