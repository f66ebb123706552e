"""A whole run on questions from files: a cold start on conversations with the code interpreter,
then training and evaluation on rows of several formats."""

import contextlib
import io
import json

import pytest

from elpo_jax.metrics import read
from elpo_jax.train import main as train_main

SETTINGS = {
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
    "episode.max_length": 512,
    "episode.max_turn_tokens": 48,
    "episode.spare_calls": "none",
    "rollout.budget": 4,
    "sft.steps": 30,
    "sft.batch": 4,
    "sft.detours": 0.0,
    "sft.optimizer.warmup_steps": 0,
    "sft.optimizer.learning_rate": 1e-2,
    "train.steps": 1,
    "train.batch_prompts": 2,
    "train.mini_batch_prompts": 2,
    "train.micro_batch_rows": 4,
    "train.length_buckets": "512",
    "eval.tasks": 3,
    "eval.every": 0,
    "suite.name": "questions",
    "data.format": "auto",
}
TOOL = {
    "name": "code_interpreter",
    "description": "Runs Python.",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
}


def conversation(question, code, output, answer):
    function = {"name": "code_interpreter", "arguments": {"code": code}}
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": output},
            {"role": "assistant", "content": answer},
        ],
        "tools": [{"type": "function", "function": TOOL}],
    }


CONVERSATIONS = [
    conversation("Half of 3?", "print(3/2)", "1.5", "\\boxed{\\frac{3}{2}}"),
    conversation("Half of 5?", "print(5/2)", "2.5", "\\boxed{\\frac{5}{2}}"),
]
TRAIN = [
    {
        "data_source": "x/halves",
        "prompt": [{"role": "user", "content": f"Half of {n}?"}],
        "reward_model": {"ground_truth": f"\\frac{{{n}}}{{2}}", "style": "rule"},
    }
    for n in (3, 5)
]
TESTS = [{"input": "1", "output": "1", "testtype": "stdin"}]
HELD_OUT = [
    {"problem": "Half of 3?", "answer": "1.5", "subject": "Algebra"},
    {"problem": "Which?\nA. x\nB. y", "solution": "B", "domain": "Physics"},
    {
        "question_content": "Print it.",
        "public_test_cases": TESTS,
        "private_test_cases": [],
        "difficulty": "easy",
    },
]


@pytest.mark.slow
def test_a_run_on_questions_of_several_formats(tmp_path):
    files = {"data.train": TRAIN, "data.eval": HELD_OUT, "sft.data": CONVERSATIONS}
    for key, rows in files.items():
        (tmp_path / f"{key}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = SETTINGS | {key: tmp_path / f"{key}.jsonl" for key in files}
    settings["sft.cache_dir"] = tmp_path / "cache"
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    folder = tmp_path / "run"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_main(
            ["prog", "--config", "experiments/math.py", "--workdir", str(folder), *arguments]
        )
    assert "warning" not in output.getvalue()
    rows = read(folder / "metrics.jsonl")
    kinds = {name for name in rows[-1] if name.startswith("eval/trials/")}
    assert kinds == {"eval/trials/Algebra", "eval/trials/Physics", "eval/trials/easy"}
    assert rows[-1]["eval/calls"] > 0
    assert rows[-1]["sandbox/snippets"] >= 0
    assert rows[-1]["sandbox/restarts"] == 0
    assert "the policy's code runs in sandbox tier T" in output.getvalue()
    metadata = next((folder / "checkpoints").glob("*/metadata/metadata"))
    assert json.loads(metadata.read_text())["given"]["sandbox_tier"].startswith("T")
    assert "Physics" in (folder / "report.html").read_text()
