"""A checkpoint that transformers made goes through the main job, and comes out as one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from elpo_jax.components import build
from elpo_jax.config import from_dict
from elpo_jax.evaluation import evaluate, held_out_tasks
from elpo_jax.metrics import read
from tests.chat_folders import qwen_folder

ROOT = Path(__file__).parents[1]
LENGTH = 1792
SETTINGS = {
    "policy.attention_block": 256,
    "sampler.lanes": 8,
    "sampler.rows": 8,
    "sampler.prefill_rows": 4,
    "sampler.prefill_chunks": "64,256",
    "sampler.fork_rows": 4,
    "episode.max_length": LENGTH,
    "episode.max_turn_tokens": 48,
    "rollout.budget": 4,
    "sft.steps": 2,
    "sft.detours": 0,
    "sft.batch": 4,
    "sft.optimizer.warmup_steps": 0,
    "train.steps": 1,
    "train.batch_prompts": 2,
    "train.mini_batch_prompts": 2,
    "train.micro_batch_rows": 4,
    "train.length_buckets": str(LENGTH),
    "train.export": "true",
    "eval.tasks": 4,
    "eval.every": 0,
}


def make_checkpoint(folder):
    """A random Qwen3 with a tokenizer in its layout, and ids that only fill the vocabulary."""
    qwen_folder(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer) + 7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        initializer_range=0.3,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def test_import_cold_start_elpo_and_export_with_one_command(tmp_path):
    make_checkpoint(tmp_path / "source")
    flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "elpo_jax.train", "--config", "experiments/sci.py", *flags]
    command += ["--workdir", str(tmp_path / "run"), f"--config.sft.cache_dir={tmp_path / 'cache'}"]
    command += [f"--config.policy.checkpoint={tmp_path / 'source'}"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl")] == [0, 1]

    export = tmp_path / "run" / "export"
    peer = transformers.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    changed = [
        name
        for name, x in before.state_dict().items()
        if not torch.equal(x, peer.state_dict()[name])
    ]
    assert set(changed) == set(before.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)

    config = from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    config = dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, checkpoint=str(export)),
        eval=dataclasses.replace(config.eval, temperature=0.0),
    )
    components = build(config)
    scheduler = components.make_scheduler()
    trees = evaluate(components, scheduler, components.init_params(), held_out_tasks(components))
    assert len(trees) == 4
    tools = [{"type": "function", "function": tool.schema} for tool in components.suite.tools]
    fillers = list(range(len(tokenizer), peer.config.vocab_size))
    for tree in trees:
        prompt = tokenizer.apply_chat_template(
            [dict(message) for message in components.environment.prompt(tree.task)],
            tools=tools,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert prompt == tree.prompt.tolist()
        step = tree.nodes[0].step
        ours = step.tokens[step.is_policy].tolist()
        theirs = peer.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=len(ours),
            suppress_tokens=fillers,
        )
        assert ours == theirs[0, len(prompt) :].tolist()
