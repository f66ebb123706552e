"""The presets of the experiments: the paper's settings, and what they need of the user."""

import json
from pathlib import Path

import pytest

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.cli import load_experiment, parse
from elpo_jax.config import from_dict
from elpo_jax.errors import UsageError
from elpo_jax.policy.build import make_architecture
from elpo_jax.validation import validate_mesh

ROOT = Path(__file__).parent.parent
PRESETS = ("sci.py:qwen3_4b", "sci.py:gpqa", "math.py:qwen3_4b", "math.py:qwen2_5_7b")
# Published config.json files, as far as they decide sizes.
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}
QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where commands are given: not the repository's root."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.parquet", "eval.parquet", "sft.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "qwen3").mkdir()
    (tmp_path / "qwen3" / "config.json").write_text(json.dumps(QWEN3_4B))
    (tmp_path / "qwen2").mkdir()
    (tmp_path / "qwen2" / "config.json").write_text(json.dumps(QWEN2_5_7B))
    return tmp_path


def config_of(preset, *arguments):
    path = ROOT / "experiments" / preset
    config, _ = parse(["prog", "--config", str(path), *arguments], [], {"algorithm": ALGORITHMS})
    return config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_and_files_are_all_that_is_missing(folder, preset):
    with pytest.raises(UsageError) as caught:
        config_of(preset)
    (line,) = caught.value.problems
    assert line.startswith("policy.checkpoint: expected --config.policy.checkpoint=DIR with a ch")
    name = "qwen2" if "qwen2" in preset else "qwen3"
    config = config_of(preset, f"--config.policy.checkpoint={folder / name}")
    architecture = make_architecture(config.policy, 151_669)
    validate_mesh(config, architecture)  # the mesh divides its sizes


def test_every_missing_file_has_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        config_of("math.py:qwen3_4b")
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "data.train",
        "data.eval",
        "policy.checkpoint",
        "sft.data",
    ]


def test_a_preset_goes_without_files(folder):
    given = (f"--config.policy.checkpoint={folder / 'qwen3'}", "--config.sft.data=")
    given = (*given, "--config.suite.name=math")
    config = config_of("math.py:qwen3_4b", *given, "--config.data.train=", "--config.data.eval=")
    assert config.sft.steps == 469  # on the suite's demonstrations
    config_of("math.py:qwen3_4b", *given, "--config.sft.steps=0")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_numbers_are_the_papers(preset):
    config = from_dict(load_experiment(str(ROOT / "experiments" / preset)))
    assert config.algorithm == "elpo"
    episode, rollout = config.episode, config.rollout
    assert (episode.max_length, episode.max_turn_tokens) == (2_560 + 20_480, 20_480)
    assert (episode.max_turns, episode.max_calls, episode.spare_calls) == (16, 15, None)
    assert (episode.tool_seconds, config.reward.terms) == (30.0, ("plus_minus_one",))
    assert (rollout.budget, rollout.max_failed, rollout.beta) == (16, 3, 5.0)
    assert (rollout.min_suffixes, rollout.max_suffixes) == (1, 3)
    assert config.credit.lambda_tree == 0.5
    sampler, evaluation = config.sampler, config.eval
    assert (sampler.temperature, sampler.top_p, sampler.top_k) == (1.0, 1.0, 0)
    assert (evaluation.temperature, evaluation.top_p, evaluation.top_k) == (1.0, 0.6, 0)
    assert evaluation.samples == 32
    train, optimizer = config.train, config.optimizer
    assert (train.batch_prompts, train.mini_batch_prompts, train.epochs) == (128, 16, 1)
    assert train.steps == 30_000 // 128
    assert (optimizer.learning_rate, optimizer.schedule) == (1e-6, "constant")
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.01, 1.0)
    sft = config.sft
    assert (sft.batch, sft.steps, sft.optimizer.warmup_steps) == (32, 469, 47)
    assert sft.steps * sft.batch / 3_000 == pytest.approx(5, abs=0.01)  # epochs
    assert (sft.optimizer.learning_rate, sft.optimizer.schedule) == (1e-5, "cosine")
    assert (sft.optimizer.b1, sft.optimizer.b2, sft.optimizer.weight_decay) == (0.9, 0.95, 0.01)


def test_the_losses_bounds_are_the_papers():
    settings = ALGORITHMS["elpo"].loss
    assert (settings.eps_low, settings.eps_high, settings.eps_elc) == (0.2, 0.315, 0.115)


@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_computed_as_a_large_policy(preset):
    config = from_dict(load_experiment(str(ROOT / "experiments" / preset)))
    policy, train = config.policy, config.train
    assert (policy.dtype, policy.param_dtype, policy.remat) == ("bfloat16", "bfloat16", "full")
    assert policy.attention_block == 1024
    assert config.sampler.prefill_chunks[-1] == 1024
    assert train.length_buckets == (1440, 2880, 5760, 11520, 23040)
