"""What `config.json` says: published files, transformers' defaults, everything that is refused."""

import json
from dataclasses import replace

import pytest
import transformers

from elpo_jax.policy.architecture import Architecture
from elpo_jax.policy.families import FAMILIES, architecture_of, describe, read_config
from elpo_jax.policy.rope import Rope

TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

QWEN2_5_7B_INSTRUCT = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_4B_INSTRUCT_2507 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    **QWEN3_4B_INSTRUCT_2507,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "rope_theta": 1000000,
}
LLAMA_3_1_8B_INSTRUCT = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_3_2_1B = {
    **LLAMA_3_1_8B_INSTRUCT,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": {**LLAMA3, "factor": 32.0},
    "tie_word_embeddings": True,
}
MISTRAL_7B_0_1 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA3_ROPE = Rope(500_000.0, "llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
QWEN3_4B = Architecture(
    151936, 2560, 36, 32, 8, 128, 9728, 1e-6, True, True, False, False, False, Rope(5e6)
)
LLAMA_8B = Architecture(
    128256, 4096, 32, 32, 8, 128, 14336, 1e-5, False, False, False, False, False, LLAMA3_ROPE
)


def tiny(family="qwen3", **options):
    return {"model_type": family, **TINY, **options}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            QWEN2_5_7B_INSTRUCT,
            Architecture(
                152064,
                3584,
                28,
                28,
                4,
                128,
                18944,
                1e-6,
                False,
                False,
                True,
                False,
                False,
                Rope(1e6),
            ),
        ),
        (QWEN3_4B_INSTRUCT_2507, QWEN3_4B),
        (
            QWEN3_0_6B,
            replace(
                QWEN3_4B, d_model=1024, mlp_dim=3072, num_layers=28, num_heads=16, rope=Rope(1e6)
            ),
        ),
        (LLAMA_3_1_8B_INSTRUCT, LLAMA_8B),
        (
            LLAMA_3_2_1B,
            replace(
                LLAMA_8B,
                d_model=2048,
                mlp_dim=8192,
                num_layers=16,
                head_dim=64,
                tie_embeddings=True,
                rope=replace(LLAMA3_ROPE, factor=32.0),
            ),
        ),
        (
            MISTRAL_7B_0_1,
            replace(LLAMA_8B, vocab_size=32000, rope=Rope(1e4), windows=(4096,) * 32),
        ),
    ],
    ids=["Qwen2.5-7B", "Qwen3-4B", "Qwen3-0.6B", "Llama-3.1-8B", "Llama-3.2-1B", "Mistral-7B"],
)
def test_published_files(config, expected):
    assert architecture_of(config) == expected
    assert architecture_of(config, 1000) == replace(expected, usable_vocab=1000)


def as_transformers_means_it(config):
    """The architecture by the attributes of transformers' own config."""
    theirs = transformers.AutoConfig.for_model(**config)
    windows = ()
    if config["model_type"] == "mistral" and theirs.sliding_window:
        windows = (theirs.sliding_window,) * theirs.num_hidden_layers
    elif "sliding_attention" in getattr(theirs, "layer_types", ()):
        kinds = theirs.layer_types
        windows = tuple(theirs.sliding_window * (kind == "sliding_attention") for kind in kinds)
    bias = getattr(theirs, "attention_bias", False)
    heads = theirs.num_attention_heads
    return Architecture(
        theirs.vocab_size,
        theirs.hidden_size,
        theirs.num_hidden_layers,
        heads,
        theirs.num_key_value_heads,
        getattr(theirs, "head_dim", theirs.hidden_size // heads),
        theirs.intermediate_size,
        theirs.rms_norm_eps,
        theirs.tie_word_embeddings,
        config["model_type"] == "qwen3",
        bias or config["model_type"] == "qwen2",
        bias,
        getattr(theirs, "mlp_bias", False),
        Rope(theirs.rope_parameters["rope_theta"]),
        windows,
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    "options",
    [{}, {"use_sliding_window": True}, {"use_sliding_window": False, "sliding_window": 9}],
)
def test_missing_keys_are_what_transformers_takes_for_them(family, options):
    if family == "llama" or (family == "mistral" and options.get("use_sliding_window")):
        options = {}  # that it would ignore
    sizes = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    config = {"model_type": family, **sizes, "num_attention_heads": 32, "hidden_size": 64}
    config = {**config, "num_hidden_layers": 30, **options}
    assert architecture_of(config) == as_transformers_means_it(config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_null_says_the_same_as_transformers_takes_it_for(family):
    config = tiny(family, rope_scaling=None)
    config |= {} if family == "mistral" else {"num_key_value_heads": None}
    config |= {} if family in ("qwen2", "qwen3") else {"head_dim": None}
    config |= {} if family == "llama" else {"sliding_window": None}
    assert architecture_of(config) == as_transformers_means_it(config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_files_that_transformers_writes_say_what_its_config_says(family):
    options = tiny(family)
    if family in ("qwen2", "qwen3"):
        options |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    if family == "mistral":
        options |= {"sliding_window": 5}
    config = transformers.AutoConfig.for_model(**options)
    expected = as_transformers_means_it(options)
    assert bool(expected.windows) == (family != "llama")
    for written in (config.to_json_string(), config.to_json_string(use_diff=False)):
        assert architecture_of(json.loads(written)) == expected


def test_what_says_nothing_about_the_function_is_let_by():
    plain = architecture_of(tiny())
    noise = {
        "_attn_implementation_autoset": True,
        "attention_dropout": 0.0,
        "attn_implementation": "flash_attention_2",
        "is_causal": True,
        "max_length": 4096,
        "partial_rotary_factor": 1.0,
        "pretraining_tp": 2,
        "quantization_config": None,
        "rope_scaling": None,
        "sliding_window": 4096,
        "tokenizer_class": "Qwen2Tokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "unsloth_version": "2025.1",
        "use_mrope": False,
        "use_sliding_window": False,
    }
    assert architecture_of(tiny(**noise)) == plain


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            tiny("gemma"),
            "model_type: expected one of 'llama', 'mistral', 'qwen2', 'qwen3', got 'ge",
        ),
        (tiny("qwen3_moe", num_experts=8), "model_type: .*got 'qwen3_moe'"),
        ({}, "model_type: expected one of"),
        (
            {"model_type": "llama"},
            "expected the keys vocab_size, hidden_size, intermediate_size, num",
        ),
        (
            tiny(quantization_config={"bits": 4}),
            r'^got the unsupported quantization_config={"bi',
        ),
        (tiny(num_experts=8, use_qk_norm=True), "unsupported num_experts=8, use_qk_norm=true;"),
        (tiny(attention_dropout=0.1), "attention_dropout: expected 0.0, got 0.1"),
        (tiny(hidden_act="gelu"), "hidden_act: expected 'silu', got 'gelu'"),
        (tiny(is_causal=False), "is_causal: expected True, got False"),
        (tiny(partial_rotary_factor=0.5), "partial_rotary_factor: expected 1.0, got 0.5"),
        (tiny(mlp_bias=True), "^got the unsupported mlp_bias=true; expected no options besides "),
        (
            tiny("qwen2", attention_bias=True),
            "^got the unsupported attention_bias=tr",
        ),
        (
            tiny("llama", sliding_window=8),
            "^got the unsupported sliding_window=8;",
        ),
        (
            tiny("mistral", layer_types=["full_attention"] * 3),
            "^got the unsupported layer_ty",
        ),
        (tiny("mistral", use_sliding_window=True), "unsupported use_sliding_window=true"),
        (
            tiny(dual_chunk_attention_config={"chunk_size": 1}),
            "unsupported dual_chunk_attention_config=",
        ),
        (
            tiny(architectures=["Qwen3ForSequenceClassification"]),
            "architectures: expected a ...For",
        ),
        (
            tiny(layer_types=["chunked_attention"] * 3),
            "layer_types: expected 3 of full_attention or",
        ),
        (tiny(layer_types=["full_attention"]), "layer_types: expected 3 of full_attention or"),
        (tiny(layer_types=["sliding_attention"] * 3), "layer_types: .* without use_sliding_window"),
        (
            tiny(use_sliding_window=True, sliding_window=-1),
            "sliding_window: expected an integer, 1",
        ),
        (
            tiny(use_sliding_window=True, max_window_layers="no"),
            "max_window_layers: expected an int",
        ),
        (tiny(use_sliding_window="yes"), "use_sliding_window: expected true or false, got 'yes'"),
        (tiny(hidden_size=30.5), "hidden_size: expected an integer, 1 or more, got 30.5"),
        (tiny(vocab_size=0), "vocab_size: expected an integer, 1 or more, got 0"),
        (tiny(num_key_value_heads=3), "num_key_value_heads: expected a divisor of num_.*=4, got 3"),
        (tiny("llama", hidden_size=36), "hidden_size: expected an even multiple of num_.*=4 where"),
        (tiny(head_dim=7), "head_dim: expected an even number, got 7"),
        (tiny(rms_norm_eps="1e-6"), "rms_norm_eps: expected a number above 0, got '1e-6'"),
        (tiny(tie_word_embeddings="false"), "tie_word_embeddings: expected true or false, got 'fa"),
    ],
)
def test_what_is_not_supported_is_named(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        architecture_of(config)
    assert "\n" not in str(caught.value)


def test_windows_by_layer():
    options = {"use_sliding_window": True, "sliding_window": 7}
    assert architecture_of(tiny(**options, max_window_layers=1)).windows == (0, 7, 7)
    assert architecture_of(tiny(**options, max_window_layers=3)).windows == ()
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert architecture_of(tiny(**options, layer_types=kinds)).windows == (7, 0, 7)
    assert architecture_of(tiny("mistral", sliding_window=5)).windows == (5, 5, 5)


def test_a_policy_from_scratch_is_described_as_what_it_is():
    architecture = Architecture(40, 32, 3, 4, 2, 12, 48, 1e-5, True, rope=Rope(1e5))
    assert architecture_of(describe(architecture, "bfloat16")) == architecture


def test_files_that_are_no_config_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: expected a file to read: No such file"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON, got"):
        read_config(tmp_path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: expected an object, got list"):
        read_config(tmp_path)
    path.write_text('{"model_type": "qwen3"}', encoding="utf-8")
    assert read_config(tmp_path) == {"model_type": "qwen3"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, got 'linear'"),
        ({"rope_parameters": ["yarn"]}, r"rope_parameters: expected an object, got \['yarn'\]"),
        ({"rope_parameters": {"rope_type": ["x"]}}, r"rope_parameters\.rope_type: expected one of"),
    ],
)
def test_positions_of_a_wrong_type_are_one_line(given, said):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match=said):
        architecture_of({"model_type": "llama"} | sizes | counts | given)
