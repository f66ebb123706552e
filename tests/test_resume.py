"""A run that is killed at any moment and taken up again ends as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from elpo_jax.metrics import TABLE, deterministic, read

ROOT = Path(__file__).parents[1]
STEPS = 6

# A small policy after a short cold start; its episodes still have calls, failures and branches.
SETTINGS = {
    "policy.d_model": 64,
    "policy.num_layers": 2,
    "policy.head_dim": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 128,
    "sampler.lanes": 32,
    "sampler.rows": 16,
    "sampler.prefill_chunks": "32",
    "episode.max_length": 208,
    "episode.max_turn_tokens": 32,
    "episode.spare_calls": 2,
    "rollout.budget": 8,
    "sft.steps": 400,
    "sft.detours": 0.0,
    "sft.batch": 16,
    "sft.optimizer.learning_rate": 4e-3,
    "train.steps": STEPS,
    "train.batch_prompts": 24,
    "train.mini_batch_prompts": 12,
    "train.micro_batch_rows": 8,
    "train.length_buckets": "208",
    "train.logprob_chunk": 64,
    "eval.tasks": 16,
    "eval.every": 2,
    "checkpoint.every": 2,
    "optimizer.learning_rate": 1e-4,
}

# `elpo_jax.train`, but for a file that says which phase of which step it is in.
ANNOUNCING = """
import os, runpy
from elpo_jax.trainer import Trainer
from elpo_jax.learner.learner import Learner

def announce(owner, name, phase):
    call, count = getattr(owner, name), iter(range(1, 99))
    def announced(*arguments):
        with open(os.environ["PHASES"], "a") as file:
            print(phase, next(count), file=file)
        return call(*arguments)
    setattr(owner, name, announced)

announce(Trainer, "_roll_out", "rollout")
announce(Learner, "update", "update")
runpy.run_module("elpo_jax.train", run_name="__main__", alter_sys=True)
"""


def command(workdir, cache, **changes):
    settings = SETTINGS | {"sft.cache_dir": cache} | changes
    return [
        *(sys.executable, "-c", ANNOUNCING, "--config", "experiments/sci.py"),
        *("--workdir", str(workdir)),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def phases(workdir):
    """A file with a line for each phase that the newest process has begun."""
    return workdir.with_suffix(".phases")


def has_begun(workdir, phase):
    file = phases(workdir)
    return file.exists() and f"{phase}\n" in file.read_text()


def start(workdir, cache, **changes):
    phases(workdir).unlink(missing_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT / "src"),
        "PHASES": str(phases(workdir)),
    }
    return subprocess.Popen(
        command(workdir, cache, **changes),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(condition, process, what):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended before {what}:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, f"never saw {what}"
        time.sleep(0.002)


def outcome(workdir):
    """Everything that must not differ: metrics, trees, the newest checkpoint's arrays."""
    metrics = [deterministic(row) for row in read(workdir / "metrics.jsonl")]
    trees = {file.name: file.read_bytes() for file in (workdir / "trees").iterdir()}
    return metrics, trees, arrays_of(workdir)


def arrays_of(workdir):
    script = (
        "import sys, jax, numpy as np, orbax.checkpoint as ocp\n"
        "tree = ocp.StandardCheckpointer().restore(sys.argv[1])\n"
        "leaves = jax.tree_util.tree_leaves_with_path(tree)\n"
        "np.savez(sys.argv[2], **{jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves})\n"
    )
    newest = max((workdir / "checkpoints").iterdir(), key=lambda f: int(f.name))
    arrays = {}
    for part in ("params", "optimizer"):
        file = workdir / f"{part}.npz"
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, str(newest / part), str(file)],
            check=True,
            capture_output=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        with np.load(file) as content:
            arrays |= {f"{part}{name}": content[name] for name in content.files}
    return arrays


def assert_same(one, other):
    metrics, trees, arrays = one
    assert metrics == other[0]
    assert trees == other[1]
    assert arrays.keys() == other[2].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other[2][name], err_msg=name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    output = finish(start(workdir, cache))
    assert "Held-out success" in output
    return outcome(workdir)


def rows(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return {f.name for f in folder.iterdir()} if folder.exists() else set()


def is_writing(workdir):
    """A checkpoint is under its temporary name."""
    return any("tmp" in name for name in checkpoints(workdir))


def test_the_run_has_something_to_compare(undisturbed):
    metrics, trees, arrays = undisturbed
    assert [row["step"] for row in metrics] == list(range(STEPS + 1))
    assert sum(row.get("bel/searches", 0) for row in metrics) > 0
    assert sum(row.get("episode/calls", 0) for row in metrics) > 1
    assert len({row["policy/grad_norm"] for row in metrics[1:]}) > STEPS / 2, "it learns"
    files = [f"step_{step:06d}.json" for step in range(1, STEPS + 1)]
    evaluations = ["eval_000000.json", f"eval_{STEPS:06d}.json"]
    assert sorted(name for name in trees if name.endswith(".json")) == sorted(files + evaluations)
    assert any("opt_state" in name for name in arrays)


def test_killed_in_rollouts_updates_and_checkpoint_writes(undisturbed, cache, tmp_path):
    """One run, killed again and again at its tenderest moments."""
    workdir = tmp_path / "run"
    moments = [
        ("the first checkpoint write", lambda: is_writing(workdir), 0),
        ("a rollout", lambda: has_begun(workdir, "rollout 1"), 0.05),
        ("an update", lambda: has_begun(workdir, "update 1"), 0.05),
        (
            "another checkpoint write",
            lambda: is_writing(workdir) and "2" not in checkpoints(workdir),
            0,
        ),
        (
            "an update after a checkpoint",
            lambda: "2" in checkpoints(workdir) and has_begun(workdir, "update 3"),
            0.05,
        ),
        ("a later rollout", lambda: has_begun(workdir, "rollout 2"), 0.05),
    ]
    for what, condition, delay in moments:
        process = start(workdir, cache)
        wait_for(condition, process, what)
        time.sleep(delay)
        process.kill()
        process.communicate()
    output = finish(start(workdir, cache))
    assert "going on after step" in output
    assert_same(undisturbed, outcome(workdir))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_leave(undisturbed, cache, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(workdir, cache)
    wait_for(lambda: rows(workdir) == 4, process, "step 3")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "saved step 3" in output or "saved step 4" in output
    assert "Traceback" not in output
    finish(start(workdir, cache))
    assert_same(undisturbed, outcome(workdir))


def test_a_finished_run_is_only_summed_up_again(undisturbed, cache, tmp_path):
    workdir = tmp_path / "run"
    finish(start(workdir, cache))
    before = (workdir / "metrics.jsonl").read_bytes()
    written = {name for row in read(workdir / "metrics.jsonl") for name in row}
    assert {metric.name for metric in TABLE if "<" not in metric.name} <= written
    output = finish(start(workdir, cache))
    assert "Held-out success" in output
    assert "compiling" not in output
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_on_the_folder_is_refused(cache, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    process = start(workdir, cache)
    wait_for((workdir / "config.json").exists, process, "config.json")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    other = start(workdir, cache, **{"optimizer.learning_rate": 0.5})
    output, _ = other.communicate(timeout=120)
    assert other.returncode == 2
    lines = output.strip().splitlines()
    assert len(lines) == 1
    assert "optimizer.learning_rate" in lines[0]
    assert "0.0001" in lines[0]
    assert "0.5" in lines[0]


def test_config_json_is_what_was_run(cache, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, cache, seed=5)
    wait_for((workdir / "config.json").exists, process, "config.json")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads((workdir / "config.json").read_text())["seed"] == 5
