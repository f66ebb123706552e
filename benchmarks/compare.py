"""How the newest run differs from the one before: `python -m benchmarks.compare [HISTORY]`."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import HISTORY, Row, load, number

# What two runs may differ in without being of different machines.
CHANGES_ANYWAY = ("date", "commit", "load")


def comparison(
    before: tuple[Mapping[str, Any], Sequence[Row]], after: tuple[Mapping[str, Any], Sequence[Row]]
) -> str:
    """Markdown: differences of the machines, then medians and ratios side by side.

    A change counts as *beyond the spread* where every repetition of one run is better than every
    one of the other. Ratios to a peer of the same run travel between machines, figures don't.
    """
    (machine_before, rows_before), (machine_after, rows_after) = before, after
    lines = [
        f"- {name}: {machine_before.get(name)} → {machine_after.get(name)}"
        for name in dict.fromkeys([*machine_before, *machine_after])
        if machine_before.get(name) != machine_after.get(name)
    ]
    if any(
        machine_before.get(name) != machine_after.get(name)
        for name in {*machine_before, *machine_after} - set(CHANGES_ANYWAY)
    ):
        lines.append("\nThe machines differ: compare ratios to peers, not figures.")
    lines += [
        "",
        "| | unit | before | after | change | ratio before | ratio after |",
        "|---|---|---|---|---|---|---|",
    ]
    old = {row.name: row for row in rows_before}
    for row in rows_after:
        lines.append(_line(row, old.pop(row.name, None)))
    lines += [f"| {name} | | | not measured | | | |" for name in old]
    return "\n".join(lines)


def _line(row: Row, old: Row | None) -> str:
    if old is None:
        return (
            f"| {row.name} | {row.unit} | new | {_median(row.ours)} | | | {_median(row.ratios)} |"
        )
    change = statistics.median(row.ours) / statistics.median(old.ours) - 1
    apart = min(row.ours) > max(old.ours) or max(row.ours) < min(old.ours)
    text = f"{change:+.1%}{' beyond the spread' if apart else ''}"
    cells = [row.name, row.unit, _median(old.ours), _median(row.ours), text]
    return "| " + " | ".join([*cells, _median(old.ratios), _median(row.ratios)]) + " |"


def _median(values: Sequence[float]) -> str:
    return number(statistics.median(values)) if values else ""


def main(arguments: Sequence[str]) -> None:
    history = Path(arguments[0]) if arguments else HISTORY
    try:
        runs = load(history)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if len(runs) < 2:
        sys.exit(f"error: {history}: expected two runs to compare, got {len(runs)}")
    print(comparison(runs[-2], runs[-1]))


if __name__ == "__main__":
    main(sys.argv[1:])
