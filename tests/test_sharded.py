"""A run on eight devices is the single device's: samples, losses, updates, layout, resume.

`sharded_runs` makes the runs, in a process that has eight devices. 2x2x2 spreads everything over
everything, so it is what the quick tests look at; they compile without LLVM's optimisations, which
takes half the time.
"""

import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import MAX_LENGTH
from sharded_runs import BATCH_ROWS, LANES, PREFILL_ROWS, ROWS, SETTINGS

from elpo_jax import components, validation
from elpo_jax.config import MeshConfig, from_dict
from elpo_jax.errors import UsageError
from elpo_jax.policy.architecture import own_architecture
from elpo_jax.policy.sharding import AXES, RULES, make_mesh

DEVICES = 8
ONE = "1x1x1"
QUICK = "2x2x2"
OTHERS = ("8x1x1", "1x8x1", "4x2x1", "4x1x2", "1x2x4")
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(flags=""):
    return os.environ | {
        "PYTHONPATH": str(processes.ROOT / "src"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES} {flags}",
    }


def run_on(folder, meshes, flags=""):
    out = folder / "results.pickle"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sharded_runs.py")), str(out), *meshes],
        env=environment(flags),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr, "XLA had to make something whole on every device"
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory):
    return run_on(tmp_path_factory.mktemp("quick"), [ONE, QUICK], UNOPTIMISED)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    return run_on(tmp_path_factory.mktemp("all"), [ONE, *OTHERS, QUICK])


@pytest.fixture(params=[QUICK, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in OTHERS)])
def runs(request):
    """(mesh, what one device found, what the mesh found)"""
    results = request.getfixturevalue("quick_runs" if request.param == QUICK else "all_runs")
    return request.param, results[ONE], results[request.param]


def sizes_of(mesh):
    return [int(size) for size in mesh.split("x")]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def assert_same_steps(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, steps in ours.items():
        for step, other in zip(steps, theirs[name], strict=True):
            for a, b in zip(step, other, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)


def has_same_tokens(steps, others):
    return len(steps) == len(others) and all(
        np.array_equal(step[0], other[0]) for step, other in zip(steps, others, strict=True)
    )


def assert_learnt_alike(before, ours, theirs):
    """AdamW turns the rounding of a gradient near 0 into a share of a whole step (1e-3), so single
    numbers are held to a looser bound than the update as a whole."""
    difference, movement = [], []
    for name, after in ours.items():
        if name.startswith(".params"):
            np.testing.assert_allclose(theirs[name], after, atol=2e-4, err_msg=name)
            difference.append((theirs[name] - after).ravel())
            movement.append((after - before[name]).ravel())
    ratio = np.linalg.norm(np.concatenate(difference)) / np.linalg.norm(np.concatenate(movement))
    assert ratio < 1e-3


def test_parameters_begin_alike_and_checkpoints_go_from_mesh_to_mesh(runs):
    _, one, mesh = runs
    assert_same(one["fresh"], mesh["fresh"])
    assert_same(mesh["learnt"], mesh["learnt_and_back"])
    assert_same(one["fresh"], mesh["restored"])
    assert all(jax.tree.leaves(mesh["restored_as"])), "restored in the mesh's own layout"


def test_equal_parameters_sample_alike(runs):
    """Sums are taken in another order, so a number next to a token's bound may cross it."""
    _, one, mesh = runs
    same = [
        name for name in one["steps"] if has_same_tokens(one["steps"][name], mesh["steps"][name])
    ]
    assert len(same) >= len(one["steps"]) - 1
    for name in same:
        for (_, *ours), (_, *theirs) in zip(one["steps"][name], mesh["steps"][name], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=2e-5)


def test_equal_rows_teach_alike(runs):
    _, one, mesh = runs
    for ours, theirs in zip(one["log_probs"], mesh["log_probs"], strict=True):
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(other, row, atol=2e-5)
    assert abs(one["update"]["policy/loss"]) > 1e-3
    assert one["update"]["policy/clip_frac_low"] > 0
    for name, value in one["update"].items():
        assert mesh["update"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert_learnt_alike(one["fresh"], one["learnt"], mesh["learnt"])


def test_demonstrations_teach_alike(runs):
    _, one, mesh = runs
    (first, second), others = one["cold_start"], mesh["cold_start"]
    assert second["sft/loss"] < first["sft/loss"]
    for ours, theirs in zip((first, second), others, strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert_learnt_alike(one["fresh"], one["taught"], mesh["taught"])


def test_a_mesh_repeats_itself_bit_for_bit(runs):
    _, _, mesh = runs
    assert_same(mesh["after"], mesh["after_again"])


def test_samples_do_not_depend_on_the_schedule(runs):
    _, _, mesh = runs
    assert_same_steps(mesh["steps"], mesh["other_schedule"])
    assert mesh["metrics"]["sampler/swaps"] > 0, "some row should have been to the host and back"


def test_nothing_compiles_after_warm_up(runs):
    """Neither in steps, nor for a state that comes from a checkpoint."""
    _, _, mesh = runs
    before, after = mesh["compiles"]
    assert before == after


def test_state_and_caches_are_spread(runs):
    """What lies on each device, of the state after a step."""
    mesh, _, found = runs
    data, fsdp, tensor = sizes_of(mesh)

    def pieces(name, shape):
        if name.startswith(("['lanes']", "['rows']")):
            return data * fsdp * tensor
        if not shape or "query_norm" in name or "key_norm" in name:
            return 1
        return fsdp if name.endswith("['scale']") else fsdp * tensor

    moments = [name for name in found["layouts"] if ".mu" in name or ".nu" in name]
    parameters = [name for name in found["layouts"] if ".params" in name]
    assert len(moments) == 2 * len(parameters) > 0
    for name, (shape, shards, count) in found["layouts"].items():
        assert count == pieces(name, shape), name
        assert {math.prod(shard) * count for shard in shards} == {math.prod(shape)}, name


def test_no_program_makes_whole_what_is_spread(runs):
    """On no device the caches of other devices' lanes, nor the activations of their rows."""
    mesh, _, found = runs
    data, fsdp, _ = sizes_of(mesh)
    lanes, rows, batch = (size // (data * fsdp) for size in (LANES, ROWS, BATCH_ROWS))
    limits = {
        "prefill": (cache_rows, max(lanes, PREFILL_ROWS)),
        "decode": (cache_rows, lanes),
        "fork": (cache_rows, max(lanes, SETTINGS["sampler"]["fork_rows"])),
        "read_row": (cache_rows, rows),
        "write_row": (cache_rows, rows),
        "log_probs": (batch_rows, batch),
        "accumulate": (batch_rows, batch),
    }
    assert limits.keys() == found["programs"].keys()
    for program, (count, limit) in limits.items():
        assert max(map(count, found["programs"][program])) == limit, program


def cache_rows(shape):
    """Rows of an array that may be a cache's: [S, K, C, T], [S, K, T, C] and the like."""
    return shape[0] if len(shape) >= 4 and MAX_LENGTH in shape else 0


def batch_rows(shape):
    """Rows of an array that may be a batch's: [B, T, ...] or [B * T, ...], perhaps by layer."""
    rows = shape[1:] if shape[0] <= SETTINGS["policy"]["num_layers"] else shape
    if MAX_LENGTH in rows[1:]:
        return rows[0]
    return rows[0] // MAX_LENGTH if rows and rows[0] % MAX_LENGTH == 0 else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "other"), [("8x1x1", "1x8x1"), ("8x1x1", "4x2x1"), ("4x1x2", "2x2x2")]
)
def test_samples_are_the_same_bits_however_devices_are_dealt_to_data_and_fsdp(
    all_runs, mesh, other
):
    assert_same_steps(all_runs[mesh]["steps"], all_runs[other]["steps"])


def problems_of(call, *arguments):
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("mesh", "changes", "problem"),
    [
        (
            "4x2x1",
            {"sampler": {"lanes": 12}},
            "sampler.lanes: expected a multiple of mesh.data * mesh.fsdp = 8, got 12; "
            "8 or 16 would do",
        ),
        (
            "8x1x1",
            {"sampler": {"rows": 4, "fork_rows": 4}},
            "sampler.rows: expected a multiple of mesh.data * mesh.fsdp = 8, got 4; 8 would do",
        ),
        (
            "1x8x1",
            {"sampler": {"prefill_rows": 20}},
            "sampler.prefill_rows: expected a multiple of mesh.data * mesh.fsdp = 8, got 20; "
            "16 or 24 would do",
        ),
        (
            "2x2x2",
            {"train": {"micro_batch_rows": 6}},
            "train.micro_batch_rows: expected a multiple of mesh.data * mesh.fsdp = 4, got 6; "
            "4 or 8 would do",
        ),
        (
            "1x8x1",
            {"policy": {"d_model": 100}},
            "mesh.fsdp: expected a divisor of policy.d_model=100, got 8; 4 would do",
        ),
        (
            "1x2x4",
            {},
            "mesh.tensor: expected a divisor of policy.num_heads=4 and policy.num_kv_heads=2 and "
            "policy.mlp_dim=384, got 4; 2 would do",
        ),
    ],
)
def test_what_cannot_be_spread_is_named_with_what_could(mesh, changes, problem):
    sizes = dict(zip(AXES, sizes_of(mesh), strict=True))
    assert problems_of(validation.validate, from_dict(changes | {"mesh": sizes})) == [problem]


def test_all_that_cannot_be_spread_is_named_together():
    lines = problems_of(validation.validate, from_dict({"mesh": {"data": 3, "tensor": 3}}))
    assert [line.partition(":")[0] for line in lines] == [
        "mesh.tensor",
        "sampler.lanes",
        "sampler.rows",
        "sampler.prefill_rows",
        "train.micro_batch_rows",
    ]


def test_a_vocabulary_that_cannot_be_spread_is_named():
    config = from_dict({"mesh": {"tensor": 4}, "policy": {"num_kv_heads": 4}})
    validation.validate_mesh(config, own_architecture(config.policy, 512))
    odd = own_architecture(config.policy, 510)
    assert problems_of(validation.validate_mesh, config, odd) == [
        "mesh.tensor: expected a divisor of the policy's heads=4, kv heads=4, MLP width=384 and "
        "vocabulary=510, got 4; 2 would do"
    ]


def test_a_mesh_of_other_than_all_devices_is_refused_before_anything_compiles(monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    assert problems_of(components.build, from_dict({"mesh": {"data": 2, "tensor": 2}})) == [
        "mesh: expected mesh.data * mesh.fsdp * mesh.tensor = 1, the number of devices, "
        "got 2 * 1 * 2; 1 * 1 * 1 would do"
    ]
    eight = jax.devices() * DEVICES
    (line,) = problems_of(make_mesh, MeshConfig(tensor=2), eight)
    assert line.endswith("= 8, the number of devices, got 1 * 1 * 2; 4 * 1 * 2 would do")
    (line,) = problems_of(make_mesh, MeshConfig(fsdp=3), eight)
    assert line.endswith("; 8 * 1 * 1 would do")


SIZE = st.sampled_from([1, 2, 3, 4, 6, 12])


@given(st.lists(SIZE, min_size=3, max_size=3), st.lists(SIZE, min_size=9, max_size=9))
def test_validation_lets_pass_what_the_rules_of_sharding_can_spread(mesh, sizes):
    """A rule that spreads another axis can't be forgotten there."""
    lanes, rows, prefill_rows, micro_batch_rows, d_model, kv_heads, group, mlp, vocabulary = sizes
    config = from_dict(
        {
            "mesh": dict(zip(AXES, mesh, strict=True)),
            "policy": {
                "d_model": d_model,
                "num_heads": kv_heads * group,
                "num_kv_heads": kv_heads,
                "mlp_dim": mlp,
            },
            "sampler": {
                "lanes": lanes,
                "rows": rows,
                "prefill_rows": prefill_rows,
                "fork_rows": 1,
            },
            "train": {"micro_batch_rows": micro_batch_rows},
        }
    )
    arrays = {
        "batch": (lanes, rows, prefill_rows, micro_batch_rows),
        "embed": (d_model,),
        "heads": (kv_heads * group,),
        "kv_heads": (kv_heads,),
        "mlp": (mlp,),
        "vocab": (vocabulary,),
        "kept_time": (),  # only where it can be spread
    }
    shares = {axis: share(over, config.mesh) for axis, over in RULES if over}
    assert shares.keys() == arrays.keys()
    fits = all(size % shares[axis] == 0 for axis in arrays for size in arrays[axis])
    try:
        validation.validate(config)
        validation.validate_mesh(config, own_architecture(config.policy, vocabulary))
    except UsageError:
        assert not fits
    else:
        assert fits


def share(over, mesh):
    axes = (over,) if isinstance(over, str) else over
    return math.prod(getattr(mesh, axis) for axis in axes)


@pytest.mark.slow
def test_a_killed_run_on_eight_devices_ends_as_one_that_was_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", environment()["XLA_FLAGS"])  # for reading the checkpoints too
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    processes.finish(start_training(alone))
    moments = (
        ("a checkpoint write", lambda: processes.is_writing(killed)),
        ("the step after checkpoint 2", lambda: processes.rows(killed) == 4),
    )
    for what, condition in moments:
        process = start_training(killed)
        processes.wait_for(condition, process, what)
        process.kill()
        process.communicate()
    assert "going on after step 2" in processes.finish(start_training(killed))
    expected = processes.outcome(alone)
    processes.assert_same(expected, processes.outcome(killed))
    assert len({row["policy/grad_norm"] for row in expected[0][1:]}) == 4, "it learns"


def start_training(workdir):
    script = "import sys, sharded_runs; sharded_runs.train_on(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", script, QUICK, str(workdir)],
        cwd=Path(__file__).parent,
        env=environment(UNOPTIMISED),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
