"""Trains a policy: `python -m elpo_jax.train --config experiments/sci.py --workdir DIR`.

The same command on the same folder goes on where the run stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.cli import Option, parse, run
from elpo_jax.components import build
from elpo_jax.interrupt import Interrupted, Interrupts
from elpo_jax.progress import Display
from elpo_jax.tasks import SUITES
from elpo_jax.training import train
from elpo_jax.workdir import WorkDir

OPTIONS = [Option("workdir", "the folder of the run; it is made if missing")]


def main(argv: Sequence[str]) -> None:
    config, options = parse(argv, OPTIONS, {"algorithm": ALGORITHMS, "suite.name": SUITES})
    with Interrupts() as interrupts, Display(is_ending=interrupts.have_come) as display:
        try:
            train(build(config), WorkDir(Path(options["workdir"])), display, interrupts)
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.signal_number)


if __name__ == "__main__":
    run(main)
