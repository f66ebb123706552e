"""Attention block by block against the formula: values, gradients, windows, a long cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.policy.attention import blockwise_attention, causal_attention
from elpo_jax.sampler.cache_attention import attend_chunk, attend_one, capacity

HEADS, KV_HEADS, SIZE = 6, 3, 8


def random_qkv(length, dtype=np.float32, rows=2):
    rng = np.random.default_rng(length)
    shapes = [(rows, length, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def by_formula(q, k, v, window):
    """[B, T, H, C] in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for row, t, head in np.ndindex(q.shape[:3]):
        first = max(0, t + 1 - window) if window else 0
        keys, values = (x[row, first : t + 1, head * KV_HEADS // HEADS] for x in (k, v))
        scores = keys @ q[row, t, head] / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        out[row, t, head] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 4), (8, 4), (33, 16), (70, 64)])
def test_both_forms_are_the_formula(length, block, window):
    q, k, v = random_qkv(length)
    expected = by_formula(q, k, v, window)
    limit = None if window is None else jnp.int32(window)
    for found in (causal_attention(q, k, v, limit), blockwise_attention(q, k, v, block, limit)):
        np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("length", [16, 37])
def test_gradients_by_blocks_are_those_of_the_plain_form(length, window):
    arguments = random_qkv(length)
    direction = random_qkv(length + 1)[0][:, :length]
    limit = None if window is None else jnp.int32(window)

    def gradients(attention):
        return jax.grad(lambda x: jnp.sum(attention(*x) * direction))(arguments)

    blocks = gradients(lambda q, k, v: blockwise_attention(q, k, v, 8, limit))
    plain = gradients(lambda q, k, v: causal_attention(q, k, v, limit))
    for found, expected in zip(blocks, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_blocks_in_half_precision_stay_near():
    arguments = random_qkv(40, jnp.bfloat16)
    found = blockwise_attention(*arguments, 16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, by_formula(*arguments, None), atol=0.04)


def array_sizes(jaxpr):
    """The number of elements of every array in a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if hasattr(inner, "jaxpr"):
                    inner = inner.jaxpr
                if hasattr(inner, "eqns"):
                    yield from array_sizes(inner)


def test_memory_grows_with_the_length_forward_and_backward():
    """No array is as large as [H, T, T], nor has any more than a few times the elements of q."""
    length, block = 4096, 256
    shapes = [
        jax.ShapeDtypeStruct((1, length, heads, SIZE), jnp.float32)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]

    def loss(q, k, v):
        return blockwise_attention(q, k, v, block).sum()

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*shapes)
    largest = max(array_sizes(program.jaxpr))
    assert largest <= max(length * HEADS * SIZE, HEADS * block * block)
    assert largest < HEADS * length * length / 10


@pytest.mark.parametrize("window", [0, 6])
def test_a_cache_in_blocks_gives_what_the_cache_at_once_gives(window):
    length, block = capacity(29, 8), 8
    assert length == 32
    assert capacity(29, 64) == 29
    rng = np.random.default_rng(0)
    rows, tokens = 3, 4
    q = jnp.asarray(rng.normal(size=(rows, tokens, KV_HEADS, 2, SIZE)), jnp.float32)
    keys = jnp.asarray(rng.normal(size=(rows, KV_HEADS, SIZE, length)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(rows, KV_HEADS, length, SIZE)), jnp.float32)
    positions = jnp.asarray([[0, 1, 2, 3], [9, 10, 11, 12], [25, 26, 27, 28]])
    at_once = attend_chunk(q, keys, values, positions, length, window)
    by_blocks = attend_chunk(q, keys, values, positions, block, window)
    np.testing.assert_allclose(by_blocks, at_once, atol=2e-6)
    one = attend_one(q[:, 1], keys, values, positions[:, 1], block, window)
    np.testing.assert_allclose(one, by_blocks[:, 1], atol=2e-6)


def test_a_row_of_a_cache_in_blocks_is_the_same_bits_in_any_company():
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(2, 1, KV_HEADS, 2, SIZE)), jnp.float32)
    keys = jnp.asarray(rng.normal(size=(2, KV_HEADS, SIZE, 64)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(2, KV_HEADS, 64, SIZE)), jnp.float32)
    attend = jax.jit(lambda positions: attend_chunk(q, keys, values, positions, 8, 0))
    near, far = attend(jnp.array([[3], [5]])), attend(jnp.array([[3], [63]]))
    np.testing.assert_array_equal(near[0], far[0])
    assert (near[1] != far[1]).any()
