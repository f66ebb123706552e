"""ELPO on the science suite, with a policy of a million parameters on a laptop's CPU.

    python -m elpo_jax.train --config experiments/sci.py --workdir runs/sci

A cold start on 24,000 demonstrations, two fifths of whose look-ups come after a needless one, then
ELPO on 16 questions a step with 16 rollouts each, where every needless call is one too many.
Variants: `sci.py:long` asks questions of 4 to 8 calls; `sci.py:search` has no lookup tool, but
searches the suite's facts as sentences, or with `--config.suite.corpus=FILE` those of a file.
`--config.algorithm=grpo` is the baseline at the same budget.

    python -m elpo_jax.train --config experiments/sci.py:qwen3_4b --workdir runs/sci_qwen3_4b \\
      --config.policy.checkpoint=DIR

asks them of a checkpoint of Qwen3-4B-Instruct-2507, with the paper's settings: 469 updates on the
suite's demonstrations (`--config.sft.data=FILE`: on a file's conversations instead;
`--config.sft.steps=0`: none), then 234 steps of ELPO on 128 questions. What it costs and comes to
isn't known: no such run has been made. The mesh is for 16 TPU v5e, which are 4 hosts, and training
runs on one so far; for one host see README.md, for other meshes `experiments/math.py`.

    python -m elpo_jax.train --config experiments/sci.py:gpqa --workdir runs/gpqa \\
      --config.policy.checkpoint=DIR --config.sft.data=sft.parquet \\
      --config.data.train=train.parquet --config.data.eval=gpqa_diamond.parquet

is `experiments/math.py:qwen3_4b` with GPQA-Diamond held out: scientific questions from files, with
the code interpreter.
"""

from ml_collections import ConfigDict

from elpo_jax.errors import unknown_name
from elpo_jax.presets import paper_config, paper_questions, small_config

VARIANTS = ("", "long", "search", "qwen3_4b", "gpqa")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(unknown_name("variant", variant, VARIANTS))
    if variant == "gpqa":
        return paper_questions("qwen3_4b")
    return _paper(variant) if variant == "qwen3_4b" else _small(variant)


def _paper(policy: str) -> ConfigDict:
    config = paper_config(policy)
    config.suite.name = "science"
    config.suite.length = "long"
    return config


def _small(variant: str) -> ConfigDict:
    config = small_config("science")
    config.sft.detours = 0.4
    if variant == "search":
        config.suite.search = True
        config.policy.tokenizer = "embedded:search"
        config.episode.max_length = 384
        config.train.length_buckets = (192, 256, 384)
    if variant == "long":
        config.suite.length = "long"
        config.episode.max_calls = 8
        config.episode.max_turns = 9
        config.episode.max_length = 384
        config.train.length_buckets = (192, 256, 384)
    return config
