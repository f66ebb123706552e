"""Policies out: folders that import again bit for bit, of whatever a run holds."""

import json
import resource
import shutil
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_folders import qwen_folder
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from elpo_jax.config import MeshConfig, PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy import export
from elpo_jax.policy.architecture import Architecture, Compute, Lora
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.policy.export import export_policy, save_adapter, save_checkpoint
from elpo_jax.policy.export_tokenizer import write_tokenizer
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER
from elpo_jax.policy.weights import load_params

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


@pytest.mark.parametrize(
    ("generation", "ids", "expected"),
    [
        ({"eos_token_id": "other", "top_p": 0.8}, {}, {"eos_token_id": ["end", "other"]}),
        ({"top_p": 0.8}, {"eos_token_id": "end"}, {"eos_token_id": ["end"]}),
        (
            None,
            {"eos_token_id": "other", "pad_token_id": "other"},
            {"eos_token_id": ["end", "other"], "pad_token_id": "other"},
        ),
        (None, {}, {"eos_token_id": ["end"]}),
        ({"eos_token_id": ["other", "end"]}, {}, None),
        (None, {"eos_token_id": "end"}, None),
    ],
)
def test_generation_ends_where_the_policys_turns_end(tmp_path, generation, ids, expected):
    """Base checkpoints name the end of a text alone."""
    source, target = qwen_folder(tmp_path / "source"), tmp_path / "target"
    policy = PolicyConfig(checkpoint=str(source))
    chat = make_chat(policy, ())
    token = {"end": chat.end_of_turn, "other": chat.tokenizer.id_of("<|endoftext|>")}

    def numbers(config):
        def of(value):
            return [token[each] for each in value] if isinstance(value, list) else token[value]

        return {k: of(v) if k.endswith("_id") else v for k, v in config.items()}

    checkpoints.make(source, vocab_size=chat.tokenizer.vocab_size, **numbers(ids))
    file = source / "generation_config.json"
    if generation is not None:
        file.write_text(json.dumps(numbers(generation)))
    model, params = loaded(source)
    notes = export_policy(target, params, model, policy)
    written = target / file.name
    if expected is None:
        assert notes == []
        assert written.exists() == file.exists()
        assert not file.exists() or written.read_bytes() == file.read_bytes()
        return
    expected = numbers((generation or {}) | expected)
    assert json.loads(written.read_text()) == expected
    assert notes == [
        f"generation_config.json: eos_token_id is {expected['eos_token_id']}: the chat template's "
        f"turns end at {token['end']}, where the checkpoint's generation settings don't stop"
    ]
    # This package's turns end where they did.
    again = make_chat(PolicyConfig(checkpoint=str(target)), ())
    assert again.stop_tokens == make_chat(policy, ()).stop_tokens


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


def test_a_full_disk_is_not_said_to_be_the_sources(tmp_path):
    (tmp_path / "tokenizer.model").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tokenizer(tmp_path, EMBEDDED_TOKENIZER, None)
    assert caught.value.filename is None  # then the export's folder is named


def without_room(*arguments):
    """`save_file`, where the system takes no more than 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        save_file(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoints.make(tmp_path / "source")
    model, params = loaded(tmp_path / "source")
    written = []

    def save(tensors, path, metadata):
        if written:
            return without_room(tensors, path, metadata)
        written.append(path)
        return save_file(tensors, path, metadata)

    monkeypatch.setattr(export, "save_file", save)
    with pytest.raises(OSError, match=r"File too large: '.*/target/model-00002-of-"):
        save_checkpoint(tmp_path / "target", params, model, tmp_path / "source", shard_bytes=9000)
    assert len(written) == 1
    with pytest.raises(UsageError, match=r"^/proc/out: expected a place for a new folder, got: No"):
        save_checkpoint(Path("/proc/out"), params, model, tmp_path / "source")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
