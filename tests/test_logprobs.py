"""Chunked log-probabilities against the plain computation, and what they keep in memory."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.learner.logprobs import token_log_probs, token_log_probs_and_entropies

B, T, D, V = 3, 13, 5, 11


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    head = (2.0 * rng.normal(size=(D, V))).astype(np.float32)
    return hidden, head, rng.integers(0, V, (B, T)).astype(np.int32)


def _plain(hidden, head, tokens, temperature):
    """The whole [B, T, V], token by token in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / temperature
    log_probs, entropies = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        for t in range(1, T):
            row = logits[b, t - 1]
            probs = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            log_probs[b, t] = math.log(probs[tokens[b, t]])
            entropies[b, t] = -(probs * np.log(probs)).sum()
    return log_probs, entropies


def test_uniform_logits_by_hand():
    hidden, tokens = jnp.zeros((1, 3, 2)), jnp.array([[4, 0, 3]])
    log_probs, entropies = token_log_probs_and_entropies(
        lambda h: jnp.zeros((*h.shape[:-1], 8)), hidden, tokens, 1.0, 2
    )
    np.testing.assert_allclose(log_probs, [[0, -math.log(8), -math.log(8)]], rtol=1e-6)
    np.testing.assert_allclose(entropies, [[0, math.log(8), math.log(8)]], rtol=1e-6)


def test_shift_and_temperature_by_hand():
    # Position 0 prefers word 1 by 2 nats, so at temperature 2 by 1 nat.
    logits = jnp.array([[[0.0, 2.0], [0.0, 0.0]]])
    log_probs = token_log_probs(lambda h: h, logits, jnp.array([[0, 1]]), 2.0, 8)
    np.testing.assert_allclose(log_probs, [[0.0, -math.log1p(math.exp(-1.0))]], rtol=1e-6)


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (4, 0.7), (13, 0.7), (64, 2.0)])
def test_chunks_agree_with_the_whole(inputs, chunk, temperature):
    hidden, head, tokens = inputs
    expected = _plain(hidden, head, tokens, temperature)
    arguments = (lambda h: h @ head, hidden, tokens, temperature, chunk)
    both = jax.jit(token_log_probs_and_entropies, static_argnums=(0, 4))(*arguments)
    np.testing.assert_allclose(both, expected, atol=1e-5)
    assert np.all(np.asarray(both[1]) > -1e-6)  # where nearly all probability is on one word
    alone = jax.jit(token_log_probs, static_argnums=(0, 4))(*arguments)
    np.testing.assert_allclose(alone, expected[0], atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 13])
def test_gradients_agree_with_the_whole(inputs, chunk):
    hidden, head, tokens = inputs
    weights = np.linspace(-1.0, 2.0, B * T, dtype=np.float32).reshape(B, T)

    def chunked(hidden, head):
        return (weights * token_log_probs(lambda h: h @ head, hidden, tokens, 0.7, chunk)).sum()

    def whole(hidden, head):
        everything = jax.nn.log_softmax(hidden[:, :-1] @ head / 0.7)
        picked = jnp.take_along_axis(everything, tokens[:, 1:, None], axis=-1)[..., 0]
        return (weights[:, 1:] * picked).sum()

    for ours, theirs in zip(
        jax.jit(jax.grad(chunked, argnums=(0, 1)))(hidden, head),
        jax.jit(jax.grad(whole, argnums=(0, 1)))(hidden, head),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_entropies_have_a_gradient(inputs):
    hidden, head, tokens = inputs

    @jax.jit
    def total(scale):
        _, entropies = token_log_probs_and_entropies(
            lambda h: scale * (h @ head), hidden, tokens, 1.0, 4
        )
        return entropies.sum()

    step = 1e-2
    numeric = (total(1.0 + step) - total(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(1.0), numeric, rtol=1e-2)


def _largest_float_buffer(compiled_text):
    """Elements of the largest float array that the compiled program names."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|f16)\[([\d,]+)\]", compiled_text)
    return max(math.prod(int(size) for size in shape.split(",")) for shape in shapes)


def test_all_logits_never_exist_at_once():
    batch, length, vocabulary, chunk = 2, 64, 512, 8
    hidden = np.ones((batch, length, 4), np.float32)
    head, tokens = np.ones((4, vocabulary), np.float32), np.zeros((batch, length), np.int32)

    def loss(hidden, head, chunk):
        log_probs = token_log_probs(lambda h: h @ head, hidden, tokens, 1.0, chunk)
        return (log_probs * log_probs).sum()

    def largest(chunk):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        return _largest_float_buffer(gradient.lower(hidden, head, chunk).compile().as_text())

    assert largest(chunk) == batch * chunk * vocabulary
    assert largest(length) == batch * length * vocabulary  # so the measurement sees what it must


def test_bad_chunk_is_refused(inputs):
    hidden, head, tokens = inputs
    with pytest.raises(ValueError, match="chunk: expected at least one time step, got 0"):
        token_log_probs(lambda h: h @ head, hidden, tokens, 1.0, 0)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0, 2.0])
def test_ids_that_only_fill_the_vocabulary_count_for_nothing_at_any_temperature(
    inputs, temperature
):
    hidden, head, tokens = inputs

    def filled(h):
        fillers = jnp.full((*h.shape[:-1], 3), jnp.finfo(jnp.float32).min)
        return jnp.concatenate([h @ head, fillers], axis=-1)

    found = token_log_probs_and_entropies(filled, hidden, tokens, temperature, 4)
    for ours, expected in zip(found, _plain(hidden, head, tokens, temperature), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_logits_that_are_not_numbers_stay_visible(inputs):
    hidden, head, tokens = inputs
    broken = head.copy()
    broken[0, 0] = np.nan
    for found in token_log_probs_and_entropies(lambda h: h @ broken, hidden, tokens, 1.0, 4):
        assert np.isnan(found[:, 1:]).all()
