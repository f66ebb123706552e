"""What broke in a run, as its folder `faults/` tells it."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from elpo_jax.report.words import short
from elpo_jax.workdir import WorkDir

TASKS = 3  # that are named
_NAME = re.compile(r"(.*?)(?:_(\d{6,}))?(?:_\d+)?", re.DOTALL)  # 'step_000012', 'cold_start'


class Fault(NamedTuple):
    """A line on what broke, and the command that says more ('' if there is none)."""

    text: str
    command: str


def faults(folder: WorkDir) -> list[Fault]:
    """What is kept in a run's `faults/`, by name; nothing if there is no such folder."""
    if not folder.faults.is_dir():
        return []
    return [_fault(path) for path in sorted(folder.faults.iterdir()) if path.is_dir()]


def _fault(path: Path) -> Fault:
    found = _NAME.fullmatch(path.name)
    assert found, "it matches any name"
    name, digits = found.groups()
    place = name.replace("_", " ") + (f" {int(digits)}" if digits else "")
    if name == "checkpoint":
        return Fault(f"A checkpoint was damaged, put aside and not used: {path.name}.", "")
    try:
        document = json.loads((path / "fault.json").read_text(encoding="utf-8"))
        message, tasks = str(document["message"]), [str(task) for task in document["tasks"]]
    except FileNotFoundError:  # it is written last
        return Fault(f"Stopped during {place}; its dump was never finished.", "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = short(f"{type(error).__name__}: {error}", 200)
        return Fault(f"Stopped during {place}; its dump can't be read: {reason}.", "")
    named = ", ".join(tasks[:TASKS]) + (f" and {len(tasks) - TASKS} more" if tasks[TASKS:] else "")
    return Fault(
        f"Stopped during {place}: {short(message, 300)}{f'; tasks: {named}' if tasks else ''}.",
        f"python -m elpo_jax.replay --dump {shlex.quote(str(path))}",
    )
