"""A run that is killed at any moment and taken up again ends as one that was left alone."""

import json
import re
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

from elpo_jax import replay
from elpo_jax.errors import RunFault
from elpo_jax.metrics import TABLE, read

STEPS = LEARNING["train.steps"]


def start(workdir, cache, prelude="", **changes):
    settings = LEARNING | {"sft.cache_dir": cache} | changes
    return processes.start(settings, workdir, cache / "compiled", prelude)


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
    names = {metric.name for metric in TABLE if "<" not in metric.name}
    assert {name for name in names if not name.startswith("sandbox/")} <= written  # it runs no code
    output = finish(start(workdir, cache))
    assert "Held-out success" in output
    assert "compiling" not in output
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_on_the_folder_is_refused(cache, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    process = start(workdir, cache)
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process, "a step")
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


# A tool that breaks on an eighth of the policy's calls, or on all; what `does` is filled in. The
# suite's solvers, which aren't on the tools' threads, get their answers.
BREAKING = """
import threading, zlib
from elpo_jax.tools.lookup import Lookup

answer = Lookup.call

def call(self, state, arguments):
    is_policys = threading.current_thread() is not threading.main_thread()
    if is_policys and zlib.crc32(str(sorted(arguments.items())).encode()) % {share} == 0:
        {does}
    return answer(self, state, arguments)

Lookup.call = call
"""


@pytest.mark.slow
def test_tools_that_break_cost_rollouts_and_not_the_run(cache, tmp_path):
    """However they break, the rollouts that are left are the same."""
    outcomes = []
    for does in ("raise SystemExit('no table')", "return state, 42"):
        workdir = tmp_path / f"run {len(outcomes)}"
        process = start(workdir, cache, BREAKING.format(share=8, does=does), **{"train.steps": 2})
        output = finish(process)
        assert re.search(r"warning: step 1: \d+ rollouts and \d+ tasks dropped, the last", output)
        assert re.search(r"warning: evaluation: \d+ of 16 tasks dropped", output)
        assert all(row["episode/drops"] > 0 for row in read(workdir / "metrics.jsonl")[1:])
        outcomes.append(outcome(workdir))
    assert_same(*outcomes)


@pytest.mark.slow
def test_calls_that_hang_cost_rollouts_and_not_the_run(cache, tmp_path):
    workdir = tmp_path / "run"
    hanging = BREAKING.format(share=8, does="threading.Event().wait(3)")
    changes = {"sandbox.wall_seconds": 0.4, "episode.tool_seconds": 0.5, "train.steps": 2}
    output = finish(start(workdir, cache, hanging, **changes))
    assert re.search(r"warning: step 1: \d+ rollouts and \d+ tasks dropped, the last", output)
    assert "no answer in 0.5 s" in output
    assert all(row["episode/tool_timeouts"] > 0 for row in read(workdir / "metrics.jsonl")[1:])


# The policy's look-ups hang in step 4.
HANGING_LATER = """
import threading
from elpo_jax.tools.lookup import Lookup
from elpo_jax.trainer import Trainer

answer, roll_out, at = Lookup.call, Trainer._roll_out, [0]

def roll_out_at(self, state, step, *rest):
    at[0] = step
    return roll_out(self, state, step, *rest)

def call(self, state, arguments):
    if at[0] == 4 and threading.current_thread() is not threading.main_thread():
        threading.Event().wait()
    return answer(self, state, arguments)

Trainer._roll_out, Lookup.call = roll_out_at, call
"""


@pytest.mark.slow
def test_tools_that_all_hang_end_the_run_with_its_state_saved(undisturbed, cache, tmp_path):
    """Checkpoints are made every second step."""
    workdir = tmp_path / "run"
    seconds = {"sandbox.wall_seconds": 1.0, "episode.tool_seconds": 2.0}
    output = finish(start(workdir, cache, HANGING_LATER, **seconds), status=3)
    last = output.splitlines()[-1]
    assert last.startswith(f"error: {workdir}: tools: ")
    assert re.search(r": \d+ calls run on after episode.tool_seconds=2 and hold a ", last)
    assert last.endswith("; saved step 3; once that is mended the same command goes on")
    assert "Traceback" not in output
    finish(start(workdir, cache, **seconds))
    assert_same(undisturbed, outcome(workdir))


@pytest.mark.slow
def test_an_absurd_learning_rate_stops_in_the_first_step(cache, tmp_path):
    """The first update is finite and ruins the policy; the second isn't, and nothing is saved."""
    workdir = tmp_path / "run"
    absurd = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 1e30}
    last = finish(start(workdir, cache, **absurd), status=3).splitlines()[-1]
    assert last.startswith(f"error: {workdir}: step 1: update 1: not finite: ")
    assert re.search(r" \(tasks train/\d+, train/\d+, train/\d+ and 9 more\); saved step 0; ", last)
    assert checkpoints(workdir) == {"0"}
    assert rows(workdir) == 1
    dump = workdir / "faults" / "step_000001"
    found = json.loads((dump / "fault.json").read_text())
    assert found["where"] == {"epoch": 0, "mini_batch": 1}
    assert len(found["tasks"]) == LEARNING["train.mini_batch_prompts"]
    with pytest.raises(RunFault, match="reproduced; the first is among the "):
        replay.main(["replay", "--dump", str(dump)])
