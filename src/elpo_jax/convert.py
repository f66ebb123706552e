"""Writes a run's policy as others load it.

`python -m elpo_jax.convert --workdir RUN --output DIR`

DIR becomes a folder for `transformers.AutoModelForCausalLM`, adapters merged; with
`--adapter true` one for `peft.PeftModel`, with the adapters alone. The newest checkpoint counts, or
that of `--step`.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax

from elpo_jax.checkpoint import load
from elpo_jax.cli import Option, parse_options, run
from elpo_jax.config import Config, MeshConfig, PolicyConfig, from_dict
from elpo_jax.errors import UsageError
from elpo_jax.policy.build import make_architecture, make_decoder
from elpo_jax.policy.export import check_target, export_policy, save_adapter
from elpo_jax.policy.families import read_config
from elpo_jax.policy.sharding import make_mesh, placed_shapes
from elpo_jax.policy.tokenizer import SentencePieceTokenizer, tokenizer_file
from elpo_jax.progress import Display
from elpo_jax.workdir import WorkDir

OPTIONS = [
    Option("workdir", "the run's folder"),
    Option("output", "the folder to write, new or empty"),
    Option("step", "of the checkpoint; without it the newest", ""),
    Option("adapter", "'true': only the adapters, for PEFT", "false"),
]


def main(argv: Sequence[str]) -> None:
    options = parse_options(argv, OPTIONS)
    folder, output, step = (
        WorkDir(Path(options["workdir"])),
        Path(options["output"]),
        options["step"],
    )
    problems = []
    if step and not step.isdecimal():
        problems.append(f"--step: expected the number of a step, got {step!r}")
    if options["adapter"] not in ("true", "false"):
        problems.append(f"--adapter: expected 'true' or 'false', got {options['adapter']!r}")
    if problems:
        raise UsageError(problems)
    check_target(output)
    policy = _config(folder).policy
    if options["adapter"] == "true" and not (policy.lora.rank and policy.checkpoint):
        raise UsageError(
            [
                f"--adapter: expected a run with policy.lora.rank and policy.checkpoint, got "
                f"{policy.lora.rank} and {policy.checkpoint!r} in {folder.config}"
            ]
        )
    vocab_size = _vocab_size(policy)
    # Over as many devices as go, whatever the run's mesh was.
    count = math.gcd(make_architecture(policy, vocab_size).d_model, len(jax.devices()))
    mesh = make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])
    model = make_decoder(policy, vocab_size, mesh)
    checkpoint = folder.checkpoints / step if step else folder.path
    restored = load(checkpoint, {"params": placed_shapes(model, mesh)})
    params = restored.parts["params"]
    if options["adapter"] == "true":
        save_adapter(output, params, model, policy.checkpoint)
    else:
        export_policy(output, params, model, policy)
    with Display() as display:
        display.note(f"{output}: the policy after step {restored.step} of {folder.path}")


def _config(folder: WorkDir) -> Config:
    try:
        tree = json.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        words = f"expected a run's settings, got {type(error).__name__}: {error}"
        raise UsageError([f"{folder.config}: {words}"]) from None
    try:
        return from_dict(tree)
    except UsageError as error:
        raise UsageError(f"{folder.config}: {line}" for line in error.problems) from None


def _vocab_size(policy: PolicyConfig) -> int:
    """Rows of the embedding."""
    try:
        if policy.checkpoint:
            return int(read_config(Path(policy.checkpoint))["vocab_size"])
        return SentencePieceTokenizer(tokenizer_file(policy.tokenizer)).vocab_size
    except (ValueError, KeyError) as error:
        raise UsageError([f"policy: {error}"]) from None


if __name__ == "__main__":
    run(main)
