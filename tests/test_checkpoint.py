"""Checkpoints come back whole, also after a kill in the middle of a save."""

import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from elpo_jax import checkpoint
from elpo_jax.checkpoint import Checkpoints
from elpo_jax.errors import RunFault, UsageError


def make_state(fill=0.0):
    params = {
        "w": jnp.full((2, 3), fill, jnp.float32),
        "b": {"c": jnp.full(3, fill, jnp.bfloat16)},
    }
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {"params": params, "opt_state": transform.init(params)}


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_state_and_metadata_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, metadata = make_state(0.1), {"data": {"index": 12}, "seed": 3, "x": [0.1, None]}
    folder = tmp_path.relative_to(tmp_path) / "checkpoints"  # relative, as users give it
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(4, state, metadata)
        assert checkpoints.latest_step() == 4
    with Checkpoints(folder, keep=2) as checkpoints:
        restored = checkpoints.restore(make_state())
    assert restored.step == 4
    assert restored.metadata == metadata
    assert_same(restored.parts, state)


def test_the_newest_are_kept_and_parts_are_read_alone(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(step, make_state(float(step)), {"step": step})
        with pytest.raises(ValueError, match="expected a step after 5, got 5"):
            checkpoints.save(5, make_state(), {})
        with pytest.raises(ValueError, match="expected names other than 'metadata'"):
            checkpoints.save(6, {"metadata": make_state()}, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]
    shapes = jax.eval_shape(lambda: make_state()["params"])
    for path, step in (
        (tmp_path, 5),
        (tmp_path / "checkpoints", 5),
        (tmp_path / "checkpoints/2", 2),
    ):
        loaded = checkpoint.load(path, {"params": shapes})
        assert loaded.metadata == {"step": step}
        assert loaded.parts.keys() == {"params"}
        assert_same(loaded.parts["params"], make_state(float(step))["params"])


def test_loading_leaves_a_save_that_goes_on_alone(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, make_state(), {})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert checkpoint.load(tmp_path, make_state()).step == 1
    assert unfinished.exists()
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # the writer, however, cleans up
        assert checkpoints.latest_step() == 1
        checkpoints.save(3, make_state(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_what_doesnt_fit_is_named(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UsageError, match="expected a checkpoint, found none"):
            checkpoints.restore(make_state())
        checkpoints.save(1, make_state(), {})
        target = make_state()["params"] | {"w": jnp.zeros((2, 4)), "new": jnp.zeros(1, jnp.int32)}
        target["b"] = {"c": jnp.zeros(3)}
        with pytest.raises(UsageError) as caught:
            checkpoints.restore({"params": target})
    assert [line.removeprefix(f"{tmp_path}/1: ") for line in caught.value.problems] == [
        "params['b']['c']: expected float32[3], found bfloat16[3]",
        "params['new']: expected int32[1], found nothing",
        "params['w']: expected float32[2, 4], found float32[2, 3]",
    ]
    with pytest.raises(UsageError, match=r"expected checkpoint 7, found \[1\]"):
        checkpoint.load(tmp_path / "7", make_state())
    with pytest.raises(UsageError, match="nowhere: expected a folder with checkpoints"):
        checkpoint.load(tmp_path / "nowhere", make_state())


def test_arrays_may_be_donated_while_they_are_saved(tmp_path):
    """The save goes on in the background; overwriting the buffers mustn't reach it."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: -x, tree), donate_argnums=0)
    state = {str(i): jnp.full((512, 1024), float(i + 1)) for i in range(10)}
    jax.block_until_ready(overwrite(jax.tree.map(jnp.copy, state)))  # compiled before the race
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"state": state}, {})
        target = jax.block_until_ready(overwrite(state))
        restored = checkpoints.restore({"state": target}).parts["state"]
    for i in range(10):
        np.testing.assert_array_equal(restored[str(i)], np.full((512, 1024), i + 1, np.float32))


KILLED = """
import os, signal, sys
from pathlib import Path
import jax
from elpo_jax.checkpoint import Checkpoints

noise = jax.random.normal(jax.random.key(0), (4096, 4096))  # 64 MB that don't compress
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
checkpoints.save(1, {"state": {"x": noise[:2, :3]}}, {"position": 10})
checkpoints.wait()
checkpoints.save(2, {"state": {"x": noise}}, {"position": 20})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_during_a_save_leaves_the_checkpoint_before_it(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the first, and what there is of the second
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest_step() == 1
        restored = checkpoints.restore({"state": {"x": jnp.zeros((2, 3))}})
        checkpoints.save(2, restored.parts, {"position": 20})
        assert checkpoints.latest_step() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert restored.metadata == {"position": 10}
    assert bool(jnp.any(restored.parts["state"]["x"]))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest(folder):
    """The file that holds most of the numbers."""
    return max(
        (file for file in folder.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )


DAMAGES = {
    "a flipped bit": (lambda at: flip(largest(at / "params")), "isn't what was saved"),
    "half a file": (lambda at: largest(at / "optimizer").write_bytes(b"x"), "isn't what was saved"),
    "no metadata": (lambda at: (at / "metadata" / "metadata").unlink(), "metadata is missing"),
    "changed metadata": (lambda at: flip(at / "metadata" / "metadata"), "isn't what was saved"),
    "no part": (lambda at: shutil.rmtree(at / "optimizer"), "is missing"),
    "no digests": (lambda at: (at / "digests.json").unlink(), "digests.json is missing"),
    "torn digests": (lambda at: (at / "digests.json").write_text('{"'), "isn't what was saved"),
    "empty digests": (lambda at: (at / "digests.json").write_text("{}"), "has nothing on metadata"),
    "null digests": (lambda at: (at / "digests.json").write_text("null"), "isn't what was saved"),
    "deep digests": (lambda at: (at / "digests.json").write_text("[" * 10**6), "isn't what was"),
    "digests of no file": (
        lambda at: (at / "digests.json").write_text("[]"),
        "has nothing on metadata",
    ),
    "nothing": (lambda at: [shutil.rmtree(at), at.mkdir()], "digests.json is missing"),
}


def noise(step):
    """Numbers that don't compress, so that most of a checkpoint's bytes are theirs."""
    return {"w": jax.random.normal(jax.random.key(step), (64, 64))}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (4, 6):
            parts = {"params": noise(step), "optimizer": noise(10 + step)}
            checkpoints.save(step, parts, {"at": step})
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_broken_checkpoint_is_used(two_checkpoints, tmp_path, damage):
    folder, aside, warnings = tmp_path / "checkpoints", tmp_path / "faults", []
    shutil.copytree(two_checkpoints, folder)
    do, problem = DAMAGES[damage]
    do(folder / "6")
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.drop_broken(aside, warnings.append)
        restored = checkpoints.restore({"params": noise(0)})
        assert (restored.step, restored.metadata) == (4, {"at": 4})
        assert_same(restored.parts["params"], noise(4))
        checkpoints.save(6, {"params": noise(6)}, {})
        assert checkpoints.latest_step() == 6
    (line,) = warnings
    assert line.startswith(f"warning: {folder}/6: ")
    assert problem in line
    assert line.endswith(f"; moved to {aside}/checkpoint_000006, checkpoint 4 is used")
    assert (aside / "checkpoint_000006").is_dir()


def test_other_folders_beside_the_checkpoints_are_left_alone(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    others = ("²", "6.bak", "7.bak", "notes")
    for name in others:
        (folder / name).mkdir()
    assert checkpoint.newest_step(folder) == 6
    assert checkpoint.load(folder, {"params": noise(0)}).step == 6
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(7, {"params": noise(7)}, {})
    assert checkpoint.load(folder, {"params": noise(0)}).step == 7
    assert {path.name for path in folder.iterdir()} == {"7", *others}


def test_orbax_alone_would_not_notice_a_flipped_bit(two_checkpoints, tmp_path):
    """Why there are digests."""
    shutil.copytree(two_checkpoints, tmp_path / "c")
    at = tmp_path / "c" / "6" / "params"
    flip(largest(at))
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(at)
    assert not np.array_equal(found["w"], noise(6)["w"])


def test_when_all_are_broken_nothing_is_touched(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    for step in ("4", "6"):
        flip(largest(folder / step / "params"))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with Checkpoints(folder, keep=2) as checkpoints, pytest.raises(RunFault) as caught:
        checkpoints.drop_broken(tmp_path / "faults", pytest.fail)
    (line,) = caught.value.problems
    assert "checkpoints/6: params/" in line
    assert "checkpoints/4: params/" in line
    assert "nothing was changed" in line
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not (tmp_path / "faults").exists()
    with pytest.raises(RunFault, match=r"6: params/.* isn't what was saved; .* there: \[4\]"):
        checkpoint.load(folder, {"params": noise(0)})


TOO_LARGE = """
import resource, sys
from pathlib import Path
import jax
from elpo_jax.checkpoint import Checkpoints
from elpo_jax.cli import run
from elpo_jax.errors import RunFault

def main(argv):
    noise = jax.random.normal(jax.random.key(0), (64, 1024))  # 256 KB that don't compress
    with Checkpoints(Path(argv[1]), keep=2) as checkpoints:
        checkpoints.save(1, {"state": {"x": noise[:8]}}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoints.save(2, {"state": {"x": noise}}, {})

run(main)
"""


def test_a_save_that_fails_says_so_in_a_line_and_leaves_the_one_before(tmp_path):
    command = [sys.executable, "-c", TOO_LARGE, str(tmp_path)]
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.stderr == f"error: {tmp_path}/2: File too large\n"
    assert failed.returncode == 3
    target = {"state": {"x": jnp.zeros((8, 1024))}}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, checkpoints.restore(target).parts, {})
        assert checkpoints.latest_step() == 2
