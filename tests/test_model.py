"""The decoder: what each part must do whatever its parameters are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.config import MeshConfig, PolicyConfig
from elpo_jax.policy.attention import causal_attention
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.model import rotate
from elpo_jax.policy.rope import Rope
from elpo_jax.policy.sharding import init_params, make_mesh, param_shardings

CONFIG = PolicyConfig(
    d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=12, mlp_dim=48
)
VOCABULARY = 40


def build(config=CONFIG):
    model = make_decoder(config, VOCABULARY)
    return model, init_params(model, jax.random.key(0), make_mesh(MeshConfig()))


def tokens(length, rows=2, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype(np.int32)


def test_rotation_by_hand():
    # Head size 4: frequencies 1 and theta^-1/2 = 0.1; pairs are (0, 2) and (1, 3).
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.array([[5]]), Rope(100.0))[0, 0, 0]
    expected = [
        np.cos(5) * 1 - np.sin(5) * 3,
        np.cos(0.5) * 2 - np.sin(0.5) * 4,
        np.cos(5) * 3 + np.sin(5) * 1,
        np.cos(0.5) * 4 + np.sin(0.5) * 2,
    ]
    np.testing.assert_allclose(turned, expected, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
def test_attention_in_blocks_is_attention_by_the_formula(length):
    rng = np.random.default_rng(length)
    q = rng.normal(size=(2, length, 4, 8))
    k, v = rng.normal(size=(2, 2, length, 2, 8))
    expected = np.zeros_like(q)
    for row in range(2):
        for head in range(4):
            for t in range(length):
                keys, values = (x[row, : t + 1, head // 2] for x in (k, v))
                scores = keys @ q[row, t, head] / np.sqrt(8)
                weights = np.exp(scores - scores.max())
                expected[row, t, head] = weights @ values / weights.sum()
    found = causal_attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_token_sees_its_past_and_nothing_else():
    model, params = build()
    forward = jax.jit(lambda t: model.apply({"params": params}, t))
    row = tokens(20)
    changed = row.copy()
    changed[:, 12] = (changed[:, 12] + 1) % VOCABULARY
    one, other = forward(row), forward(changed)
    np.testing.assert_array_equal(one[:, :12], other[:, :12])
    assert (np.abs(one[:, 12:] - other[:, 12:]).max(axis=-1) > 1e-4).all()


def test_tied_embeddings_have_no_head_and_share_the_table():
    model, params = build(replace(CONFIG, tie_embeddings=True))
    assert "head" not in params
    hidden = model.apply({"params": params}, tokens(5), method="hidden")
    logits = model.apply({"params": params}, hidden, method="logits")
    scale = params["final_norm"]["scale"]
    normed = (
        hidden
        / np.sqrt((np.asarray(hidden) ** 2).mean(-1, keepdims=True) + 1e-6)
        * scale[None, None]
    )
    np.testing.assert_allclose(logits, normed @ params["embedding"]["embedding"].T, atol=1e-4)


def test_unrolling_the_scan_changes_nothing():
    model, params = build()
    unrolled = make_decoder(replace(CONFIG, scan_unroll=3), VOCABULARY)
    one, other = (m.apply({"params": params}, tokens(9)) for m in (model, unrolled))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_bfloat16_is_float32_to_its_precision():
    model, params = build()
    half = make_decoder(replace(CONFIG, dtype="bfloat16"), VOCABULARY)
    exact = model.apply({"params": params}, tokens(30))
    rounded = half.apply({"params": params}, tokens(30))
    assert rounded.dtype == jnp.float32
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_every_parameter_has_a_sharding_of_its_own_rank():
    model, params = build()
    shardings = param_shardings(model, make_mesh(MeshConfig()))
    assert jax.tree.structure(params) == jax.tree.structure(shardings)
    specs = jax.tree.map(lambda x, s: len(s.spec) == x.ndim, params, shardings)
    assert all(jax.tree.leaves(specs))
    assert tuple(shardings["layers"]["query"]["kernel"].spec) == (None, "fsdp", "tensor", None)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"mesh: expected .* = 1, .*, got 2 \* 1 \* 3; "):
        make_mesh(MeshConfig(2, 1, 3))
