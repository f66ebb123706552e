"""Architectures from and to a checkpoint's `config.json` (transformers' `PreTrainedConfig`).

A family is a row of `FAMILIES`: which of its keys mean what, with transformers' defaults. A key
that nobody here reads must say nothing (null, false, 0, empty), or be known to say nothing about
the function of the parameters; everything else is refused rather than ignored.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elpo_jax.errors import unknown_name
from elpo_jax.policy.architecture import Architecture
from elpo_jax.policy.rope import KINDS, Rope, yarn_attention_factor

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What sets a `model_type` apart.

    Attributes:
      qk_norm: queries and keys are normalised.
      qkv_bias: those products always have a bias.
      reads_attention_bias: the key 'attention_bias' gives them and the output one.
      reads_mlp_bias: the key 'mlp_bias' does so for the MLP.
      windows: 'layers' (by 'layer_types', or from 'max_window_layers' on if 'use_sliding_window'),
        'all' (where 'sliding_window' isn't null), or 'none'.
      defaults: what transformers takes for keys that are missing.
    """

    qk_norm: bool = False
    qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    windows: str = "none"
    defaults: Mapping[str, Any] = field(default_factory=dict)


_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(reads_attention_bias=True, reads_mlp_bias=True),
    "mistral": Family(windows="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family(qkv_bias=True, windows="layers", defaults=_QWEN),
    "qwen3": Family(
        qk_norm=True,
        reads_attention_bias=True,
        windows="layers",
        defaults={**_QWEN, "head_dim": 128},
    ),
}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_READ = {
    *_REQUIRED,
    "model_type",
    "architectures",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
}
_READ_FOR_WINDOWS = {
    "none": set[str](),
    "all": {"sliding_window"},
    "layers": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"},
}
# Options with one supported value, which is also what null means.
_ONLY = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "is_causal": True,
    "partial_rotary_factor": 1.0,
}
# These say nothing about the function that the parameters are of: where they come from, ids, what
# training began with, other lengths than those of positions, and, in old files, how to generate.
_NO_MATTER = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "bos_token_id",
    "do_sample",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "model_max_length",
    "pad_token_id",
    "pretraining_tp",
    "repetition_penalty",
    "return_dict",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}
_LAYER_TYPES = ("full_attention", "sliding_attention")
# For each kind of positions the numbers that it must have, and what else it may have.
_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
_ROPE_OPTIONS = {
    "default": set[str](),
    "linear": set[str](),
    "llama3": {"original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


def read_config(folder: Path) -> Json:
    """The checkpoint's `config.json`.

    Raises:
      ValueError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: expected a file to read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def architecture_of(config: Json, usable_vocab: int = 0) -> Architecture:
    """The architecture that a `config.json` describes.

    Args:
      config: its content.
      usable_vocab: ids from here on only fill the embedding up; 0: none.

    Raises:
      ValueError: it isn't one of FAMILIES, or has an option that isn't supported; with what is.
    """
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ValueError(unknown_name("model_type", kind, sorted(FAMILIES)))
    family = FAMILIES[kind]
    _check_keys(config, family)
    config = {**family.defaults, **config}
    attention_bias = family.reads_attention_bias and _flag(config, "attention_bias")
    heads = _count(config, "num_attention_heads")
    return Architecture(
        vocab_size=_count(config, "vocab_size"),
        d_model=_count(config, "hidden_size"),
        num_layers=_count(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, heads),
        mlp_dim=_count(config, "intermediate_size"),
        norm_eps=_positive("rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=family.reads_mlp_bias and _flag(config, "mlp_bias"),
        rope=_rope(config),
        windows=_windows(config, family),
        usable_vocab=usable_vocab,
    )


def describe(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` of a policy that started from scratch, which is Qwen3's shape."""
    a = architecture
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": a.vocab_size,
        "hidden_size": a.d_model,
        "intermediate_size": a.mlp_dim,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_eps,
        "tie_word_embeddings": a.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope.theta},
        "attention_bias": False,
        "dtype": dtype,
    }


def _check_keys(config: Json, family: Family) -> None:
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ValueError(f"expected the keys {', '.join(missing)}, found none of that name")
    read = _READ | _READ_FOR_WINDOWS[family.windows]
    read |= {"attention_bias"} if family.reads_attention_bias else set()
    read |= {"mlp_bias"} if family.reads_mlp_bias else set()
    known = read | _NO_MATTER | set(_ONLY)
    unknown = [key for key, value in config.items() if key not in known and _says_something(value)]
    if unknown:
        shown = ", ".join(f"{key}={json.dumps(config[key])[:60]}" for key in sorted(unknown))
        raise ValueError(
            f"got the unsupported {shown}; expected no options besides {', '.join(sorted(read))}"
        )
    for key, only in _ONLY.items():
        if config.get(key) not in (None, only):
            raise ValueError(f"{key}: expected {only!r}, got {config[key]!r}")
    heads = [name for name in config.get("architectures") or [] if "ForCausalLM" not in name]
    if heads:
        raise ValueError(f"architectures: expected a ...ForCausalLM, got {heads[0]!r}")


def _says_something(value: Any) -> bool:
    return not (value is None or value is False or value == 0 or value in ("", [], {}))


def _count(config: Json, key: str) -> int:
    value = config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}: expected an integer, 1 or more, got {value!r}")
    return value


def _flag(config: Json, key: str) -> bool:
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return bool(value)


def _positive(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{key}: expected a number above 0, got {value!r}")
    return float(value)


def _kv_heads(config: Json, heads: int) -> int:
    if config.get("num_key_value_heads") is None:
        return heads
    count = _count(config, "num_key_value_heads")
    if heads % count:
        raise ValueError(
            f"num_key_value_heads: expected a divisor of num_attention_heads={heads}, got {count}"
        )
    return count


def _head_dim(config: Json, heads: int) -> int:
    width = _count(config, "hidden_size")
    if config.get("head_dim") is None:
        if width % (2 * heads):
            raise ValueError(
                f"hidden_size: expected an even multiple of num_attention_heads={heads} where "
                f"there is no head_dim, got {width}"
            )
        return width // heads
    size = _count(config, "head_dim")
    if size % 2:
        raise ValueError(f"head_dim: expected an even number, got {size}")
    return size


def _rope(config: Json) -> Rope:
    """From 'rope_parameters', or older files' 'rope_scaling' and 'rope_theta'."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name}: expected an object, got {value!r}")
    if new and old and new != old:
        raise ValueError("expected rope_parameters or rope_scaling, got both with other contents")
    given = {key: value for key, value in (new or old or {}).items() if value is not None}
    theta = _positive("rope_theta", given.pop("rope_theta", config.get("rope_theta", 10_000.0)))
    old_name = given.pop("type", "default")
    kind = given.pop("rope_type", old_name)
    if kind not in KINDS:
        raise ValueError(unknown_name("rope_parameters.rope_type", str(kind), KINDS))
    if given.get("partial_rotary_factor") == 1.0:
        del given["partial_rotary_factor"]
    known = {*_ROPE_NUMBERS[kind], *_ROPE_OPTIONS[kind]}
    unknown = sorted(key for key in given.keys() - known if _says_something(given[key]))
    if unknown:
        shown = ", ".join(["rope_theta", "rope_type", *sorted(known)])
        raise ValueError(
            f"rope_parameters: got the unsupported {', '.join(unknown)}; expected no keys besides "
            f"{shown}"
        )
    missing = [name for name in _ROPE_NUMBERS[kind] if name not in given]
    if missing:
        raise ValueError(f"rope_parameters: expected {', '.join(missing)} for {kind!r}, found none")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, _factor(given["factor"]))
    if kind == "llama3":
        return _llama3(theta, given, _original_length(config, given))
    return _yarn(theta, given, _original_length(config, given), config)


def _factor(value: Any) -> float:
    if _positive("rope_parameters.factor", value) < 1:
        raise ValueError(f"rope_parameters.factor: expected 1 or more, got {value!r}")
    return float(value)


def _original_length(config: Json, given: Json) -> int:
    key = "original_max_position_embeddings"
    value = given.get(key, config.get("max_position_embeddings"))
    return int(_positive(f"rope_parameters.{key}", value))


def _llama3(theta: float, given: Json, original: int) -> Rope:
    low, high = (
        _positive(f"rope_parameters.{name}", given[name])
        for name in ("low_freq_factor", "high_freq_factor")
    )
    if high <= low:
        raise ValueError(
            f"rope_parameters.high_freq_factor: expected more than low_freq_factor={low}, "
            f"got {high}"
        )
    factor = _factor(given["factor"])
    return Rope(theta, "llama3", factor, original, low_freq_factor=low, high_freq_factor=high)


def _yarn(theta: float, given: Json, original: int, config: Json) -> Rope:
    if theta <= 1:
        raise ValueError(f"rope_theta: expected more than 1 for 'yarn', got {theta}")
    factor = given.get("factor")
    if factor is None:
        longest = _positive("max_position_embeddings", config.get("max_position_embeddings"))
        factor = longest / original
    factor = _factor(factor)
    numbers = {
        name: _positive(f"rope_parameters.{name}", given[name])
        for name in ("beta_slow", "beta_fast")
        if name in given
    }
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        attention_factor=_attention_factor(given, factor),
        truncate=given.get("truncate", True),
        **numbers,
    )


def _attention_factor(given: Json, factor: float) -> float:
    if "attention_factor" in given:
        return _positive("rope_parameters.attention_factor", given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        log = math.log(factor)
        of, all_dim = (0.1 * given[name] * log + 1 for name in ("mscale", "mscale_all_dim"))
        return of / all_dim
    return yarn_attention_factor(factor)


def _windows(config: Json, family: Family) -> tuple[int, ...]:
    layers = _count(config, "num_hidden_layers")
    in_force = family.windows == "all" or (
        family.windows == "layers" and _flag(config, "use_sliding_window")
    )
    window = 0
    if in_force and config.get("sliding_window") is not None:
        window = _count(config, "sliding_window")
    if family.windows != "layers":
        return (window,) * layers if window else ()
    kinds = config.get("layer_types")
    if kinds is None:
        first = config["max_window_layers"] if window else layers
        if type(first) is not int:
            raise ValueError(f"max_window_layers: expected an integer, got {first!r}")
        kinds = [_LAYER_TYPES[i >= first] for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= set(_LAYER_TYPES):
        names = " or ".join(_LAYER_TYPES)
        raise ValueError(f"layer_types: expected {layers} of {names}, got {kinds}")
    if "sliding_attention" not in kinds:
        return ()
    if not window:
        raise ValueError(
            "layer_types: expected 'full_attention' without use_sliding_window and "
            "sliding_window, got 'sliding_attention'"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
