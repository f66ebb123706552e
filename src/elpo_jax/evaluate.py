"""Evaluates a checkpoint on held-out tasks.

`python -m elpo_jax.evaluate --config experiments/sci.py --checkpoint DIR --output FILE.json`

DIR is a run's folder (its newest checkpoint counts) or one of its `checkpoints/<step>`. Tasks,
samples and sampling are those of `--config.eval`.
"""

from collections.abc import Sequence
from pathlib import Path

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.checkpoint import load
from elpo_jax.cli import Option, parse, run
from elpo_jax.components import Components, build
from elpo_jax.config import Config, to_dict
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.evaluation import evaluate, held_out_tasks, report
from elpo_jax.policy.origin import changed_files, other_policy, run_policy
from elpo_jax.progress import Display, share
from elpo_jax.sampler.engine import NonFiniteSampleError
from elpo_jax.tasks import SUITES
from elpo_jax.workdir import check_file, write_json

OPTIONS = [
    Option("checkpoint", "a run's folder, or one of its checkpoints/<step>"),
    Option("output", "the JSON file to write"),
]


def main(argv: Sequence[str]) -> None:
    config, options = parse(argv, OPTIONS, {"algorithm": ALGORITHMS, "suite.name": SUITES})
    output = Path(options["output"])
    check_file(output)
    with Display() as display:
        _evaluate(config, Path(options["checkpoint"]), output, display)


def _evaluate(config: Config, checkpoint: Path, output: Path, display: Display) -> None:
    components = build(config)
    for line in [*components.notes, *components.start_sandboxes()]:
        display.note(line)
    _check_origin(components, checkpoint)
    restored = load(checkpoint, {"params": components.param_shapes})
    try:
        trees = evaluate(
            components,
            components.make_scheduler(),
            restored.parts["params"],
            held_out_tasks(components),
            warn=display.note,
        )
    except NonFiniteSampleError as error:
        raise RunFault([f"{checkpoint}, step {restored.step}: {error}"]) from error
    found = report(trees, config.seed)
    about = {
        "step": restored.step,
        "config": to_dict(config),
        "sandbox_tier": components.sandboxes.start(),
    }
    write_json(output, {**about, **found})
    for kind, count in found["kinds"].items():
        display.note(f"{kind:20} {share(count['successes'], count['trials'])}")
    for name in ("pass@k", "maj@k"):
        values = "  ".join(f"{k}: {value:.1%}" for k, value in found[name].items())
        display.note(f"{name:20} {values}")


def _check_origin(components: Components, checkpoint: Path) -> None:
    """Raises UsageError where the policy isn't the run's: its files, or what it computes."""
    policy = components.config.policy
    digests = load(checkpoint, {}).metadata["policy_files"]
    lines = [
        f"{file} is not what the run in {checkpoint} began with; give that"
        for file in changed_files(policy, components.policy_digests, digests)
    ]
    theirs = run_policy(checkpoint)
    if theirs is not None:
        lines += other_policy(policy, theirs)
    if lines:
        raise UsageError(lines)


if __name__ == "__main__":
    run(main)
