"""Experiments from cold start to report, cut to the smallest policy and a few steps."""

import contextlib
import io

import pytest

from elpo_jax.metrics import read
from elpo_jax.train import main as train_main

SMALLEST = {
    "policy.d_model": 32,
    "policy.num_layers": 1,
    "policy.head_dim": 8,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 32,
    "policy.scan_unroll": 1,
    "sampler.lanes": 8,
    "sampler.rows": 8,
    "sampler.prefill_rows": 4,
    "sampler.prefill_chunks": "64",
    "sampler.fork_rows": 4,
    "rollout.budget": 4,
    "sft.steps": 40,
    "sft.batch": 8,
    "train.steps": 2,
    "train.batch_prompts": 2,
    "train.mini_batch_prompts": 2,
    "train.length_buckets": "384",
    "eval.tasks": 8,
    "eval.every": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["code.py", "sci.py:search"])
def test_an_experiment_goes_from_its_cold_start_to_its_report(experiment, tmp_path):
    folder = tmp_path / "run"
    settings = SMALLEST | {"sft.cache_dir": tmp_path / "cache"}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        train_main(["p", "--config", f"experiments/{experiment}", "--workdir", str(folder), *flags])
    rows = read(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[-1]["eval/tasks"] == 8
    assert rows[-1]["episode/drops"] == 0
    assert (folder / "report.html").exists()
