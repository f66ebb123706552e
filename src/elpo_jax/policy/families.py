"""Architectures from and to a checkpoint's `config.json` (transformers' `PreTrainedConfig`).

A family is a row of `FAMILIES`: which of its keys mean what, with transformers' defaults. A key
that nobody here reads must say nothing (null, false, empty), or be known to say nothing about the
function of the parameters; everything else is refused rather than ignored.
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
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
}
# These say nothing about the function that the parameters are of.
_NO_MATTER = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
}
# Without them in force, neither do these.
_OF_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
_ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
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
    heads, width = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None:
        if width % heads:
            raise ValueError(
                f"hidden_size: expected a multiple of num_attention_heads={heads} where there is "
                f"no head_dim, got {width}"
            )
        head_dim = width // heads
    attention_bias = family.reads_attention_bias and bool(config.get("attention_bias"))
    return Architecture(
        vocab_size=_count(config, "vocab_size"),
        d_model=width,
        num_layers=_count(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=_count(config, "intermediate_size"),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=family.reads_mlp_bias and bool(config.get("mlp_bias")),
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
    known = _READ | _NO_MATTER
    known |= {"attention_bias"} if family.reads_attention_bias else set()
    known |= {"mlp_bias"} if family.reads_mlp_bias else set()
    known |= _OF_WINDOWS if family.windows != "none" else set()
    unknown = [key for key, value in config.items() if key not in known and _says_something(value)]
    if unknown:
        shown = ", ".join(f"{key}={json.dumps(config[key])[:60]}" for key in sorted(unknown))
        raise ValueError(f"expected no options besides {', '.join(sorted(known))}; got {shown}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act: expected 'silu', got {config['hidden_act']!r}")
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


def _rope(config: Json) -> Rope:
    """From 'rope_parameters', or older files' 'rope_scaling' and 'rope_theta'."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind not in KINDS:
        raise ValueError(unknown_name("rope_parameters.rope_type", kind, KINDS))
    if given.get("partial_rotary_factor") == 1.0:
        del given["partial_rotary_factor"]
    unknown = sorted(key for key in given.keys() - _ROPE_KEYS[kind] if _says_something(given[key]))
    if unknown:
        known = ", ".join(["rope_theta", "rope_type", *sorted(_ROPE_KEYS[kind])])
        raise ValueError(f"rope_parameters: expected no keys besides {known}, got {unknown}")
    if kind == "default":
        return Rope(float(theta))
    longest = config.get("max_position_embeddings")
    original = given.get("original_max_position_embeddings") or longest or 0
    factor = given.get("factor")
    if factor is None and kind == "yarn" and longest and original:
        factor = longest / original
    if not isinstance(factor, int | float) or factor < 1:
        raise ValueError(f"rope_parameters.factor: expected a number, 1 or more, got {factor!r}")
    if kind != "linear" and original < 1:
        raise ValueError(
            "rope_parameters.original_max_position_embeddings: expected it, found none"
        )
    names = ("low_freq_factor", "high_freq_factor", "beta_slow", "beta_fast")
    numbers = {name: float(given[name]) for name in names if given.get(name) is not None}
    return Rope(
        float(theta),
        kind,
        float(factor),
        int(original),
        attention_factor=_attention_factor(given, factor) if kind == "yarn" else 1.0,
        truncate=bool(given.get("truncate", True)),
        **numbers,
    )


def _attention_factor(given: Json, factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        log = math.log(factor)
        of, all_dim = (0.1 * given[name] * log + 1 for name in ("mscale", "mscale_all_dim"))
        return of / all_dim
    return yarn_attention_factor(factor)


def _windows(config: Json, family: Family) -> tuple[int, ...]:
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if family.windows == "none":
        return ()
    if family.windows == "all":
        return (window,) * layers if window else ()
    if not config.get("use_sliding_window") or not window:
        if "sliding_attention" in (config.get("layer_types") or []):
            raise ValueError(
                "layer_types: expected 'full_attention' without use_sliding_window and "
                "sliding_window, got 'sliding_attention'"
            )
        return ()
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(window if i >= config["max_window_layers"] else 0 for i in range(layers))
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != layers:
        raise ValueError(
            f"layer_types: expected {layers} of full_attention or sliding_attention, got {kinds}"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
