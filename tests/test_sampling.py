"""One draw, against numbers worked out by hand and the distribution it must follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.sampler.sampling import draw

# Probabilities 0.1, 0.2, 0.3, 0.4 in this order; the inverse CDF steps at 0.1, 0.3 and 0.6.
PROBS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


def draws(uniforms, probs=PROBS, temperature=1.0, top_p=1.0, top_k=0):
    count = len(uniforms)
    return jax.jit(draw)(
        jnp.tile(jnp.log(probs)[None], (count, 1)),
        jnp.asarray(uniforms, jnp.float32),
        jnp.full(count, temperature, jnp.float32),
        jnp.full(count, top_p, jnp.float32),
        jnp.full(count, top_k, jnp.int32),
    )


def test_the_inverse_cdf_by_hand():
    drawn = draws([0.0, 0.05, 0.15, 0.35, 0.59, 0.61, 0.9999999])
    assert drawn.token.tolist() == [0, 0, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(drawn.log_prob, np.log(PROBS[drawn.token]), rtol=1e-5)
    entropy = -(PROBS * np.log(PROBS)).sum()
    np.testing.assert_allclose(drawn.entropy, entropy, rtol=1e-5)


def test_temperature_sharpens_by_hand():
    # At temperature 0.5 the probabilities are the squares 1, 4, 9, 16 over 30.
    drawn = draws([0.02, 0.1, 0.3, 0.5], temperature=0.5)
    assert drawn.token.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(np.exp(drawn.log_prob), np.array([1, 4, 9, 16]) / 30, rtol=1e-5)


def test_temperature_0_takes_the_likeliest_and_reports_temperature_1():
    drawn = draws([0.0, 0.5], temperature=0.0)
    assert drawn.token.tolist() == [3, 3]
    np.testing.assert_allclose(drawn.log_prob, np.log(0.4), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.39}, {3}),
        ({"top_p": 0.41}, {2, 3}),
        ({"top_p": 0.75}, {1, 2, 3}),
        ({"top_p": 0.75, "top_k": 2}, {2, 3}),
    ],
)
def test_truncation_keeps_the_likeliest_in_proportion(settings, kept):
    uniforms = (np.arange(4000) + 0.5) / 4000
    drawn = draws(uniforms, **settings)
    counts = np.bincount(drawn.token, minlength=4) / len(uniforms)
    expected = np.array([p if i in kept else 0.0 for i, p in enumerate(PROBS)])
    np.testing.assert_allclose(counts, expected / expected.sum(), atol=1e-3)
    # Log-probabilities stay those of the distribution before truncation.
    np.testing.assert_allclose(drawn.log_prob, np.log(PROBS[drawn.token]), rtol=1e-5)


def test_a_lane_is_not_changed_by_a_mate_that_truncates():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(64, 50)) * 3, jnp.float32)
    uniforms = jnp.asarray(rng.uniform(size=64), jnp.float32)
    ones, zeros = jnp.ones(64), jnp.zeros(64, jnp.int32)
    alone = jax.jit(draw)(logits, uniforms, ones, ones, zeros)
    mixed = jax.jit(draw)(logits, uniforms, ones, ones.at[0].set(0.3), zeros.at[1].set(2))
    for one, other in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(one[2:], other[2:])


def test_an_impossible_token_is_never_drawn_and_has_no_entropy():
    probs = np.array([0.0, 0.5, 0.5, 0.0], np.float32)
    drawn = draws(np.linspace(0, 0.9999999, 101), probs=probs)
    assert set(drawn.token.tolist()) == {1, 2}
    np.testing.assert_allclose(drawn.entropy, np.log(2), rtol=1e-5)


def test_nan_logits_stay_visible():
    drawn = draws([0.5], probs=np.array([0.5, np.nan, 0.5, 0.1], np.float32))
    assert not np.isfinite(drawn.log_prob).any()
