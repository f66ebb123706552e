"""The `config.json`, as far as it matters, of the checkpoints that presets name.

So that a run can be planned before its checkpoint is on disk. Training reads the folder's own.
"""

from collections.abc import Mapping
from typing import Any

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # https://huggingface.co/Qwen/Qwen3-4B-Instruct-2507/blob/main/config.json
    "Qwen3-4B-Instruct-2507": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": True,
    },
    # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
}
