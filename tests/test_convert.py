"""Whole runs from a checkpoint: bound to its content, exported, converted."""

import io
import json
import os
import shutil
from pathlib import Path

import checkpoints
import jax
import numpy as np
import processes
import pytest
from processes import TINY
from rich.console import Console
from test_export import OWN_TOKENIZER, assert_same, tensors_in, without_room

from elpo_jax import convert, evaluate, plan
from elpo_jax.cold_start import cache_folder, cold_start
from elpo_jax.components import build
from elpo_jax.config import from_dict
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.interrupt import Interrupts
from elpo_jax.policy import export
from elpo_jax.policy.families import read_config
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER, SentencePieceTokenizer
from elpo_jax.progress import Display
from elpo_jax.training import train
from elpo_jax.workdir import WorkDir

SETTINGS = {key: value for key, value in TINY.items() if not key.startswith("policy.")}


def config_of(checkpoint, **changes):
    """A run of one step from a checkpoint."""
    tree = {}
    settings = SETTINGS | {
        "policy.checkpoint": str(checkpoint),
        "policy.tokenizer": str(EMBEDDED_TOKENIZER),
        "train.steps": 1,
        "train.export": True,
        "sampler.prefill_chunks": (32,),
        "train.length_buckets": (208,),
        "sft.steps": 1,
    }
    for key, value in (settings | changes).items():
        section, *middle, name = key.split(".")
        place = tree.setdefault(section, {})
        for part in middle:
            place = place.setdefault(part, {})
        place[name] = value
    return from_dict(tree)


def run(config, folder):
    """Trains in this process; returns what it shows."""
    shown = io.StringIO()
    with Display(Console(file=shown, width=500)) as display:
        train(build(config), WorkDir(folder), display, Interrupts())
    return shown.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run's folder, its checkpoint's folder): adapters beside a checkpoint with more ids."""
    folder = tmp_path_factory.mktemp("trained")
    ids = SentencePieceTokenizer().vocab_size
    checkpoints.make(
        folder / "source",
        "qwen3",
        vocab_size=ids + 8,
        num_hidden_layers=1,
        max_position_embeddings=512,
    )
    (folder / "source/generation_config.json").write_text("{}")
    with processes.kept_programs(folder / "compiled"):
        config = config_of(
            folder / "source",
            **{"policy.lora.rank": 2, "sft.cache_dir": str(folder / "cache")},
        )
        shown = run(config, folder / "run")
        assert f"the policy for others: {folder / 'run/export'}" in shown
        yield folder / "run", folder / "source"


def converted(workdir, output, *more):
    convert.main(["convert", "--workdir", str(workdir), "--output", str(output), *more])
    return tensors_in(output)


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "tokenizer.model"])
def test_a_run_does_not_go_on_beside_another_checkpoint(trained, tmp_path, name):
    """Its config.json, template and tokenizer decide what the saved parameters mean."""
    workdir, source = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    newest = max((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)  # so that there is a step to make
    config = from_dict(json.loads((copy / "config.json").read_text()))
    components = build(config)
    file = source / name
    kept = file.read_bytes() if file.exists() else None  # a file that comes to it counts too
    file.write_bytes((kept or b"") + b" ")
    try:
        with (
            pytest.raises(
                UsageError, match=rf"policy\.checkpoint: .*{name} is not what the run in"
            ),
            Display(Console(file=io.StringIO())) as display,
        ):
            train(components, WorkDir(copy), display, Interrupts())
    finally:
        if kept is None:
            file.unlink()
        else:
            file.write_bytes(kept)
    assert [int(path.name) for path in (copy / "checkpoints").iterdir()] == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"alpha": 99.0}}, "policy.lora.alpha: the run there has 16.0, got 99.0"),
        ({"thinking": None, "earlier_turns": "as_sampled"}, "policy.earlier_turns: the run there"),
        ({"config.json": b" "}, "policy.checkpoint: {}/config.json is not what the run in"),
    ],
)
@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/1"])
def test_another_policy_is_not_evaluated(trained, tmp_path, change, message, place):
    """Settings that change what is computed with the same parameters, and the files."""
    workdir, source = trained
    tree = json.loads((workdir / "config.json").read_text())
    if "config.json" in change:
        shutil.copytree(source, tmp_path / "source")
        with (tmp_path / "source/config.json").open("ab") as file:
            file.write(change["config.json"])
        tree["policy"]["checkpoint"] = str(tmp_path / "source")
    else:
        lora = tree["policy"]["lora"] | change.get("lora", {})
        tree["policy"] |= {**change, "lora": lora}
    components = build(from_dict(tree))
    with pytest.raises(UsageError) as caught:
        evaluate._check_origin(components, workdir / place)
    (line,) = caught.value.problems
    assert line.startswith(message.format(tmp_path / "source"))
    # How the same is computed is free.
    tree = json.loads((workdir / "config.json").read_text())
    tree["policy"] |= {"remat": "full", "attention_block": 64}
    evaluate._check_origin(build(from_dict(tree)), workdir / place)


def without_the_last_step(workdir, copy):
    """A copy of a run with a step to make, and its config."""
    shutil.copytree(workdir, copy)
    newest = max((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    shutil.rmtree(copy / "export")
    return json.loads((copy / "config.json").read_text())


def test_a_run_goes_on_with_the_same_checkpoint_elsewhere(trained, tmp_path):
    workdir, source = trained
    settings = without_the_last_step(workdir, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    shutil.copy(EMBEDDED_TOKENIZER, tmp_path / "mine.model")
    settings["policy"] |= {"checkpoint": str(moved), "tokenizer": str(tmp_path / "mine.model")}
    # Other weights of the same shape are another checkpoint, which --adapter would go by.
    weights = tensors_in(moved)
    others = {name: x + 1 for name, x in weights.items()}
    checkpoints.write(moved, read_config(source), others)
    with pytest.raises(
        UsageError, match=r"policy\.checkpoint: the weights in .*moved are not thos"
    ):
        run(from_dict(settings), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["policy"]["checkpoint"] == str(
        source
    )
    checkpoints.write(moved, read_config(source), weights)
    assert "going on after step 0" in run(from_dict(settings), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text()) == settings
    assert_same(tensors_in(tmp_path / "run/export"), tensors_in(workdir / "export"))
    # With nothing instead of a checkpoint it is another run.
    settings["policy"]["checkpoint"] = ""
    with pytest.raises(UsageError, match=r"policy\.checkpoint: the run there has"):
        run(from_dict(settings), tmp_path / "run")


def test_convert_goes_by_what_the_checkpoint_was(trained, tmp_path):
    workdir, source = trained
    run_there, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(workdir, run_there)
    shutil.copytree(source, moved)
    settings = json.loads((run_there / "config.json").read_text())
    settings["policy"]["checkpoint"] = str(tmp_path / "gone")
    (run_there / "config.json").write_text(json.dumps(settings))

    def problem(*more):
        with pytest.raises(UsageError) as caught:
            converted(run_there, tmp_path / "out", *more)
        (line,) = caught.value.problems
        assert not (tmp_path / "out").exists()
        return line

    there = ("--checkpoint", str(moved))
    adapter = ("--adapter", "true")
    assert problem() == (
        f"policy.checkpoint: {tmp_path / 'gone'}: not found; --checkpoint says where it is now"
    )
    assert problem("--checkpoint", "/no/such") == "--checkpoint: /no/such: not found"
    weights = tensors_in(moved)
    checkpoints.write(moved, read_config(moved), {name: 2 * x for name, x in weights.items()})
    assert problem(*there, *adapter).startswith(f"--adapter: the weights in {moved} are not what")
    assert_same(converted(run_there, tmp_path / "whole", *there), tensors_in(workdir / "export"))
    checkpoints.write(moved, read_config(moved), weights)
    converted(run_there, tmp_path / "adapter", *there, *adapter)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved)
    (moved / "config.json").write_text(json.dumps(read_config(moved) | {"rms_norm_eps": 1e-5}))
    changed = f"policy.checkpoint: {moved / 'config.json'} is not what the run in {run_there} began"
    assert problem(*there).startswith(changed)
    shutil.copy(source / "config.json", moved)
    (moved / "chat_template.jinja").write_text("new")
    assert "chat_template.jinja is not what the run" in problem(*there)
    (tmp_path / "other.model").write_bytes(EMBEDDED_TOKENIZER.read_bytes() + b"\0")
    line = problem("--checkpoint", str(source), "--tokenizer", str(tmp_path / "other.model"))
    assert line.startswith(f"policy.tokenizer: {tmp_path / 'other.model'} is not what")


def test_a_folder_in_which_nothing_was_saved_takes_other_settings(trained, tmp_path):
    """A run that can't begin, here for want of weights, mustn't claim its folder for good."""
    _, source = trained
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "model.safetensors").unlink()
    cache = {"sft.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UsageError, match="safetensors"):
        run(config_of(broken, **cache), tmp_path / "run")
    with pytest.raises(UsageError, match="safetensors"):
        run(config_of(broken, **cache, **{"optimizer.learning_rate": 1e-5}), tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["optimizer"]["learning_rate"] == 1e-5


def test_a_run_from_a_checkpoint_leaves_one(trained, tmp_path, capsys):
    workdir, source = trained
    assert {path.name for path in (workdir / "export").iterdir()} == OWN_TOKENIZER
    before, after = tensors_in(source), tensors_in(workdir / "export")
    assert {name: x.shape for name, x in after.items()} == {n: x.shape for n, x in before.items()}
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(moved) == 7, "the products, by their adapters"
    assert_same(converted(workdir, tmp_path / "again"), after)
    assert read_config(tmp_path / "again") == read_config(workdir / "export")
    first = converted(workdir, tmp_path / "first", "--step", "0")
    assert {name for name in before if not np.array_equal(first[name], after[name])} == moved
    capsys.readouterr()
    adapter = converted(workdir, tmp_path / "adapter", "--adapter", "true")
    assert "adapter: the adapters after step 1 of" in " ".join(capsys.readouterr().out.split())
    assert len(adapter) == 14
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source)


def test_a_finished_run_exports_once(trained, tmp_path, monkeypatch):
    workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    folder = WorkDir(tmp_path / "run")
    config = from_dict(json.loads(folder.config.read_text()))
    file = folder.export / "model.safetensors"
    content, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert "for others" not in run(config, folder.path)
    assert file.stat().st_mtime_ns == stamp
    # A run that was killed before it could, does so when it is taken up again.
    shutil.rmtree(folder.export)
    monkeypatch.setattr(export, "save_file", without_room)
    with pytest.raises(RunFault) as caught:
        run(config, folder.path)
    (line,) = caught.value.problems
    todo = "once that is mended the same command goes on"
    assert line == f"{file}: File too large; saved step 1; {todo}"
    monkeypatch.undo()
    assert "for others" in run(config, folder.path)
    assert file.read_bytes() == content


def test_nothing_is_read_from_the_checkpoint_that_the_run_has_itself(trained, monkeypatch):
    """Restoring needs shapes, not 8 GB of weights."""
    workdir, _ = trained
    config = from_dict(json.loads((workdir / "config.json").read_text()))
    components = build(config)
    monkeypatch.setattr("elpo_jax.components.load_params", None)
    assert cache_folder(components).is_dir()
    params, _ = cold_start(components, lambda *_: None, Path(os.devnull), pytest.fail)
    shapes = components.param_shapes
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for x, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_a_cold_start_is_kept_by_its_checkpoints_content(tmp_path):
    config, tensors = checkpoints.make(tmp_path / "a", vocab_size=600)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folders = [cache_folder(build(config_of(tmp_path / name))) for name in "ab"]
    assert folders[0] == folders[1]
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    checkpoints.write(tmp_path / "b", config, tensors)
    assert cache_folder(build(config_of(tmp_path / "b"))) != folders[0]
    (tmp_path / "b/model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"^policy\.checkpoint: .*: expected model.safetensors"):
        cache_folder(build(config_of(tmp_path / "b")))


def test_a_checkpoint_that_cannot_be_loaded_is_named_with_its_key(tmp_path):
    config, tensors = checkpoints.make(tmp_path, vocab_size=600)
    del tensors["model.norm.weight"]
    checkpoints.write(tmp_path, config, tensors)
    with pytest.raises(UsageError) as caught:
        build(config_of(tmp_path)).init_params()
    (line,) = caught.value.problems
    assert line.startswith(f"policy.checkpoint: {tmp_path}: tensors that config.json asks for are")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--step", "-1"], "--step: expected the number of a step, got '-1'"),
        (["--adapter", "yes"], "--adapter: expected 'true' or 'false', got 'yes'"),
        (["--step", "7"], "expected checkpoint 7, found [0, 1]"),
    ],
)
def test_what_convert_cannot_do(trained, tmp_path, more, words):
    with pytest.raises(UsageError) as caught:
        converted(trained[0], tmp_path / "out", *more)
    (line,) = caught.value.problems
    assert line.endswith(words)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(convert, "load", None)
    monkeypatch.setattr(evaluate, "build", None)
    monkeypatch.setattr(plan, "make_plan", None)
    with pytest.raises(UsageError, match=r"^/proc/out: expected a place for a new folder, got: No"):
        converted(trained[0], Path("/proc/out"))
    argv = ["", "--config", "experiments/sci.py"]
    for place, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing" / "out.json", "No such file or directory"),
        (Path("/proc/out.json"), "No such file or directory"),
    ):
        for main, more in ((evaluate.main, ["--checkpoint", "any"]), (plan.main, [])):
            with pytest.raises(UsageError) as caught:
                main([*argv, *more, "--output", str(place)])
            assert caught.value.problems == (f"{place}: expected a file to write, got: {reason}",)
    assert not list(tmp_path.iterdir())


def test_convert_of_a_folder_that_is_no_run(tmp_path):
    words = "--workdir: .*: expected a run's folder, with a config.json, found none"
    with pytest.raises(UsageError, match=words):
        converted(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("no")
    with pytest.raises(UsageError, match="expected a run's settings, got JSONDecodeError"):
        converted(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"train": {"stepz": 1}}')
    with pytest.raises(UsageError, match=r"config\.json: train\.stepz: no such key"):
        converted(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"--adapter: expected a run with policy\.lora\.rank and"):
        converted(tmp_path, tmp_path / "out", "--adapter", "true")
    with pytest.raises(UsageError, match=r"--checkpoint: expected none, since .* has no policy"):
        converted(tmp_path, tmp_path / "out", "--checkpoint", str(tmp_path))
