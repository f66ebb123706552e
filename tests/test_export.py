"""Policies out: folders that import again bit for bit, of whatever a run holds."""

import io
import json
import os
import shutil
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from flax import traverse_util
from processes import TINY
from rich.console import Console
from safetensors.numpy import load_file

from elpo_jax import convert
from elpo_jax.cold_start import cache_folder, cold_start
from elpo_jax.components import build
from elpo_jax.config import MeshConfig, from_dict
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.interrupt import Interrupts
from elpo_jax.policy import export
from elpo_jax.policy.architecture import Architecture, Compute, Lora
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.export import save_adapter, save_checkpoint
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER, SentencePieceTokenizer
from elpo_jax.policy.weights import load_params
from elpo_jax.progress import Display
from elpo_jax.training import train
from elpo_jax.workdir import WorkDir

MESH = make_mesh(MeshConfig())
BFLOAT16 = np.dtype(jnp.bfloat16)
OWN_TOKENIZER = {
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
LORA = Lora(3, 12.0, ("q_proj", "o_proj", "down_proj"))


def loaded(folder, dtype="float32", lora=None):
    """(model, parameters) of a checkpoint."""
    architecture = architecture_of(read_config(folder))
    model = Decoder(architecture, Compute(param_dtype=dtype, lora=lora), MESH)
    return model, load_params(folder, model, MESH, jax.random.key(0))


def tensors_in(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: x for file in files for name, x in load_file(file).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("family", "dtype", "files", "tied"),
    [
        ("llama", np.float32, 1, False),
        ("mistral", BFLOAT16, 2, True),
        ("qwen2", np.float32, 3, True),
        ("qwen3", BFLOAT16, 1, False),
    ],
)
def test_what_came_in_goes_out_bit_for_bit(tmp_path, family, dtype, files, tied):
    source, target = tmp_path / "source", tmp_path / "target"
    changes = {"tie_word_embeddings": tied, "torch_dtype": "float16", "initializer_range": 0.1}
    config, tensors = checkpoints.make(source, family, dtype, files, **changes)
    model, params = loaded(source, np.dtype(dtype).name)
    limit = 20_000
    save_checkpoint(target, params, model, source, shard_bytes=limit if files > 1 else 1 << 30)
    assert_same(tensors_in(target), tensors)
    expected = {name: value for name, value in config.items() if name != "torch_dtype"}
    assert read_config(target) == expected | {"dtype": np.dtype(dtype).name}
    _, again = loaded(target, np.dtype(dtype).name)
    assert_same(flat(again), flat(params))
    names = {path.name for path in target.iterdir()}
    if files == 1:
        assert names == {"config.json", "model.safetensors"}
        return
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    shards = set(index["weight_map"].values())
    assert len(shards) >= 2
    assert names == {"config.json", "model.safetensors.index.json", *shards}
    for shard in shards:
        content = load_file(target / shard)
        assert {name for name, file in index["weight_map"].items() if file == shard} == set(content)
        assert sum(x.nbytes for x in content.values()) <= limit


def flat(params):
    return {".".join(p): np.asarray(x) for p, x in traverse_util.flatten_dict(params).items()}


def test_a_tensor_beyond_the_limit_has_a_file_of_its_own(tmp_path):
    _, tensors = checkpoints.make(tmp_path / "source")
    model, params = loaded(tmp_path / "source")
    save_checkpoint(tmp_path / "target", params, model, tmp_path / "source", shard_bytes=1)
    assert len(list((tmp_path / "target").glob("*.safetensors"))) == len(tensors)
    assert_same(tensors_in(tmp_path / "target"), tensors)


def test_a_policy_from_scratch_describes_itself(tmp_path):
    architecture = Architecture(40, 24, 2, 4, 2, 10, 36, tie_embeddings=True, norm_eps=1e-5)
    model = Decoder(architecture, Compute(param_dtype="bfloat16"), MESH)
    params = init_params(model, jax.random.key(0), MESH)
    save_checkpoint(tmp_path / "target", params, model, tokenizer=EMBEDDED_TOKENIZER)
    assert architecture_of(read_config(tmp_path / "target")) == architecture
    _, again = loaded(tmp_path / "target", "bfloat16")
    assert_same(flat(again), flat(params))
    assert (tmp_path / "target/tokenizer.model").read_bytes() == EMBEDDED_TOKENIZER.read_bytes()
    template = (tmp_path / "target/chat_template.jinja").read_bytes()
    assert template == EMBEDDED_TEMPLATE.read_bytes()


def test_what_lies_beside_the_weights_is_carried_over(tmp_path):
    source = tmp_path / "source"
    checkpoints.make(source)
    more = "additional_chat_templates/tool_use.jinja"
    carried = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", more)
    (source / more).parent.mkdir()
    for name in (*carried, "generation_config.json", "pytorch_model.bin", "optimizer.pt"):
        (source / name).write_bytes(name.encode())
    model, params = loaded(source)
    save_checkpoint(tmp_path / "target", params, model, source)
    target = tmp_path / "target"
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "generation_config.json", *carried}
    for name in carried:
        assert (tmp_path / "target" / name).read_bytes() == name.encode()
    # Another tokenizer takes the place of the source's; the templates stay.
    text = EMBEDDED_TEMPLATE.read_text(encoding="utf-8").replace("tools>", "list>")
    for name in ("chat_template.jinja", more):
        (source / name).write_text(text, encoding="utf-8")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (source / name).write_text("{}")
    save_checkpoint(tmp_path / "other", params, model, source, EMBEDDED_TOKENIZER)
    names = {str(p.relative_to(tmp_path / "other")) for p in (tmp_path / "other").rglob("*.*")}
    assert names == {*OWN_TOKENIZER, more}
    template = tmp_path / "other/chat_template.jinja"
    assert template.read_text(encoding="utf-8") == text
    shutil.rmtree((source / more).parent)
    (source / "chat_template.jinja").unlink()
    save_checkpoint(tmp_path / "without", params, model, source, EMBEDDED_TOKENIZER)
    template = tmp_path / "without/chat_template.jinja"
    assert template.read_bytes() == EMBEDDED_TEMPLATE.read_bytes()


def with_adapters(params, dtype=np.float32):
    """The same with adapters that do something."""
    rng = np.random.default_rng(1)

    def fill(path, x):
        is_adapter = path[-1].key.startswith("lora_")
        return jnp.asarray(rng.normal(size=x.shape), x.dtype) if is_adapter else x

    return jax.tree_util.tree_map_with_path(fill, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged(tmp_path, dtype):
    _, tensors = checkpoints.make(tmp_path / "source", dtype=np.dtype(dtype))
    model, params = loaded(tmp_path / "source", dtype, LORA)
    save_checkpoint(tmp_path / "fresh", params, model, tmp_path / "source")
    assert_same(tensors_in(tmp_path / "fresh"), tensors)  # B begins as 0
    params = with_adapters(params)
    save_checkpoint(tmp_path / "merged", params, model, tmp_path / "source")
    save_adapter(tmp_path / "adapter", params, model, "the/base")
    adapter = {n: x.astype(np.float64) for n, x in tensors_in(tmp_path / "adapter").items()}
    merged = tensors_in(tmp_path / "merged")
    changed = set()
    for name, x in tensors.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        expected = x.astype(np.float64)
        if f"{prefix}.lora_A.weight" in adapter:
            down, up = (adapter[f"{prefix}.lora_{part}.weight"] for part in "AB")
            expected = expected + 12 / 3 * up @ down
            changed.add(name.split(".")[-2])
        rtol = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]  # of one rounding, at the end
        np.testing.assert_allclose(merged[name].astype(np.float64), expected, rtol, atol=1e-5)
        assert merged[name].dtype == x.dtype
    assert changed == set(LORA.targets)


def test_the_merged_policy_is_the_adapted_one(tmp_path):
    checkpoints.make(tmp_path / "source", "qwen2")
    model, params = loaded(tmp_path / "source", lora=LORA)
    params = with_adapters(params)
    save_checkpoint(tmp_path / "merged", params, model, tmp_path / "source")
    plain, merged = loaded(tmp_path / "merged")
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    adapted = model.apply({"params": params}, tokens)
    base = plain.apply({"params": loaded(tmp_path / "source")[1]}, tokens)
    np.testing.assert_allclose(plain.apply({"params": merged}, tokens), adapted, atol=2e-4)
    assert np.abs(base - adapted).max() > 0.1


def test_an_adapter_is_laid_out_as_peft_has_it(tmp_path):
    checkpoints.make(tmp_path / "source")
    model, params = loaded(tmp_path / "source", lora=LORA)
    params = with_adapters(params)
    save_adapter(tmp_path / "adapter", params, model, "the/base")
    found = tensors_in(tmp_path / "adapter")
    sizes = {"self_attn.q_proj": (24, 60), "self_attn.o_proj": (60, 24), "mlp.down_proj": (36, 24)}
    expected = {}
    for layer in range(3):
        for name, (into, out) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            expected |= {f"{prefix}.lora_A.weight": (3, into), f"{prefix}.lora_B.weight": (out, 3)}
    assert {name: x.shape for name, x in found.items()} == expected
    query = params["layers"]["query"]
    prefix = "base_model.model.model.layers.2.self_attn.q_proj"
    np.testing.assert_array_equal(found[f"{prefix}.lora_A.weight"], query["lora_a"][2].T)
    for head in range(6):
        rows = found[f"{prefix}.lora_B.weight"][10 * head : 10 * head + 10]
        np.testing.assert_array_equal(rows, query["lora_b"][2][:, head].T)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 12.0)
    assert config["target_modules"] == list(LORA.targets)
    assert config["base_model_name_or_path"] == "the/base"
    plain, params = loaded(tmp_path / "source")
    with pytest.raises(UsageError, match=r"expected a policy with policy\.lora\.rank > 0"):
        save_adapter(tmp_path / "none", params, plain, "the/base")
    assert not (tmp_path / "none").exists()


def test_what_is_there_is_not_overwritten(tmp_path):
    checkpoints.make(tmp_path / "source")
    model, params = loaded(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").touch()
    with pytest.raises(UsageError) as caught:
        save_checkpoint(target, params, model, tmp_path / "source")
    assert caught.value.problems == (
        f"{target}: expected a new or empty folder, found 'thesis.tex'",
    )
    with pytest.raises(UsageError, match="found a file"):
        save_checkpoint(target / "thesis.tex", params, model, tmp_path / "source")
    (target / "thesis.tex").unlink()
    save_checkpoint(target, params, model, tmp_path / "source")
    assert (target / "model.safetensors").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoints.make(tmp_path / "source")
    model, params = loaded(tmp_path / "source")
    written = []

    def save(tensors, path, metadata):
        if written:
            raise export.SafetensorError("I/O error: No space left on device")
        written.append(path)
        path.touch()

    monkeypatch.setattr(export, "save_file", save)
    with pytest.raises(RunFault, match="can't be written: I/O error: No space left on device"):
        save_checkpoint(tmp_path / "target", params, model, tmp_path / "source", shard_bytes=9000)
    assert written
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# Whole runs.

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
            pytest.raises(UsageError, match=rf"policy: .*{name} is not what the run in"),
            Display(Console(file=io.StringIO())) as display,
        ):
            train(components, WorkDir(copy), display, Interrupts())
    finally:
        if kept is None:
            file.unlink()
        else:
            file.write_bytes(kept)
    assert [int(path.name) for path in (copy / "checkpoints").iterdir()] == [0]


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


def test_a_run_from_a_checkpoint_leaves_one(trained, tmp_path):
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
    adapter = converted(workdir, tmp_path / "adapter", "--adapter", "true")
    assert len(adapter) == 14
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source)


def test_a_finished_run_exports_once(trained, tmp_path):
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


def test_convert_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="expected a run's settings, got FileNotFoundError"):
        converted(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"train": {"stepz": 1}}')
    with pytest.raises(UsageError, match=r"config\.json: train\.stepz: no such key"):
        converted(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"--adapter: expected a run with policy\.lora\.rank and"):
        converted(tmp_path, tmp_path / "out", "--adapter", "true")
