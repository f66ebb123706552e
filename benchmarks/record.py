"""Results: rows with every repetition, the table, and the history of runs."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HISTORY = FOLDER / "history.jsonl"
TABLE = FOLDER / "RESULTS.md"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      name: what was measured; the key by which runs are compared.
      unit: of the values.
      ours: one value a repetition.
      peer_name: what it is beside; empty: nothing.
      peer: the peer's values, of the same repetitions.
      note: what was checked, or why something was left out.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    peer_name: str = ""
    peer: tuple[float, ...] = ()
    note: str = ""

    @property
    def is_rate(self) -> bool:
        """More is better; otherwise less is."""
        return self.unit.endswith("/s")

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times better ours is, repetition by repetition."""
        pairs = zip(self.ours, self.peer, strict=True) if self.peer else ()
        return tuple(ours / peer if self.is_rate else peer / ours for ours, peer in pairs)


def rates(amount: float, seconds: Sequence[float]) -> tuple[float, ...]:
    """`amount` a second, one a repetition."""
    return tuple(amount / s for s in seconds)


def table(rows: Sequence[Row]) -> str:
    """Markdown: medians, and in brackets the lowest and highest repetition."""
    lines = [
        "| | unit | elpo_jax | beside | its figure | times better | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, row.unit, _spread(row.ours), row.peer_name, _spread(row.peer)]
        lines.append("| " + " | ".join([*cells, _spread(row.ratios), row.note]) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))}-{number(max(values))})"


def number(value: float) -> str:
    """Three significant digits or whole numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def document(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A run as a page of Markdown."""
    described = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return (
        "# Benchmarks\n\n"
        "The newest run of `make bench`, which writes this page and adds to `history.jsonl`.\n"
        "Medians, in brackets the lowest and highest repetition; contenders run in turn, warm-ups "
        "aren't\ncounted. `make bench-diff` compares the two newest runs.\n\n"
        f"{table(rows)}\n\n## Machine\n\n{described}\n"
    )


def append(history: Path, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Adds a run to the history, a line of JSON each."""
    line = json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]})
    with history.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def load(history: Path) -> list[tuple[dict[str, Any], list[Row]]]:
    """(machine, rows) of every run, oldest first.

    Raises:
      ValueError: naming a line that isn't a run.
    """
    runs = []
    for number, line in enumerate(history.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
            rows = [
                Row(**{**row, "ours": tuple(row["ours"]), "peer": tuple(row["peer"])})
                for row in run["rows"]
            ]
            runs.append((run["machine"], rows))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{history}:{number}: expected a run, got {error!r}") from None
    return runs
