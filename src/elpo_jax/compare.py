"""Trains with several algorithms and seeds, and compares them at equal budget.

`python -m elpo_jax.compare --config experiments/sci.py --workdir DIR [--algorithms elpo,grpo]
[--seeds 0,1,2]`

DIR/<algorithm>/<seed> are ordinary runs; DIR/comparison.{json,md,png} is what came out, written
after every seed. The same command on the same folder goes on where it stopped.
"""

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.checkpoint import newest_step
from elpo_jax.cli import Option, parse, run
from elpo_jax.comparison import compare, markdown
from elpo_jax.comparison_plot import plot
from elpo_jax.components import build
from elpo_jax.config import Config
from elpo_jax.errors import UsageError, unknown_name
from elpo_jax.interrupt import Interrupted, Interrupts
from elpo_jax.metrics import Row, read
from elpo_jax.progress import Display
from elpo_jax.tasks import SUITES
from elpo_jax.training import check_claim, train
from elpo_jax.validation import SEED
from elpo_jax.workdir import WorkDir, write_atomic, write_json

OPTIONS = [
    Option("workdir", "the folder of the runs and of what came out; it is made if missing"),
    Option("algorithms", "names, with commas", "elpo,grpo"),
    Option("seeds", "whole numbers, with commas", "0,1,2"),
]


def main(argv: Sequence[str]) -> None:
    config, options = parse(argv, OPTIONS, {"algorithm": ALGORITHMS, "suite.name": SUITES})
    _refuse_double(argv)
    algorithms, seeds = _names(options["algorithms"]), _seeds(options["seeds"])
    folder = Path(options["workdir"])
    runs = {
        seed: [
            (replace(config, algorithm=name, seed=seed), WorkDir(folder / name / str(seed)))
            for name in algorithms
        ]
        for seed in seeds
    }
    for each, place in itertools.chain(*runs.values()):
        check_claim(each, place)  # before any of them trains for hours
    with Interrupts() as interrupts, Display(is_ending=interrupts.have_come) as display:
        try:
            for done, seed in enumerate(seeds, start=1):
                for each, place in runs[seed]:
                    interrupts.check()
                    display.note(f"{each.algorithm}, seed {seed}")
                    train(build(each), place, display, interrupts)
                rest = runs[seeds[done]] if done < len(seeds) else []
                if not (rest and all(_is_done(*run) for run in rest)):
                    table = _write(folder, config, algorithms, seeds[:done])
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.signal_number)
        display.note(f"\n{table}")
        display.note(f"{folder}: comparison.md, comparison.json, comparison.png")


def _is_done(config: Config, folder: WorkDir) -> bool:
    return newest_step(folder.checkpoints) == config.train.steps


def _write(folder: Path, config: Config, algorithms: Sequence[str], seeds: Sequence[int]) -> str:
    """Writes the comparison of these seeds, and returns its table."""
    runs: Mapping[str, Mapping[int, Sequence[Row]]] = {
        name: {seed: read(WorkDir(folder / name / str(seed)).metrics) for seed in seeds}
        for name in algorithms
    }
    try:
        found = compare(runs)
    except UsageError as error:
        raise UsageError([f"{folder}/{line}" for line in error.problems]) from None
    # Not `eval.tasks`: a file may have fewer.
    trials = int(
        next(row["eval/tasks"] for row in runs[algorithms[0]][seeds[0]] if "eval/tasks" in row)
    )
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    title = f"{config.suite.name}: held-out success, {count}"
    table = markdown(found, trials)
    write_json(folder / "comparison.json", found)
    write_atomic(folder / "comparison.md", table)
    plot(found, title, folder / "comparison.png")
    return table


def _refuse_double(argv: Sequence[str]) -> None:
    """Raises UsageError for keys that the comparison itself sets."""
    instead = {"algorithm": "--algorithms", "seed": "--seeds"}
    problems = [
        f"--config.{key}: expected none here, use {flag}"
        for key, flag in instead.items()
        if any(re.match(rf"--?config\.{key}(=|$)", argument) for argument in argv)
    ]
    if problems:
        raise UsageError(problems)


def _names(text: str) -> list[str]:
    names = _items(text, "--algorithms")
    unknown = [unknown_name("--algorithms", name, ALGORITHMS) for name in names]
    problems = [line for name, line in zip(names, unknown, strict=True) if name not in ALGORITHMS]
    if problems:
        raise UsageError(problems)
    return names


def _seeds(text: str) -> list[int]:
    items = _items(text, "--seeds")
    seeds = [int(item) if item.isascii() and item.isdigit() else -1 for item in items]
    wrong = [item for item, seed in zip(items, seeds, strict=True) if not SEED.holds(seed)]
    if wrong:
        raise UsageError([f"--seeds: expected {SEED.expected}, got {wrong[0]!r}"])
    if len(set(seeds)) < len(seeds):
        raise UsageError([f"--seeds: expected different numbers, got {text!r}"])
    return seeds


def _items(text: str, flag: str) -> list[str]:
    """What stands between commas; each once."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items or len(set(items)) < len(items):
        raise UsageError([f"{flag}: expected different items with commas, got {text!r}"])
    return items


if __name__ == "__main__":
    run(main)
