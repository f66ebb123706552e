"""ELPO on the science suite, for a laptop's CPU.

python -m elpo_jax.train --config experiments/sci.py --workdir runs/sci
"""

from ml_collections import ConfigDict

from elpo_jax.config import default_config

VARIANTS = ("", "long")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, got {variant!r}")
    config = default_config()
    config.suite.name = "science"
    config.policy.scan_unroll = config.policy.num_layers
    config.sft.steps = 200
    config.sft.batch = 64
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.warmup_steps = 20
    config.episode.max_length = 256
    config.episode.max_turn_tokens = 96
    config.train.length_buckets = (128, 192, 256)
    config.train.micro_batch_rows = 16
    config.train.steps = 30
    config.train.batch_prompts = 16
    config.train.mini_batch_prompts = 4
    config.optimizer.learning_rate = 3e-4
    return config
