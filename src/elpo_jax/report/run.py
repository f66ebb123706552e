"""What a run's folder says: its config, its metrics, the trees it saved. Reads files, nothing else.

The folder may be of a run that is going on, was killed, or comes from an earlier version; what
isn't there is left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import Config, field_types, get
from elpo_jax.errors import UsageError
from elpo_jax.metrics import Row, held_out_counts, read
from elpo_jax.rollout.tree_json import FORMAT
from elpo_jax.workdir import WorkDir

FAMILIES = {  # of trials, and of the success in them
    "eval/trials/": "eval/success/",
    "eval/trials_by_calls/": "eval/success_by_calls/",
}
SHARES = ("eval/success", "success/", "eval/end_")
COUNTS = (*FAMILIES, "eval/tasks", "rollout/tasks")

Document = Mapping[str, Any]  # a tree, as `rollout.tree_json` describes it
Points = list[tuple[int, float]]  # (step, value)


class Setting(NamedTuple):
    """A key of the config with its value, and what it is by default ('' for an unknown key)."""

    key: str
    value: str
    default: str


@dataclass(frozen=True)
class Run:
    """A run as its files show it.

    Attributes:
      name: of its folder.
      config: values by dotted key.
      rows: of metrics; values that aren't finite numbers are left out.
      written: when the last row was written, in seconds since the epoch; None without rows.
      notes: lines on the data: what was read, and what of it isn't used.
    """

    name: str
    config: Mapping[str, Any]
    rows: list[Row]
    written: float | None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of RL that are done."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def evaluations(self) -> list[Row]:
        """Rows with a held-out evaluation."""
        return [row for row in self.rows if "eval/success" in row]

    def series(self, name: str) -> Points:
        """A metric over the steps that have it."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def whole(self, key: str, default: int = 0) -> int:
        """A whole number of the config; the default where it is missing or something else."""
        value = self.config.get(key)
        return value if type(value) is int else default

    def settings(self) -> list[Setting]:
        """All keys with value and default."""
        known, defaults = field_types(), Config()
        return [
            Setting(key, _shown(value), _shown(get(defaults, key)) if key in known else "")
            for key, value in self.config.items()
        ]


class TreeFile(NamedTuple):
    """A file of trees that a run saved: of a training step, or of an evaluation."""

    path: Path
    is_evaluation: bool
    step: int

    @property
    def name(self) -> str:
        """'step_000012': of its page, too."""
        return self.path.stem

    @property
    def title(self) -> str:
        return f"{'Evaluation after step' if self.is_evaluation else 'Training step'} {self.step}"


def read_run(folder: WorkDir) -> Run:
    """Reads config.json and metrics.jsonl.

    Raises:
      UsageError: there is no run, or a file isn't what a run writes.
    """
    try:
        config = _load(folder.config)
        rows = read(folder.metrics)
    except FileNotFoundError:
        raise UsageError([f"{folder.config}: expected the config of a run, found none"]) from None
    except OSError as error:
        raise UsageError([f"{folder.path}: expected a run's folder, got: {error}"]) from None
    except (ValueError, RecursionError) as error:
        raise UsageError([f"{folder.path}: expected a run's files, got: {error}"]) from None
    if not isinstance(config, dict):
        raise UsageError([f"{folder.config}: expected an object, got {type(config).__name__}"])
    if config and "algorithm" not in config:
        raise UsageError([f"{folder.config}: expected a run's settings, got something else"])
    finite = [_finite(row) for row in rows]
    for number, row in enumerate(finite, 1):  # every line is a row
        if problem := _impossible(row):
            mend = "mend the line, or delete it"
            raise UsageError([f"{folder.metrics}:{number}: {problem}; {mend}"])
    return Run(
        name=folder.path.resolve().name,
        config=_flat(config),
        rows=finite,
        written=folder.metrics.stat().st_mtime if rows else None,
        notes=_notes(folder),
    )


def tree_files(folder: WorkDir) -> list[TreeFile]:
    """The files of trees, by step; at the same step training comes first."""
    return [TreeFile(path, kind == "eval", step) for kind, step, path in folder.saved_trees()]


def read_trees(file: TreeFile) -> list[Document]:
    """The trees of a file.

    Raises:
      ValueError: it doesn't hold trees.
    """
    documents = _load(file.path)
    if not isinstance(documents, list):
        raise ValueError(f"expected a list of trees, got {type(documents).__name__}")
    for document in documents:
        found = document.get("format") if isinstance(document, dict) else document
        if found != FORMAT:
            raise ValueError(f"expected trees of format {FORMAT!r}, got {str(found)[:60]!r}")
    return documents


def counts(row: Row, by: str = "kind") -> dict[str, tuple[int, int]]:
    """(successes, trials) of an evaluation by 'kind' or 'calls'; empty where they weren't saved."""
    if by == "calls":
        found = held_out_counts(row, "eval/success_by_calls/", "eval/trials_by_calls/")
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))
    return held_out_counts(row)


def total(row: Row) -> tuple[int, int]:
    """(successes, trials) of an evaluation."""
    each = counts(row).values()
    if each:
        return sum(k for k, _ in each), sum(n for _, n in each)
    trials = round(row.get("eval/tasks", 0))  # a run of before the trials were counted
    return round(row["eval/success"] * trials), trials


def _load(path: Path) -> Any:
    """A JSON file's value; lone surrogates, which no page can hold, become '?'."""
    text = path.read_text(encoding="utf-8")
    value = json.loads(text)
    if "\\ud" in text.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def _notes(folder: WorkDir) -> tuple[str, ...]:
    """The notes on the data; where they can't be read, that is the note."""
    try:
        return tuple(map(str, _load(folder.notes))) if folder.notes.exists() else ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return (f"{folder.notes.name} can't be read: {type(error).__name__}: {error}",)


def _finite(row: Row) -> Row:
    return {
        name.encode(errors="replace").decode(): value
        for name, value in row.items()
        if type(value) in (int, float) and math.isfinite(value)
    }


def _impossible(row: Row) -> str:
    """What a row says of success that can't be, or ''. Sentences and intervals are made of it."""
    for name, value in row.items():
        if name.startswith(SHARES) and not 0 <= value <= 1:
            return f"{name}: expected a share from 0 to 1, got {value}"
        if name.startswith(COUNTS) and value < 0:
            return f"{name}: expected a count, got {value}"
        for trials, success in FAMILIES.items():
            share = success + name.removeprefix(trials)
            if name.startswith(trials) and share not in row:
                return f"{name}: expected {share} beside it, got none"
    return ""


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
