"""The families and options that are compared, a row each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint.

    Attributes:
      name: what it is.
      family: its model_type.
      options: of its transformers config, beside the sizes that all share.
      usable_vocab: ids from here on only fill the embedding up; 0: none.
    """

    name: str
    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    usable_vocab: int = 0

    @property
    def config(self) -> Any:
        """The transformers config."""
        return transformers.AutoConfig.for_model(self.family, **{**_SIZES, **self.options})

    @property
    def vocab_size(self) -> int:
        """Ids that tokens have."""
        return self.usable_vocab or self.options.get("vocab_size", _SIZES["vocab_size"])


def _rope(kind: str, theta: float, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


def _yarn(theta: float, factor: float, original: int, **options: Any) -> dict[str, Any]:
    rope = _rope("yarn", theta, factor=factor, original_max_position_embeddings=original, **options)
    return {**rope, "max_position_embeddings": int(factor * original)}


CASES = (
    Case("Qwen2", "qwen2", _rope("default", 1e6)),
    Case("Qwen2, padded vocabulary", "qwen2", {"vocab_size": 48}, usable_vocab=37),
    Case(
        "Qwen2, tied, windows from layer 1",
        "qwen2",
        {
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    Case(
        "Qwen2, YaRN, own factor and ramp",
        "qwen2",
        _yarn(200.0, 4.0, 48, attention_factor=1.3, beta_fast=6.0, beta_slow=0.5, truncate=False),
    ),
    Case("Qwen3", "qwen3", {"head_dim": 8, "rms_norm_eps": 1e-3, **_rope("default", 1e6)}),
    Case(
        "Qwen3, tied, padded vocabulary",
        "qwen3",
        {"head_dim": 8, "tie_word_embeddings": True, "vocab_size": 48},
        usable_vocab=37,
    ),
    Case(
        "Qwen3, 6 heads of 10 in 20, 3 kv heads, biases",
        "qwen3",
        {
            "hidden_size": 20,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "attention_bias": True,
        },
    ),
    Case(
        "Qwen3, YaRN, window in layer 0",
        "qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention"],
            **_yarn(100.0, 8.0, 64),
        },
    ),
    Case(
        "Llama 3, tied",
        "llama",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            **_rope(
                "llama3",
                500.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    Case(
        "Llama, biases, as many kv heads",
        "llama",
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": None},
    ),
    Case("Llama, linear", "llama", _rope("linear", 100.0, factor=4.0)),
    Case("Llama, YaRN, mscale", "llama", _yarn(100.0, 16.0, 32, mscale=1.0, mscale_all_dim=0.5)),
    Case(
        "Mistral, windows",
        "mistral",
        {"sliding_window": 9, "head_dim": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
    ),
)
