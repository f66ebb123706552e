"""A run that is killed at any moment and taken up again ends as one that was left alone."""

import json
import signal
import time

import processes
import pytest
from processes import (
    LEARNING,
    assert_same,
    checkpoints,
    finish,
    has_begun,
    is_writing,
    outcome,
    rows,
    wait_for,
)

from elpo_jax.metrics import TABLE, read

STEPS = LEARNING["train.steps"]


def start(workdir, cache, **changes):
    settings = LEARNING | {"sft.cache_dir": cache} | changes
    return processes.start(settings, workdir, compiled=cache / "compiled")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    output = finish(start(workdir, cache))
    assert "Held-out success" in output
    return outcome(workdir)


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
    output = finish(process, status=128 + number)
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
    lines = finish(other, status=2).strip().splitlines()
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
