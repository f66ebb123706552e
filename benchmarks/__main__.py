"""The benchmarks: `make bench`, or `python -m benchmarks [--large] [--only NAME] ...`.

Prints a table; a whole run is also written to RESULTS.md and added to history.jsonl.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import jax

from benchmarks import forks, generate, machine, overlap, record, startup, update
from benchmarks.shapes import A, B, Shape, embedded

# Start-up comes first: once this process has an accelerator, others can't have it.
NAMES = ("startup", "generate", "update", "forks", "overlap")
SLOTS = (1, 16, 64)


def peer_problem() -> str:
    """Why PyTorch isn't measured here; empty where it is."""
    if importlib.util.find_spec("torch") is None:
        return "torch isn't installed"
    from benchmarks import peers

    return "" if peers.torch_device() else f"torch has no {jax.default_backend()} device"


def entries(name: str, large: bool, repetitions: int) -> list[Callable[[], list[record.Row]]]:
    """What a benchmark consists of; each entry gives some rows."""
    if name == "startup":
        return [lambda: startup.startup(repetitions)]
    if name == "forks":
        return [
            lambda: [forks.forks(forks.science(embedded()), repetitions)],
            lambda: [forks.forks(forks.long_prefixes(A, trees=4), repetitions)],
        ]
    if name == "overlap":
        return [lambda: overlap.overlap(A, repetitions)]
    shapes, with_peer = [embedded(), A, *([B] if large else [])], not peer_problem()
    if name == "update":
        return [partial(update.updates, shape, repetitions, with_peer) for shape in shapes]

    def generation(shape: Shape, slots: int) -> list[record.Row]:
        return [generate.generation(generate.Sampler(shape, slots), repetitions, with_peer)]

    return [partial(generation, shape, slots) for shape in shapes for slots in SLOTS]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--large", action="store_true", help="shape B too (needs 16 GiB)")
    parser.add_argument("--repetitions", type=int, default=5, help="timed runs of each contender")
    parser.add_argument("--only", choices=NAMES, help="one benchmark; printed, not recorded")
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error(f"--repetitions: expected at least 1, got {options.repetitions}")
    load = f"{machine.load_average()} before"
    rows: list[record.Row] = []
    for name in [options.only] if options.only else NAMES:
        for entry in entries(name, options.large, options.repetitions):
            new = entry()
            print(record.table(new), flush=True)
            rows += new
    described = machine.describe([record.HISTORY, record.TABLE])
    described["load"] = f"{load}, {machine.load_average()} after"
    described["left out"] = f"PyTorch: {peer_problem()}" if peer_problem() else "nothing"
    page = record.document(described, rows)
    print(f"\n{page}")
    if not options.only:
        record.append(record.HISTORY, described, rows)
        record.TABLE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
