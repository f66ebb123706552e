"""Checkpoints in: every number in its place, whatever the files look like; and in little memory."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from checkpoints import SIZES
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from elpo_jax.config import MeshConfig, SamplerConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.architecture import Compute, Lora
from elpo_jax.policy.checkpoint_folder import fingerprint
from elpo_jax.policy.families import architecture_of
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.policy.weights import load_params
from elpo_jax.sampler.engine import Chunk, Decoding, Engine

MESH = make_mesh(MeshConfig())
HEADS, KV_HEADS, SIZE = (
    SIZES[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
)
LORA = Lora(3, 12.0, ("q_proj", "o_proj", "down_proj"))
BFLOAT16 = np.dtype(jnp.bfloat16)


def model_of(config, compute=Compute(), usable_vocab=0):  # noqa: B008  frozen
    return Decoder(architecture_of(config, usable_vocab), compute, MESH)


def flat(params):
    """Arrays by dotted path."""
    return {".".join(p): np.asarray(x) for p, x in traverse_util.flatten_dict(params).items()}


def problems(folder, config, **changes):
    with pytest.raises(UsageError) as caught:
        load_params(folder, model_of(config | changes), MESH)
    return list(caught.value.problems)


def problem(folder, config, **changes):
    (line,) = problems(folder, config, **changes)
    return line


@pytest.mark.parametrize("family", checkpoints.OPTIONS)
def test_every_number_is_in_its_place(tmp_path, family):
    config, tensors = checkpoints.make(tmp_path, family)
    found = flat(load_params(tmp_path, model_of(config), MESH))
    used = 0

    def same(ours, theirs):
        nonlocal used
        used += theirs.size
        np.testing.assert_array_equal(ours, theirs)

    same(found["embedding.embedding"], tensors["model.embed_tokens.weight"])
    same(found["final_norm.scale"], tensors["model.norm.weight"])
    same(found["head.kernel"], tensors["lm_head.weight"].T)
    for layer in range(SIZES["num_hidden_layers"]):
        ours = {n.removeprefix("layers."): x[layer] for n, x in found.items() if "layers." in n}
        prefix = f"model.layers.{layer}."
        theirs = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        same(ours["attention_norm.scale"], theirs["input_layernorm.weight"])
        same(ours["mlp_norm.scale"], theirs["post_attention_layernorm.weight"])
        if family == "qwen3":
            same(ours["query_norm.scale"], theirs["self_attn.q_norm.weight"])
            same(ours["key_norm.scale"], theirs["self_attn.k_norm.weight"])
        for name, short in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            same(ours[f"{name}.kernel"], theirs[f"mlp.{short}.weight"].T)
            if family == "llama":
                same(ours[f"{name}.bias"], theirs[f"mlp.{short}.bias"])
        # Head by head: theirs lie below one another.
        for name, heads in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
            for head in range(heads):
                rows = slice(head * SIZE, (head + 1) * SIZE)
                weight = theirs[f"self_attn.{name[0]}_proj.weight"][rows]
                same(ours[f"{name}.kernel"][:, head], weight.T)
                if family in ("llama", "qwen2"):
                    bias = theirs[f"self_attn.{name[0]}_proj.bias"][rows]
                    same(ours[f"{name}.bias"][head], bias)
        for head in range(HEADS):
            columns = slice(head * SIZE, (head + 1) * SIZE)
            weight = theirs["self_attn.o_proj.weight"][:, columns]
            same(ours["output.kernel"][head], weight.T)
        if family == "llama":
            same(ours["output.bias"], theirs["self_attn.o_proj.bias"])
    assert used == sum(x.size for x in tensors.values()) == sum(x.size for x in found.values())


@pytest.mark.parametrize("stored", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_numbers_are_rounded_to_the_parameters_dtype_and_no_further(tmp_path, stored, kept):
    config, tensors = checkpoints.make(tmp_path, dtype=stored, files=3)
    params = load_params(tmp_path, model_of(config, Compute(param_dtype=kept)), MESH)
    for name, ours in (
        ("model.embed_tokens.weight", params["embedding"]["embedding"]),
        ("model.layers.2.mlp.up_proj.weight", params["layers"]["up"]["kernel"][2].T),
    ):
        expected = tensors[name].astype(np.float32).astype(kept)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(ours), expected)


def test_parameters_are_like_fresh_ones(tmp_path):
    """In structure, shape, dtype and layout, so that no program is compiled twice."""
    config, _ = checkpoints.make(tmp_path, "qwen2")
    model = model_of(config, Compute(lora=LORA))
    key = jax.random.key(5)
    fresh, loaded = init_params(model, key, MESH), load_params(tmp_path, model, MESH, key)
    assert jax.tree.structure(fresh) == jax.tree.structure(loaded)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(fresh), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding == theirs.sharding


def test_adapters_begin_fresh_beside_the_checkpoint(tmp_path):
    config, _ = checkpoints.make(tmp_path)
    model, key = model_of(config, Compute(lora=LORA)), jax.random.key(5)
    loaded = flat(load_params(tmp_path, model, MESH, key))
    fresh, plain = (
        flat(init_params(model, key, MESH)),
        flat(load_params(tmp_path, model_of(config), MESH)),
    )
    adapters = loaded.keys() - plain.keys()
    assert len(adapters) == 6
    for name, x in loaded.items():
        np.testing.assert_array_equal(x, fresh[name] if name in adapters else plain[name])
    with pytest.raises(ValueError, match="expected a key for the adapters"):
        load_params(tmp_path, model, MESH)


def test_a_tied_checkpoint_may_hold_the_embedding_twice(tmp_path):
    config, tensors = checkpoints.make(tmp_path, tie_word_embeddings=True)
    assert "head" not in load_params(tmp_path, model_of(config), MESH)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    checkpoints.write(tmp_path, config, tensors)
    assert "head" not in load_params(tmp_path, model_of(config), MESH)
    tensors["lm_head.weight"][-1, -1] += 1
    checkpoints.write(tmp_path, config, tensors)
    assert problem(tmp_path, config) == (
        f"{tmp_path}: lm_head.weight: expected none or model.embed_tokens.weight again, since "
        "config.json has tie_word_embeddings=true; got other numbers"
    )


def test_buffers_of_old_exporters_are_left_out(tmp_path):
    config, tensors = checkpoints.make(tmp_path)
    buffers = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32) for i in range(3)
    }
    checkpoints.write(tmp_path, config, tensors | buffers)
    load_params(tmp_path, model_of(config), MESH)


# Files that aren't what config.json promises.


def test_all_that_is_wrong_is_named_together(tmp_path):
    config, tensors = checkpoints.make(tmp_path)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.experts.weight"] = np.ones(3, np.float32)
    tensors["lm_head.weight"] = np.ones((42, 23), np.float32)
    tensors["model.layers.2.self_attn.k_norm.weight"] = np.ones(10, np.int8)
    checkpoints.write(tmp_path, config, tensors)
    assert problems(tmp_path, config) == [
        f"{tmp_path}: tensors that config.json asks for are missing: 2: "
        "model.norm.weight, model.layers.1.mlp.up_proj.weight",
        f"{tmp_path}: tensors that config.json doesn't ask for: 1: "
        "model.layers.0.mlp.experts.weight",
        f"{tmp_path}: tensors of another shape: 1: lm_head.weight: expected [42, 24], got [42, 23]",
        f"{tmp_path}: tensors of other dtypes than BF16, F16, F32: 1: "
        "model.layers.2.self_attn.k_norm.weight is I8",
    ]


def test_a_long_list_is_cut(tmp_path):
    config, _ = checkpoints.make(tmp_path)
    line = problem(tmp_path, config, num_hidden_layers=5)
    assert line.startswith(f"{tmp_path}: tensors that config.json asks for are missing: 22: model.")
    assert line.count("model.") == 8
    assert line.endswith(" and 14 more")


def test_a_head_is_wanted_where_it_isnt_tied(tmp_path):
    config, _ = checkpoints.make(tmp_path, tie_word_embeddings=True)
    assert problem(tmp_path, config, tie_word_embeddings=False).endswith("1: lm_head.weight")


def test_float8_is_named(tmp_path):
    config, tensors = checkpoints.make(tmp_path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(jnp.float8_e4m3fn)
    checkpoints.write(tmp_path, config, tensors)
    assert problem(tmp_path, config).endswith("lm_head.weight is F8_E4M3")


def test_a_folder_without_safetensors(tmp_path):
    config = checkpoints.config_of("qwen3")
    expected = f"{tmp_path}: expected model.safetensors or model.safetensors.index.json"
    assert problem(tmp_path, config) == expected
    (tmp_path / "pytorch_model.bin").touch()
    found = ", found pytorch_model.bin: save it again with safe_serialization=True"
    assert problem(tmp_path, config) == expected + found


def test_a_file_that_is_cut_off(tmp_path):
    config, _ = checkpoints.make(tmp_path)
    file = tmp_path / "model.safetensors"
    for content in (file.read_bytes()[:-1], b"", b"\xff" * 100):
        file.write_bytes(content)
        assert problem(tmp_path, config).startswith(f"{file}: expected safetensors, got: ")


def test_a_missing_shard(tmp_path):
    config, _ = checkpoints.make(tmp_path, files=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert problem(tmp_path, config).endswith(
        "expected the 3 files that it names, missing: model-00002-of-00003.safetensors"
    )


def test_a_tensor_in_two_files(tmp_path):
    config, tensors = checkpoints.make(tmp_path, files=2)
    save_file(tensors, tmp_path / "model-00002-of-00002.safetensors")
    assert problem(tmp_path, config).endswith("is in model-00001-of-00002.safetensors as well")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[", "expected an object with a weight_map, got JSONDecodeError: "),
        ("[]", "expected an object with a weight_map, got TypeError: "),
        ("{}", "expected an object with a weight_map, got KeyError: 'weight_map'"),
        ('{"weight_map": {"a": {}}}', "expected an object with a weight_map, got TypeError: "),
        ('{"weight_map": {}}', "weight_map: expected names of files beside it, got []"),
        ('{"weight_map": {"a": "../x"}}', "weight_map: expected names of files beside it, got ["),
        (
            '{"weight_map": {"a": "/x"}}',
            "weight_map: expected names of files beside it, got ['/",
        ),
        ('{"weight_map": {"a": 1}}', "weight_map: expected names of files beside it, got [1]"),
    ],
)
def test_a_broken_index(tmp_path, index, words):
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(index)
    config = checkpoints.config_of("qwen3")
    assert problem(tmp_path, config).startswith(f"{file}: {words}")


def test_an_index_that_puts_tensors_elsewhere(tmp_path):
    config, _ = checkpoints.make(tmp_path, files=2)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index["weight_map"]["x"] = "model-00002-of-00002.safetensors"
    file.write_text(json.dumps(index))
    line = problem(tmp_path, config)
    assert line.startswith(f"{file}: expected what the files hold, got ")
    assert line.endswith("x in model-00002-of-00002.safetensors")


# What it takes.


def test_memory_is_the_shards_and_two_tensors(tmp_path):
    """150 MB in layers whose stacks are as large as six of their largest tensors."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to measure in")
    sizes = {
        "vocab_size": 4000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "head_dim": 64,
    }
    _, tensors = checkpoints.make(tmp_path, **sizes)
    total = sum(x.nbytes for x in tensors.values())
    largest = max(x.nbytes for x in tensors.values())
    assert total > 130e6
    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    checkpoints.make(tmp_path / "warm", **small)
    del tensors
    for devices, dtype, shards in ((1, "float32", total), (8, "bfloat16", total / 2)):
        peak = peak_of_loading(tmp_path, devices, dtype)
        # The constant is what compiling a dozen programs takes.
        assert shards < peak < shards + 2 * largest + 20e6


LOADING = """
import sys
import jax
from pathlib import Path
from elpo_jax.config import MeshConfig
from elpo_jax.policy.architecture import Compute
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import make_mesh
from elpo_jax.policy.weights import load_params

folder, dtype = Path(sys.argv[1]), sys.argv[2]
mesh = make_mesh(MeshConfig(fsdp=len(jax.devices())))
for place in (folder / "warm", folder):
    print("begin", flush=True)
    sys.stdin.readline()
    model = Decoder(architecture_of(read_config(place)), Compute(param_dtype=dtype), mesh)
    params = load_params(place, model, mesh)
print("end", flush=True)
sys.stdin.readline()
"""


def peak_of_loading(folder, devices, dtype):
    """Bytes of anonymous memory that loading takes at most, in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, str(folder), dtype],
        env=os.environ | {"PYTHONPATH": str(processes.ROOT / "src"), "XLA_FLAGS": flags},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def told(word):
        assert process.stdout.readline() == f"{word}\n"

    def anonymous():
        status = Path(f"/proc/{process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    def go():
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        told("begin")
        go()
        told("begin")
        before, most = anonymous(), 0
        go()
        waiting = threading.Thread(target=told, args=("end",))
        waiting.start()
        while waiting.is_alive():
            most = max(most, anonymous())
            time.sleep(0.001)
        return most - before
    finally:
        process.kill()
        process.communicate()


ON_EIGHT = """
import sys
import jax
import numpy as np
from pathlib import Path
from flax import traverse_util
from elpo_jax.config import MeshConfig
from elpo_jax.policy.architecture import Compute
from elpo_jax.policy.export import save_checkpoint
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import make_mesh, param_shardings
from elpo_jax.policy.weights import load_params

folder = Path(sys.argv[1])
for sizes in ((2, 2, 2), (1, 2, 4), (1, 8, 1), (8, 1, 1)):
    mesh = make_mesh(MeshConfig(*sizes))
    model = Decoder(architecture_of(read_config(folder)), Compute(), mesh)
    params = load_params(folder, model, mesh)
    assert all(jax.tree.leaves(
        jax.tree.map(lambda x, s: x.sharding == s, params, param_shardings(model, mesh))
    ))
    name = "x".join(map(str, sizes))
    save_checkpoint(folder / name, params, model, folder)
    flat = traverse_util.flatten_dict(params, sep=".")
    np.savez(folder / f"{name}.npz", **{path: np.asarray(x) for path, x in flat.items()})
"""


def test_eight_devices_get_and_give_what_one_does(tmp_path):
    config, tensors = checkpoints.make(
        tmp_path, "llama", vocab_size=40, num_attention_heads=8, num_key_value_heads=4
    )
    one = flat(load_params(tmp_path, model_of(config), MESH))
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(processes.ROOT / "src"), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    for mesh in ("2x2x2", "1x2x4", "1x8x1", "8x1x1"):
        with np.load(tmp_path / f"{mesh}.npz") as eight:
            assert eight.keys() == one.keys()
            for name, x in one.items():
                np.testing.assert_array_equal(eight[name], x, err_msg=name)
        written = load_file(tmp_path / mesh / "model.safetensors")
        assert written.keys() == tensors.keys()
        for name, x in tensors.items():
            np.testing.assert_array_equal(written[name], x, err_msg=name)


# What comes of it.


def test_ids_that_only_fill_the_vocabulary_are_never_drawn(tmp_path):
    """However flat the distribution, and however large their logits would be."""
    config, tensors = checkpoints.make(tmp_path)
    tensors["lm_head.weight"][30:] *= 1e3
    checkpoints.write(tmp_path, config, tensors)
    model = model_of(config, usable_vocab=30)
    params = load_params(tmp_path, model, MESH)
    sampler = SamplerConfig(
        lanes=8, rows=1, decode_block=32, prefill_rows=8, prefill_chunks=(4,), fork_rows=1
    )
    engine = Engine(model, sampler, 64, MESH)
    prompts = np.random.default_rng(0).integers(0, 30, (8, 5)).astype(np.int32)
    engine.prefill(params, [Chunk(lane, 0, prompt[:4]) for lane, prompt in enumerate(prompts)])
    work = [
        Decoding(lane, int(prompt[4]), 4, 32, (lane, 0), temperature, 1.0, 0)
        for lane, (prompt, temperature) in enumerate(
            zip(prompts, [1.0, 0.0] + [1e6] * 6, strict=True)
        )
    ]
    drawn = engine.decode(params, work, jax.random.key(0), (), 1)
    tokens = np.asarray(drawn.tokens)[:, :32]
    assert tokens.max() == 29
    assert len(np.unique(tokens[2:])) == 30
    # Nor do they have a share in entropies.
    assert np.asarray(drawn.entropies)[2:] == pytest.approx(np.log(30), abs=1e-3)


def test_a_fingerprint_tells_contents_apart_not_places(tmp_path):
    config, tensors = checkpoints.make(tmp_path / "a", files=2)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    first = fingerprint(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("another place")
    assert fingerprint(tmp_path / "b") == first
    found = {first}
    (tmp_path / "b" / "tokenizer.json").write_text("{ }")
    found.add(fingerprint(tmp_path / "b"))
    checkpoints.write(tmp_path / "b", config | {"rms_norm_eps": 1e-5}, tensors, files=2)
    found.add(fingerprint(tmp_path / "b"))
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        changed = {**tensors, name: tensors[name] * np.float32(1.001)}
        checkpoints.write(tmp_path / "b", config, changed, files=2)
        found.add(fingerprint(tmp_path / "b"))
    assert len(found) == 5
