"""Each fault ends in one line, loses nothing, and once it is mended the same command goes on.

What the disk does is done for real: a full tmpfs and a read-only mount, in a mount namespace of the
test's own (`unshare`, util-linux).
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import processes
import pytest
from processes import TINY, assert_same, checkpoints, finish, garble, outcome
from rich.console import Console

from elpo_jax import cli, convert, evaluate, replay
from elpo_jax.checkpoint import Checkpoints, load, parts_of
from elpo_jax.components import build
from elpo_jax.config import from_dict
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.interrupt import Interrupts
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.sft import SupervisedLearner
from elpo_jax.progress import Display
from elpo_jax.trainer import Trainer, make_learner
from elpo_jax.training import train
from elpo_jax.workdir import WorkDir

NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def can_mount():
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount, even in a namespace")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Compiled programs and cold starts."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def start(shared):
    def start(workdir, **changes):
        settings = TINY | {"sft.cache_dir": shared / "cold"} | changes
        return processes.start(settings, workdir, compiled=shared / "compiled")

    return start


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start):
    """A folder of an undisturbed run; to be copied."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(workdir))
    return workdir


@pytest.fixture(scope="module")
def undisturbed(finished):
    return outcome(finished)


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the undisturbed run's folder."""
    return shutil.copytree(finished, tmp_path / "run")


def error_line(output):
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert "Traceback" not in output
    assert output.rstrip().endswith(lines[0])
    return lines[0]


# A disk without room.

SMALL_DISK = """
size=$1 disk=$2 kept=$3; shift 3
mount -t tmpfs -o size=$size tmpfs $disk || exit 99
"$@" > $kept/first 2>&1; echo $? >> $kept/first
mount -o remount,size=64m $disk
"$@" > $kept/second 2>&1; echo $? >> $kept/second
cp -r $disk/run $kept/run
"""


@needs_mounts
@pytest.mark.parametrize(
    ("size", "met_by", "saved"),
    [
        ("750k", "/run/", "saved step "),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("4k", "/run/config.json", "no checkpoint yet"),
                ("8k", "/run/trees/", "no checkpoint yet"),
                ("60k", "/run/cold_start/", "no checkpoint yet"),
                # Whoever comes first: the save under way, or the step's trees.
                ("210k", "/run/(checkpoints|trees)/", "no checkpoint yet"),
            )
        ),
    ],
)
def test_a_full_disk(undisturbed, shared, tmp_path, size, met_by, saved):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    settings = TINY | {"sft.cache_dir": shared / ("other" if "cold" in met_by else "cold")}
    command = processes.command(settings, disk / "run")
    subprocess.run(
        [*NAMESPACE, "bash", "-c", SMALL_DISK, "bash", size, str(disk), str(kept), *command],
        cwd=processes.ROOT,
        env=processes.environment(shared / "compiled", PHASES=str(tmp_path / "phases")),
        check=True,
    )
    *lines, status = (kept / "first").read_text().splitlines()
    assert status == "3"
    line = error_line("\n".join(lines))
    assert re.search(met_by, line), line
    assert "No space left on device" in line
    assert f"; {saved}" in line
    assert line.endswith("; once that is mended the same command goes on")
    assert (kept / "second").read_text().splitlines()[-1] == "0", (kept / "second").read_text()
    assert_same(undisturbed, outcome(kept / "run"))


# Folders.


@pytest.fixture(scope="module")
def components(finished, shared):
    with processes.kept_programs(shared / "compiled"):
        yield build(from_dict(json.loads((finished / "config.json").read_text())))


def run(components, folder):
    """Trains in this process; returns what it shows."""
    shown = io.StringIO()
    with Display(Console(file=shown, width=500)) as display:
        train(components, WorkDir(folder), display, Interrupts())
    return shown.getvalue()


def stopped(components, folder, error=UsageError):
    """The lines that `train` ends with."""
    with pytest.raises(error) as caught:
        run(components, folder)
    return list(caught.value.problems)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_foreign_folder_is_left_alone(components, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("It was")
    lines = stopped(components, folder)
    assert lines == [
        f"{folder}: expected an empty folder or a run's, with a config.json, found 'chapter.tex'; "
        "give another --workdir"
    ]
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    lines = stopped(components, folder)
    assert lines == [
        f"{folder}/config.json: expected a run's settings, got something else; "
        "give another --workdir for a new run"
    ]
    assert sorted(os.listdir(folder)) == ["chapter.tex", "config.json"]


def test_a_file_in_place_of_the_folder(components, tmp_path):
    (tmp_path / "run").write_text("")
    lines = stopped(components, tmp_path / "run")
    assert lines == [f"{tmp_path}/run: expected a folder to write, got: File exists"]


@pytest.fixture
def private():
    """A folder that others may enter, outside of pytest's own."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield Path(place)


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_folder_that_may_not_be_written(components, private, mode):
    folder = private / "run"
    folder.mkdir()
    folder.chmod(mode)
    user = os.geteuid()
    try:
        if user == 0:  # may write everywhere, so it becomes somebody else
            os.seteuid(65534)
        for path in (folder, folder / "deeper"):
            lines = stopped(components, path)
            assert lines == [f"{path}: expected a folder to write, got: Permission denied"]
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


READ_ONLY = """
mount --bind $1 $1 && mount -o remount,ro,bind $1 || exit 99
shift; exec "$@"
"""


@needs_mounts
def test_a_read_only_file_system(workdir, shared, tmp_path):
    command = processes.command(TINY | {"sft.cache_dir": shared / "cold"}, workdir)
    ended = subprocess.run(
        [*NAMESPACE, "bash", "-c", READ_ONLY, "bash", str(workdir), *command],
        cwd=processes.ROOT,
        env=processes.environment(shared / "compiled", PHASES=str(tmp_path / "phases")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: {workdir}: expected a folder to write, got: Read-only file system\n"
    )


# Settings.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda there: there.update(seed=9),
            "seed: the run there has 9, got 0; give the old value",
        ),
        (
            lambda there: there["train"].update(steps="4"),
            "train.steps: expected an integer, got '4'; written by another version, or by hand",
        ),
        (
            lambda there: there["episode"].update(patience=3),
            "episode.patience: no such key",
        ),
        (  # a version that didn't have the setting
            lambda there: there["optimizer"].pop("learning_rate"),
            "optimizer.learning_rate: the run there has 1e-06, got 0.1",
        ),
    ],
)
def test_changed_settings_are_named(components, workdir, change, said):
    there = json.loads((workdir / "config.json").read_text())
    change(there)
    (workdir / "config.json").write_text(json.dumps(there))
    before = contents(workdir)
    (line,) = stopped(components, workdir)
    assert line.startswith(f"{workdir}/config.json: {said}")
    assert "another --workdir for a new run" in line
    assert contents(workdir) == before


@pytest.mark.parametrize("text", ["", '{"seed": 0,', "\0\0\0", 100_000 * "["])
def test_a_broken_config_json(components, workdir, text):
    (workdir / "config.json").write_text(text)
    before = contents(workdir)
    (line,) = stopped(components, workdir)
    expected = f"{workdir}/config.json: expected a run's settings, got "
    assert line.startswith((f"{expected}JSONDecodeError", f"{expected}RecursionError"))
    assert line.endswith("put the file back, or give another --workdir for a new run")
    assert contents(workdir) == before


# Checkpoints and metrics.


def test_a_corrupt_newest_checkpoint(undisturbed, components, workdir):
    garble(workdir / "checkpoints" / "4")
    output = run(components, workdir)
    warning = f"warning: {workdir}/checkpoints/4: params/"
    assert [line for line in output.splitlines() if line.startswith(warning)]
    assert "checkpoint 3 is used" in output
    assert "going on after step 3" in output
    assert (workdir / "faults" / "checkpoint_000004").is_dir()
    assert_same(undisturbed, outcome(workdir))


def test_files_of_others_among_the_trees_stay(undisturbed, components, workdir):
    for name in ("my_notes.json", "step_two.json", "list.txt"):
        (workdir / "trees" / name).write_text("mine")
    shutil.rmtree(workdir / "checkpoints" / "4")
    run(components, workdir)
    for name in ("my_notes.json", "step_two.json", "list.txt"):
        (workdir / "trees" / name).unlink()
    assert_same(undisturbed, outcome(workdir))


def test_all_checkpoints_corrupt(components, workdir):
    for step in ("3", "4"):
        garble(workdir / "checkpoints" / step)
    before = contents(workdir)
    (line,) = stopped(components, workdir, RunFault)
    assert line.startswith(f"no checkpoint is whole: {workdir}/checkpoints/4: params/")
    assert line.endswith("nothing was changed; put a whole one back, or give another --workdir")
    assert contents(workdir) == before


def test_a_damaged_line_of_metrics(components, workdir):
    file = workdir / "metrics.jsonl"
    first, second, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, second[:50] + "\n", *rest]))
    before = file.read_bytes()
    (line,) = stopped(components, workdir)
    assert line.startswith(f'{file}:2: expected an object with a step, got b\'{{"step": 1')
    assert line.endswith("; mend the line, or delete it")
    assert file.read_bytes() == before
    file.write_text("".join([first, *rest[:-1], rest[-1][:-9]]))  # the last one torn
    output = run(components, workdir)
    assert f"warning: {file}: its rows end with step 3, checkpoint 4 is used" in output


def resave(workdir, components, change):
    """Changes the newest checkpoint's parts and metadata, which then is whole."""
    fresh = make_learner(components.config, components.model, components.mesh).init(
        components.init_params()
    )
    step, parts, metadata = load(workdir, parts_of(fresh))
    change(parts, metadata)
    shutil.rmtree(workdir / "checkpoints")
    with Checkpoints(workdir / "checkpoints", keep=2) as writer:
        writer.save(step, parts, metadata)


def test_a_checkpoint_of_an_older_version_is_told(components, workdir, tmp_path):
    resave(workdir, components, lambda parts, metadata: metadata.pop("policy_files"))
    evaluation = ["evaluate", *processes.flags(TINY), "--checkpoint", str(workdir)]
    conversion = ["convert", "--workdir", str(workdir)]
    for use in (
        lambda: run(components, workdir),
        lambda: evaluate.main([*evaluation, "--output", str(tmp_path / "eval.json")]),
        lambda: convert.main([*conversion, "--output", str(tmp_path / "out")]),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        (line,) = caught.value.problems
        found = "data_files, data_order, policy_weights, sandbox_tier, seed"
        assert line == (
            f"{workdir}/checkpoints/4: expected metadata with 'policy_files', found {found}; "
            "another version wrote it; go on with that, or give another --workdir"
        )


# Memory.


def grab(*arguments):
    """Asks for more than any address space has, of the device."""
    jnp.zeros(1 << 50, jnp.float32).block_until_ready()


def grab_of_host(*arguments):
    np.zeros(1 << 50)


def test_a_cache_that_does_not_fit(components, tmp_path):
    sampler = replace(components.config.sampler, rows=1 << 40)
    changed = replace(components, config=replace(components.config, sampler=sampler))
    (line,) = stopped(changed, tmp_path / "run", RunFault)
    assert line.startswith(f"{tmp_path}/run: out of memory (RESOURCE_EXHAUSTED: ")
    assert "`python -m elpo_jax.plan` with the same settings says what takes it" in line
    assert line.endswith("; no checkpoint yet")


@pytest.mark.parametrize(
    ("owner", "name", "taking", "said", "saved"),
    [
        (SupervisedLearner, "update", grab, "cold start", "no checkpoint yet"),
        (Learner, "warm_up", grab, "warm up 0", "no checkpoint yet"),
        (Trainer, "evaluate", grab, "evaluation 0", "no checkpoint yet"),
        (Learner, "update", grab, "step 1", "saved step 0"),
        (Learner, "update", grab_of_host, "step 1", "saved step 0"),
    ],
)
def test_memory_that_is_out(components, monkeypatch, tmp_path, owner, name, taking, said, saved):
    cold = tmp_path / "cold" if "cold" in said else components.config.sft.cache_dir
    sft = replace(components.config.sft, cache_dir=str(cold))
    changed = replace(components, config=replace(components.config, sft=sft))
    monkeypatch.setattr(owner, name, taking)
    (line,) = stopped(changed, tmp_path / "run", RunFault)
    words = "RESOURCE_EXHAUSTED: " if taking is grab else "Unable to allocate 8.00 PiB"
    assert line.startswith(f"{tmp_path}/run: {said}: out of memory ({words}"), line
    assert line.endswith(f"; {saved}")
    monkeypatch.undo()
    assert "Held-out success" in run(changed, tmp_path / "run")


# Numbers that aren't finite.


def replayed(dump, capsys):
    """What a replay that meets the fault again shows, and the line it ends with."""
    with pytest.raises(RunFault) as caught:
        replay.main(["replay", "--dump", str(dump)])
    (line,) = caught.value.problems
    assert line.startswith(f"{dump}: reproduced; the first is among the ")
    return capsys.readouterr().out, line


def test_an_absurd_learning_rate_in_the_cold_start(components, tmp_path, capsys):
    config = components.config
    absurd = replace(config.sft.optimizer, learning_rate=1e30, clip_norm=1e30)
    changed = replace(config, sft=replace(config.sft, optimizer=absurd))
    workdir = tmp_path / "run"
    (line,) = stopped(replace(components, config=changed), workdir, RunFault)
    dump = workdir / "faults" / "cold_start"
    assert line.startswith(f"{workdir}: cold start: update 1: not finite: ")
    assert line.endswith(f"`python -m elpo_jax.replay --dump {dump}` shows where it arises")
    assert not checkpoints(workdir)
    shown, again = replayed(dump, capsys)
    assert "supervised update after 1 updates" in shown
    assert "tasks: demonstration 4, demonstration 5, demonstration 6, demonstration 7" in shown
    assert "log-probabilities: nan" in again or "gradients: nan" in again


def poison(parts, metadata):
    """Puts a NaN into the parameters."""
    kernel = parts["params"]["head"]["kernel"]
    parts["params"]["head"]["kernel"] = kernel.at[0, 0].set(float("nan"))


def test_a_nan_in_a_checkpoint_is_met_by_the_sampler(components, workdir, capsys):
    shutil.rmtree(workdir / "checkpoints" / "4")
    resave(workdir, components, poison)
    (line,) = stopped(components, workdir, RunFault)
    assert "sampler: expected finite log-probabilities and entropies" in line
    assert "saved step 3" in line
    assert checkpoints(workdir) == {"3"}
    (dump,) = (workdir / "faults").iterdir()
    _, again = replayed(dump, capsys)
    assert "first is among the parameters: nan at ['head']['kernel'][0, 0]" in again


# Exit statuses.


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError(["seed: one", "steps: two"]), 2, "error: seed: one\nerror: steps: two\n"),
        (RunFault(["disk: full"]), 3, "error: disk: full\n"),
        (OSError(28, "No space left on device", "/x/y"), 3, "error: /x/y: No space left on dev"),
        (MemoryError(), 3, "error: pytest: out of memory (MemoryError); `python -m "),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_exit_statuses(error, status, said, capsys, monkeypatch):
    def main(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == status
    assert capsys.readouterr().err.startswith(said)
