"""Says whether a run fits its devices, which needn't be there.

`python -m elpo_jax.plan --config experiments/sci.py:qwen3_4b --topology v5e:4x4`

Compiles the sampler and the update from shapes alone, for a TPU slice (with the extra 'plan', which
brings TPU's compiler) or for the devices that are here, and prints what a device would hold.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.cli import Option, parse, run
from elpo_jax.config import Config
from elpo_jax.errors import UsageError
from elpo_jax.planning import GIB, ONE_HOST, Plan, advice, make_plan, topology_devices
from elpo_jax.policy.architecture import Architecture, compute_of
from elpo_jax.policy.build import make_architecture
from elpo_jax.policy.families import architecture_of
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.published import PUBLISHED
from elpo_jax.policy.sharding import filled, make_mesh
from elpo_jax.policy.tokenizer import SentencePieceTokenizer, tokenizer_file
from elpo_jax.progress import Display
from elpo_jax.tasks import SUITES
from elpo_jax.validation import validate_mesh
from elpo_jax.workdir import check_file, write_json

OPTIONS = [
    Option("topology", "a TPU slice such as v5e:4x4; empty: the devices that are here", ""),
    Option("output", "a JSON file to write as well", ""),
]
_UNREAD = ("data.train", "data.eval", "policy.checkpoint", "sft.data")


def main(argv: Sequence[str]) -> None:
    known = {"algorithm": ALGORITHMS, "suite.name": SUITES}
    config, options = parse(argv, OPTIONS, known, unread=_UNREAD)
    if options["output"]:
        check_file(Path(options["output"]))
    topology = options["topology"]
    devices = topology_devices(topology) if topology else jax.devices()
    try:
        mesh = make_mesh(config.mesh, devices)
    except UsageError as error:
        hint = "" if topology else "; --topology, such as v5e:4x4, plans for a slice instead"
        raise UsageError(line + hint for line in error.problems) from None
    architecture = _architecture(config)
    validate_mesh(dataclasses.replace(config, mesh=filled(config.mesh, len(devices))), architecture)
    model = Decoder(architecture, compute_of(config.policy), mesh)
    with Display() as display:
        plan = make_plan(config, model, mesh, lambda name: display.note(f"compiling: {name}"))
        for line in table(plan):
            display.note(line)
        for line in advice(plan, config):
            display.note(line)
    if options["output"]:
        write_json(Path(options["output"]), dataclasses.asdict(plan))


def _architecture(config: Config) -> Architecture:
    """The checkpoint's if its folder is there, else what is published under its name."""
    checkpoint = Path(config.policy.checkpoint)
    if not config.policy.checkpoint:
        try:
            tokenizer = SentencePieceTokenizer(tokenizer_file(config.policy.tokenizer))
        except ValueError as error:
            raise UsageError([f"policy.tokenizer: {error}"]) from None
        return make_architecture(config.policy, tokenizer.vocab_size)
    if checkpoint.is_dir():
        return make_architecture(config.policy, 0)
    if checkpoint.name in PUBLISHED:
        return architecture_of(PUBLISHED[checkpoint.name])
    raise UsageError(
        [
            f"policy.checkpoint: expected a folder, or the name of one of "
            f"{', '.join(PUBLISHED)}, got {config.policy.checkpoint!r}"
        ]
    )


def table(plan: Plan) -> list[str]:
    """The plan as lines of text."""
    unit, size = ("GiB", GIB) if plan.peak >= GIB else ("MiB", 2**20)

    def row(name: str, count: float) -> str:
        return f"  {name:<46}{count / size:>10.3f} {unit}"

    lines = [f"{plan.devices}, each holds:"]
    lines += [row(name, count) for name, count in plan.held.items()]
    lines += [row(f"{name}, during an update", count) for name, count in plan.learning.items()]
    lines += [row(f"temporaries: {p.name}", p.temporary) for p in plan.programs]
    lines.append(row("at the fullest moment", plan.peak))
    if plan.memory is not None:
        lines.append(row("memory of a device", plan.memory))
        lines.append(f"fits: {'yes' if plan.fits else 'no'}, with a tenth to spare")
    if plan.processes > 1:
        lines.append(
            f"warning: {plan.processes} hosts; training runs on one so far, which has at most "
            f"{ONE_HOST}"
        )
    return lines + [
        f"  {name:<46}{flops:>10.3g} FLOP a step" for name, flops in plan.step_flops.items()
    ]


if __name__ == "__main__":
    run(main)
