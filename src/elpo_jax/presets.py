"""What experiments start from: a small policy on a CPU, or the paper's settings and policies.

The paper's are of https://arxiv.org/abs/2602.09598, Table 2 and section 5.3; where it says nothing,
of DemyAgent, whose protocol it follows. The rest of Table 2 are the defaults of `elpo_jax.config`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from elpo_jax.config import default_config

# A policy of a million parameters, 16 tasks a step with 16 rollouts each, where every needless call
# is one too many: minutes on two cores.
SMALL: Mapping[str, Any] = {
    "policy.scan_unroll": default_config().policy.num_layers,
    "sft.steps": 1500,
    "sft.batch": 16,
    "sft.optimizer.learning_rate": 3e-3,
    "sft.optimizer.warmup_steps": 20,
    "episode.max_length": 256,
    "episode.max_turn_tokens": 96,
    "episode.spare_calls": 0,
    "sampler.lanes": 32,
    "train.length_buckets": (128, 192, 256),
    "train.micro_batch_rows": 8,
    "train.steps": 16,
    "train.batch_prompts": 16,
    "train.mini_batch_prompts": 4,
    "optimizer.learning_rate": 3e-4,
    "optimizer.schedule": "linear",
    "eval.every": 8,
}

PROMPT_TOKENS, RESPONSE_TOKENS = 2_560, 20_480
TURNS = 16
SFT_ROWS, SFT_EPOCHS, SFT_BATCH = 3_000, 5, 32  # Open-AgentRL-SFT-3K
RL_PROMPTS, RL_BATCH = 30_000, 128  # one epoch of Open-AgentRL-30K

_CONTEXT = PROMPT_TOKENS + RESPONSE_TOKENS
_SFT_STEPS = -(-SFT_ROWS * SFT_EPOCHS // SFT_BATCH)

PAPER: Mapping[str, Any] = {
    "episode.max_turns": TURNS,
    "episode.max_calls": TURNS - 1,  # the last turn is the answer
    "episode.spare_calls": None,
    "episode.max_length": _CONTEXT,
    "episode.max_turn_tokens": RESPONSE_TOKENS,
    "sampler.temperature": 1.0,
    "sampler.top_p": 1.0,
    "eval.temperature": 1.0,
    "eval.top_p": 0.6,
    "eval.samples": 32,
    "train.steps": RL_PROMPTS // RL_BATCH,
    "train.batch_prompts": RL_BATCH,
    "train.mini_batch_prompts": 16,
    "optimizer.learning_rate": 1e-6,
    "optimizer.schedule": "constant",
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 1.0,
    "sft.steps": _SFT_STEPS,
    "sft.batch": SFT_BATCH,
    "sft.optimizer.learning_rate": 1e-5,
    "sft.optimizer.schedule": "cosine",
    "sft.optimizer.warmup_steps": round(0.1 * _SFT_STEPS),
    "sft.optimizer.b1": 0.9,
    "sft.optimizer.b2": 0.95,
    "sft.optimizer.weight_decay": 0.01,
}

# How a policy with that context is computed: nothing here changes what is learnt.
_LARGE: Mapping[str, Any] = {
    "policy.dtype": "bfloat16",
    "policy.param_dtype": "bfloat16",
    "policy.remat": "full",
    "policy.attention_block": 1024,
    "sampler.decode_block": 32,
    "sampler.prefill_rows": 8,
    "sampler.prefill_chunks": (64, 256, 1024),
    "sampler.fork_rows": 8,
    "sampler.tool_workers": 16,
    "train.length_buckets": tuple(_CONTEXT // 2**halvings for halvings in (4, 3, 2, 1, 0)),
    "train.logprob_chunk": 256,
    "eval.tasks": 64,
}

# Names of checkpoints on the Hugging Face hub stand for folders that don't exist: without
# --config.policy.checkpoint a run ends in a line, rather than train the embedded policy.
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "qwen3_4b": {
        "policy.checkpoint": "Qwen3-4B-Instruct-2507",
        "mesh.fsdp": 4,
        "mesh.tensor": 4,
        "sampler.lanes": 16,
        "sampler.rows": 8,
        "train.micro_batch_rows": 4,
    },
    "qwen2_5_7b": {
        "policy.checkpoint": "Qwen2.5-7B-Instruct",
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
        "sampler.lanes": 64,
        "sampler.rows": 64,
        "train.micro_batch_rows": 8,
    },
}


def small_config(suite: str) -> ConfigDict:
    """The default config with a small policy's settings on a suite, for an experiment to edit."""
    config = default_config()
    config.update_from_flattened_dict(SMALL)
    config.suite.name = suite
    return config


def paper_questions(policy: str) -> ConfigDict:
    """`paper_config` on questions from files, with the paper's tool. Without files a run ends in a
    line each."""
    config = paper_config(policy)
    config.suite.name = "questions"
    config.data.format = "auto"
    config.data.train = "train.parquet"
    config.data.eval = "eval.parquet"
    config.sft.data = "sft.parquet"
    return config


def paper_config(policy: str) -> ConfigDict:
    """The default config with the paper's settings, for an experiment to edit.

    Args:
      policy: a key of `POLICIES`.
    """
    config = default_config()
    config.update_from_flattened_dict({**PAPER, **_LARGE, **POLICIES[policy]})
    return config
