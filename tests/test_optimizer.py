"""Learning-rate schedules by hand, and settings that are refused."""

import math

import numpy as np
import pytest

from elpo_jax.config import OptimizerConfig
from elpo_jax.learner.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 4, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", 0, [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
    ],
)
def test_schedules_by_hand(schedule, warmup, expected):
    config = OptimizerConfig(learning_rate=3.0, schedule=schedule, warmup_steps=warmup)
    rates = [float(make_schedule(config, 4)(count)) for count in range(5)]
    np.testing.assert_allclose(rates, 3.0 * np.array(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "step"}, "schedule: expected constant, cosine or linear, got 'step'"),
        ({"warmup_steps": -1}, "warmup_steps: expected >= 0, got -1"),
        ({"schedule": "cosine", "warmup_steps": 4}, "expected fewer than the run's 4 updates"),
        ({"clip_norm": 0.0}, "clip_norm: expected > 0, got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm: expected > 0, got nan"),
    ],
)
def test_bad_optimizer_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(**fields), 4)
