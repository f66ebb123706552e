"""Makes a dumped update again: `python -m elpo_jax.replay --dump RUN/faults/step_000012`.

Says at which stage of the computation the first NaN or infinity arises. The exit status is 3 if the
fault comes again and 0 if it doesn't.
"""

from collections.abc import Sequence
from pathlib import Path

from elpo_jax.cli import Option, parse_options, run
from elpo_jax.diagnosis import Replay
from elpo_jax.errors import RunFault
from elpo_jax.faults import SAMPLE, read, read_state
from elpo_jax.progress import Display

OPTIONS = [Option("dump", "the folder of a dump, as a run that stopped names it")]


def main(argv: Sequence[str]) -> None:
    folder = Path(parse_options(argv, OPTIONS)["dump"])
    fault = read(folder)
    replay = Replay(fault)
    state = read_state(folder, replay.learner.shapes())
    with Display() as display:
        place = "".join(f", {name} {number}" for name, number in fault.where.items())
        display.note(f"step {fault.step}, {fault.kind} after {int(state.step)} updates{place}")
        display.note(f"tasks: {', '.join(fault.tasks) or 'none'}")
        display.note(f"recorded: {fault.message}")
        if not replay.is_on_mesh:
            mesh = fault.config.mesh
            axes = f"data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}"
            display.note(f"on one device, since those here don't make up the run's mesh: {axes}")
        first = None
        for stage in replay.stages(state):
            count = f"{stage.broken:,} of {stage.total:,}"
            display.note(f"  {stage.name:24}{count:>24} not finite  {stage.first}")
            first = first or (stage if stage.broken else None)
        again = first is not None if fault.kind == SAMPLE else replay.update(state)
        if not again:
            display.note("not reproduced: every number is finite")
            return
    where = f"{first.name}: {first.first}" if first else str(again)
    raise RunFault([f"{folder}: reproduced; the first is among the {where}"])


if __name__ == "__main__":
    run(main)
