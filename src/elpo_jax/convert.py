"""Writes a run's policy as others load it.

`python -m elpo_jax.convert --workdir RUN --output DIR`

DIR becomes a folder for `transformers.AutoModelForCausalLM`, adapters merged; with
`--adapter true` one for `peft.PeftModel`, with the adapters alone. The newest checkpoint counts, or
that of `--step`. A checkpoint or tokenizer that the run began with and that lies elsewhere now is
given by `--checkpoint` and `--tokenizer`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from elpo_jax.checkpoint import load
from elpo_jax.cli import Option, parse_options, run
from elpo_jax.config import Config, MeshConfig, PolicyConfig, from_dict
from elpo_jax.errors import UsageError, os_problem
from elpo_jax.policy.build import make_architecture, make_decoder
from elpo_jax.policy.export import check_target, export_policy, save_adapter
from elpo_jax.policy.families import read_config
from elpo_jax.policy.origin import PATHS, changed_files, digests_of, weights_of
from elpo_jax.policy.sharding import make_mesh, placed_shapes
from elpo_jax.policy.tokenizer import EMBEDDED, SentencePieceTokenizer, tokenizer_file
from elpo_jax.progress import Display
from elpo_jax.workdir import WorkDir

OPTIONS = [
    Option("workdir", "the run's folder"),
    Option("output", "the folder to write, new or empty"),
    Option("step", "of the checkpoint; without it the newest", ""),
    Option("adapter", "'true': only the adapters, for PEFT", "false"),
    Option("checkpoint", "where the run's policy.checkpoint is now", ""),
    Option("tokenizer", "where the run's policy.tokenizer is now", ""),
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
    policy = _moved(_config(folder).policy, options, folder)
    if options["adapter"] == "true" and not (policy.lora.rank and policy.checkpoint):
        raise UsageError(
            [
                f"--adapter: expected a run with policy.lora.rank and policy.checkpoint, got "
                f"{policy.lora.rank} and {policy.checkpoint!r} in {folder.config}"
            ]
        )
    checkpoint = folder.checkpoints / step if step else folder.path
    _check_origin(policy, load(checkpoint, {}).metadata, options, folder)
    vocab_size = _vocab_size(policy)
    # Over as many devices as go, whatever the run's mesh was.
    count = math.gcd(make_architecture(policy, vocab_size).d_model, len(jax.devices()))
    mesh = make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])
    model = make_decoder(policy, vocab_size, mesh)
    restored = load(checkpoint, {"params": placed_shapes(model, mesh)})
    params = restored.parts["params"]
    notes = []
    if options["adapter"] == "true":
        save_adapter(output, params, model, policy.checkpoint)
    else:
        notes = export_policy(output, params, model, policy)
    with Display() as display:
        for line in notes:
            display.note(line)
        what = "adapters" if options["adapter"] == "true" else "policy"
        display.note(f"{output}: the {what} after step {restored.step} of {folder.path}")


def _config(folder: WorkDir) -> Config:
    try:
        tree = json.loads(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            [f"--workdir: {folder.path}: expected a run's folder, with a config.json, found none"]
        ) from None
    except (OSError, ValueError) as error:
        words = f"expected a run's settings, got {type(error).__name__}: {error}"
        raise UsageError([f"{folder.config}: {words}"]) from None
    try:
        return from_dict(tree)
    except UsageError as error:
        raise UsageError(f"{folder.config}: {line}" for line in error.problems) from None


def _moved(policy: PolicyConfig, options: Mapping[str, str], folder: WorkDir) -> PolicyConfig:
    """The section with the places where its files are now."""
    places = {}
    for key in PATHS:
        name = key.rpartition(".")[2]
        now, then = options[name], getattr(policy, name)
        if now and not then:
            raise UsageError([f"--{name}: expected none, since {folder.config} has no {key}"])
        is_file = then and then not in EMBEDDED
        if is_file and not Path(now or then).exists():
            where, hint = (f"--{name}", "") if now else (key, f"; --{name} says where it is now")
            raise UsageError([f"{where}: {now or then}: not found{hint}"])
        places[name] = now or then
    return replace(policy, checkpoint=places["checkpoint"], tokenizer=places["tokenizer"])


def _check_origin(
    policy: PolicyConfig, metadata: Mapping[str, Any], options: Mapping[str, str], folder: WorkDir
) -> None:
    """Raises UsageError unless the policy's files are those that the run began with.

    The weights matter to adapters alone: all others are in the run's own checkpoints.
    """
    try:
        ours = digests_of(policy)
    except OSError as error:
        raise UsageError([f"policy: {os_problem(error)}"]) from None
    began = f"what the run in {folder.path} began with"
    lines = [
        f"{file} is not {began}; put it back, or say with --checkpoint or --tokenizer where it is"
        for file in changed_files(policy, ours, metadata["policy_files"])
    ]
    if options["adapter"] == "true" and weights_of(policy) != metadata["policy_weights"]:
        lines.append(
            f"--adapter: the weights in {policy.checkpoint} are not {began}, and adapters go with "
            "no others; say with --checkpoint where those are"
        )
    if lines:
        raise UsageError(lines)


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
