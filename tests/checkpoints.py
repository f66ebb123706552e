"""Tiny checkpoints in each family's layout, written with NumPy from known numbers."""

import json

import numpy as np
from safetensors.numpy import save_file

# Odd on purpose: heads times head size isn't the width, and nothing is a power of two.
SIZES = {
    "vocab_size": 42,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
}
OPTIONS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
}


def config_of(family, **changes):
    """Its config.json."""
    return {"model_type": family} | SIZES | OPTIONS[family] | changes


def shapes_of(config):
    """Name and shape of every tensor, as transformers has them."""
    family = config["model_type"]
    width, mlp, size = (config[n] for n in ("hidden_size", "intermediate_size", "head_dim"))
    queries = config["num_attention_heads"] * size
    keys = config["num_key_value_heads"] * size
    attention_bias = config.get("attention_bias", False)
    products = {
        "self_attn.q_proj": (queries, width, attention_bias or family == "qwen2"),
        "self_attn.k_proj": (keys, width, attention_bias or family == "qwen2"),
        "self_attn.v_proj": (keys, width, attention_bias or family == "qwen2"),
        "self_attn.o_proj": (width, queries, attention_bias),
        "mlp.gate_proj": (mlp, width, config.get("mlp_bias", False)),
        "mlp.up_proj": (mlp, width, config.get("mlp_bias", False)),
        "mlp.down_proj": (width, mlp, config.get("mlp_bias", False)),
    }
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (width,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
        if family == "qwen3":
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (size,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (size,)
        for name, (out, into, bias) in products.items():
            shapes[f"{prefix}.{name}.weight"] = (out, into)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (out,)
    return shapes


def tensors_of(config, dtype=np.float32, seed=0):
    """Random numbers for every tensor."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.2 * rng.normal(size=shape)).astype(dtype)
        for name, shape in shapes_of(config).items()
    }


def write(folder, config, tensors, files=1):
    """The checkpoint, its tensors dealt out to that many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::files]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def make(folder, family="qwen3", dtype=np.float32, files=1, **changes):
    """A checkpoint in `folder`. Returns its config.json and its tensors."""
    config = config_of(family, **changes)
    tensors = tensors_of(config, dtype)
    write(folder, config, tensors, files)
    return config, tensors
