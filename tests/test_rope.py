"""Rotary positions: what `config.json` says of them, and their frequencies by hand."""

import numpy as np
import pytest

from elpo_jax.policy.families import architecture_of
from elpo_jax.policy.rope import Rope

LONGEST = 512
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def rope_of(**options):
    config = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST,
    }
    return architecture_of({**config, **options}).rope


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type: expected one of .* got 'dynamic'"),
        (
            {"type": "longrope", "short_factor": [1.0]},
            "rope_type: expected one of .* got 'longrope'",
        ),
        (
            {"type": "default", "mrope_section": [1, 2]},
            "got the unsupported mrope_section; exp",
        ),
        (
            {"full_attention": {"rope_type": "default"}},
            "the unsupported full_attention; expec",
        ),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "unsupported partial_rotary",
        ),
        ({"rope_type": "linear"}, "rope_parameters: expected factor for 'linear', found none"),
        ({"rope_type": "linear", "factor": 0.5}, "factor: expected 1 or more, got 0.5"),
        ({"rope_type": "linear", "factor": "4"}, "factor: expected a number above 0, got '4'"),
        (
            {"rope_type": "linear", "factor": 2.0, "attention_factor": 2.0},
            "unsupported attention_fac",
        ),
        ({"rope_type": "llama3", "factor": 8.0}, "expected low_freq_factor, high_freq_factor for"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor: expected more than low_freq_fac"),
        (
            {**LLAMA3, "original_max_position_embeddings": 0},
            "original_max_pos.*: expected a number",
        ),
        ({**YARN, "beta_slow": 0}, "beta_slow: expected a number above 0, got 0"),
        (
            {**YARN, "attention_factor": -1.0},
            "attention_factor: expected a number above 0, got -1.0",
        ),
        ({**YARN, "rope_theta": 1.0}, "rope_theta: expected more than 1 for 'yarn', got 1.0"),
        ({**YARN, "factor": None}, "factor: expected 1 or more, got 0.0"),
        ({"rope_theta": 0}, "rope_theta: expected a number above 0, got 0"),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_positions_that_are_not_supported_are_named(rope, key, message):
    with pytest.raises(ValueError, match=message) as caught:
        rope_of(**{key: rope})
    assert "\n" not in str(caught.value)


def test_two_sorts_of_positions_that_differ_are_refused():
    with pytest.raises(ValueError, match="rope_parameters or rope_scaling, got both"):
        rope_of(rope_parameters=LLAMA3, rope_scaling=YARN)
    assert rope_of(rope_parameters=LLAMA3, rope_scaling=LLAMA3).kind == "llama3"


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, Rope(500.0)),
        ({"type": "default"}, Rope(500.0)),
        ({"type": "linear", "factor": 2.0}, Rope(500.0, "linear", 2.0)),
        (LLAMA3, Rope(500.0, "llama3", 8.0, 8192)),
        (YARN, Rope(500.0, "yarn", 4.0, 32768, attention_factor=0.1 * np.log(4) + 1)),
        (
            {**YARN, "attention_factor": 1.5, "beta_fast": 8, "truncate": False},
            Rope(500.0, "yarn", 4.0, 32768, beta_fast=8.0, attention_factor=1.5, truncate=False),
        ),
        (
            {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
            Rope(
                500.0,
                "yarn",
                4.0,
                32768,
                attention_factor=(0.1 * np.log(4) + 1) / (0.05 * np.log(4) + 1),
            ),
        ),
    ],
)
def test_old_and_new_files_say_the_same_of_positions(rope, expected):
    assert rope_of(rope_scaling=rope, rope_theta=500.0) == expected
    assert rope_of(rope_scaling=rope, rope_theta=500) == expected
    assert rope_of(rope_parameters={**rope, "rope_theta": 500.0}) == expected
    assert rope_of(rope_parameters={**rope, "rope_theta": 500.0}, rope_theta=9.0) == expected


def test_the_original_context_is_the_longest_unless_it_is_given():
    rope = {key: value for key, value in LLAMA3.items() if "original" not in key}
    assert rope_of(rope_parameters=rope).original_length == LONGEST
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 128}
    assert rope_of(rope_parameters=yarn).factor == LONGEST / 128


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (Rope(10_000.0), [1, 0.1, 0.01, 0.001]),
        (Rope(10_000.0, "linear", 4.0), [0.25, 0.025, 0.0025, 0.00025]),
        # Rotations over 100 positions: 15.9, 1.592, 0.16, 0.016. All above 4 are kept, all below 1
        # divided by 8, of the second (1.592 - 1) / 3 = 0.1972 is kept.
        (
            Rope(10_000.0, "llama3", 8.0, 100),
            [1, 0.1972 * 0.1 + 0.8028 * 0.0125, 0.00125, 0.000125],
        ),
        # 32 rotations over 628 positions has pair 8 ln(628 / 201.06) / (2 ln 10000) = 0.4946, one
        # rotation pair 2.0. From 0 to 2: the second is in the middle.
        (Rope(10_000.0, "yarn", 4.0, 628), [1, 0.5 * 0.1 + 0.5 * 0.025, 0.0025, 0.00025]),
        # From 0.4946 to 2: (1 - 0.4946) / 1.5052 = 0.3358 of the second is divided.
        (
            Rope(10_000.0, "yarn", 4.0, 628, truncate=False),
            [1, 0.6642 * 0.1 + 0.3358 * 0.025, 0.0025, 0.00025],
        ),
    ],
    ids=["default", "linear", "llama3", "yarn", "yarn, not rounded"],
)
def test_frequencies_by_hand(rope, expected):
    found = rope.frequencies(8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@pytest.mark.parametrize("size", [64, 128])
def test_frequencies_are_rounded_to_float32_at_every_step(size):
    """As checkpoints are trained: exponent, power and reciprocal."""
    exponents = [np.float32(i) / np.float32(size) for i in range(0, size, 2)]
    expected = [1 / np.float32(1e6 ** float(exponent)) for exponent in exponents]
    np.testing.assert_array_equal(Rope(1e6).frequencies(size), np.array(expected, np.float32))
