"""ELPO on the math suite, with a policy of a million parameters on a laptop's CPU.

    python -m elpo_jax.train --config experiments/math.py --workdir runs/math

A cold start on 24,000 demonstrations, three tenths of whose calls come after a needless one, then
ELPO on 16 questions a step with 16 rollouts each, where every needless call is one too many.
`--config.algorithm=grpo` is the baseline at the same budget.

    python -m elpo_jax.train --config experiments/math.py:gsm8k --workdir runs/gsm8k \\
      --config.data.train=train.jsonl --config.data.eval=test.jsonl

takes the questions from GSM8K's files, and the cold start from their worked solutions. Episodes are
long enough for most of these questions. The small policy can't be expected to solve them.

    python -m elpo_jax.train --config experiments/math.py:qwen3_4b --workdir runs/math_qwen3_4b \\
      --config.policy.checkpoint=DIR --config.sft.data=sft.parquet \\
      --config.data.train=train.parquet --config.data.eval=eval.parquet

is the paper's scale: a checkpoint of Qwen3-4B-Instruct-2507, 469 updates (5 epochs of 3,000 rows)
on conversations such as Open-AgentRL-SFT-3K, then ELPO with the code interpreter for one epoch of
30,000 questions, in files such as Open-AgentRL-30K or DAPO-Math-17k. Rows of either, and of
MATH-500, AIME, GPQA-Diamond and LiveCodeBench, are told apart by their columns: the held-out file
may have another format. `math.py:qwen2_5_7b` is the same for Qwen2.5-7B-Instruct. What it costs
and comes to isn't known: no such run has been made. Prompt and response share the 23,040 tokens
that the paper deals out as 2,560 and 20,480.

The meshes are for 16 TPU v5e (4B) and 8 TPU v5p (7B): 4 hosts and 2, where training runs on one so
far. Elsewhere `--config.mesh.fsdp=F
--config.mesh.tensor=T`, where F * T is the number of devices: T divides 8 kv heads (4B) or 4 (7B),
F divides train.micro_batch_rows, sampler.lanes, sampler.rows and sampler.prefill_rows; 8 devices:
2 and 4. `--config.suite.name=math --config.sft.data= --config.data.train= --config.data.eval=`
generates problems for a calculator instead of reading files.
"""

from ml_collections import ConfigDict

from elpo_jax.errors import unknown_name
from elpo_jax.presets import POLICIES, paper_questions, small_config

VARIANTS = ("", "gsm8k", *POLICIES)


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown_name("variant", variant, VARIANTS))
    return paper_questions(variant) if variant in POLICIES else _small(variant)


def _small(variant: str) -> ConfigDict:
    config = small_config("math")
    config.sft.detours = 0.3
    if variant == "gsm8k":
        config.data.train = "train.jsonl"  # GSM8K's own names; without a file there is an error
        config.data.eval = "test.jsonl"
        config.sft.steps = 200
        config.sft.detours = 0.0
        config.episode.spare_calls = None
        config.episode.max_calls = 8
        config.episode.max_turns = 9
        config.episode.max_length = 640
        config.train.length_buckets = (384, 512, 640)
        config.train.micro_batch_rows = 4
        config.train.steps = 4
        config.eval.tasks = 64
        config.eval.every = 0
    return config
