"""The clipped surrogate against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.learner.base import LossSettings
from elpo_jax.learner.surrogate import ClipBounds, clipped_surrogate

# Bounds 0.8 and 1.315; with ELC 0.685 and 1.315 (ELPO, Table 2).
BOUNDS = ClipBounds(eps_low=0.2, eps_high=0.315, eps_elc=0.115, log_ratio_clamp=20.0)

# ratio, advantage, elc -> objective, d objective / d log_prob, clipped low, clipped high
CASES = [
    (1.0, 2.0, 0.0, 2.0, 2.0, False, False),
    (1.3, 2.0, 0.0, 2.6, 2.6, False, False),
    (1.4, 2.0, 0.0, 2.63, 0.0, False, True),
    (0.5, 2.0, 0.0, 1.0, 1.0, False, False),  # the lower bound doesn't act where A > 0
    (1.0, -2.0, 0.0, -2.0, -2.0, False, False),
    (0.9, -2.0, 0.0, -1.8, -1.8, False, False),
    (0.75, -2.0, 0.0, -1.6, 0.0, True, False),
    (0.75, -2.0, 1.0, -1.5, -1.5, False, False),  # ELC: goes on below 0.8 ...
    (0.6, -2.0, 1.0, -1.37, 0.0, True, False),  # ... down to 0.685
    (1.5, -2.0, 0.0, -3.0, -3.0, False, False),  # the upper bound doesn't act where A < 0
    (1.5, -2.0, 1.0, -3.0, -3.0, False, False),
    (1.4, 2.0, 1.0, 2.63, 0.0, False, True),  # ELC leaves the upper bound alone
    (0.5, 2.0, 1.0, 1.0, 1.0, False, False),
    (0.5, 0.0, 0.0, 0.0, 0.0, False, False),
    (1.5, 0.0, 1.0, 0.0, 0.0, False, False),
]


def _columns():
    ratio, advantages, elc, *expected = (np.array(column) for column in zip(*CASES, strict=True))
    old = np.linspace(-3.0, -0.5, len(CASES)).astype(np.float32)
    new = old + np.log(ratio).astype(np.float32)
    return new, old, advantages.astype(np.float32), elc.astype(np.float32), expected


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "plain"])
def test_each_side_of_each_clip(wrap):
    new, old, advantages, elc, (objective, gradient, low, high) = _columns()
    result = wrap(clipped_surrogate)(new, old, advantages, elc, BOUNDS)
    np.testing.assert_allclose(result.objective, objective, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result.clipped_low, low)
    np.testing.assert_array_equal(result.clipped_high, high)

    def total(new):
        return clipped_surrogate(new, old, advantages, elc, BOUNDS).objective.sum()

    np.testing.assert_allclose(wrap(jax.grad(total))(new), gradient, rtol=1e-6, atol=1e-6)


def test_old_log_probs_and_advantages_are_constants():
    new, old, advantages, elc, _ = _columns()

    def total(old, advantages):
        return clipped_surrogate(jnp.asarray(new), old, advantages, elc, BOUNDS).objective.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(old, advantages):
        np.testing.assert_array_equal(gradient, np.zeros(len(CASES)))


def test_log_ratio_is_clamped():
    new = jnp.array([[100.0, -100.0]])
    advantages = jnp.array([[-1.0, 1.0]])
    zeros = jnp.zeros((1, 2))
    result = clipped_surrogate(new, zeros, advantages, zeros, BOUNDS)
    np.testing.assert_array_equal(result.log_ratio, [[20.0, -20.0]])
    np.testing.assert_allclose(result.objective, [[-math.exp(20), math.exp(-20)]], rtol=1e-6)
    gradient = jax.grad(
        lambda x: clipped_surrogate(x, zeros, advantages, zeros, BOUNDS).objective.sum()
    )(new)
    np.testing.assert_array_equal(gradient, zeros)


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_nan_is_not_hidden(argument, advantage):
    arguments = [jnp.full(2, -1.0), jnp.full(2, -1.0), jnp.full(2, advantage)]
    arguments[argument] = arguments[argument].at[0].set(jnp.nan)
    result = clipped_surrogate(*arguments, jnp.zeros(2), BOUNDS)
    np.testing.assert_array_equal(jnp.isnan(result.objective), [True, False])


def test_wrong_arguments_are_refused():
    x = jnp.zeros((2, 3))
    with pytest.raises(AssertionError, match="shape"):
        clipped_surrogate(x, x, x, jnp.zeros((2, 1)), BOUNDS)
    with pytest.raises(AssertionError, match="type"):
        clipped_surrogate(x, x, x, jnp.zeros((2, 3), bool), BOUNDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps_low": -0.1}, "eps_low: expected a finite number >= 0, got -0.1"),
        ({"eps_high": float("nan")}, "eps_high: .* got nan"),
        ({"eps_elc": float("inf")}, "eps_elc: .* got inf"),
        ({"log_ratio_clamp": 0.0}, "log_ratio_clamp: .* got 0.0"),
        ({"aggregation": "mean"}, "aggregation: expected one of seq-mean-token-mean, .* 'mean'"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LossSettings(**fields)
