"""What the ordinary tests compare our decoder with, so that they need no torch.

Parameters aren't kept: `parity.random_numbers` makes them anew.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity import torch_side
from parity.cases import Case
from parity.random_numbers import random_rows

PATH = Path(__file__).parent.parent / "tests" / "golden" / "families.json"
LENGTHS = (6, 33)
NEW = 16  # greedy tokens
PLACES = ((0, 0), (0, 5), (1, 12), (1, 32))  # row and position of the logits that are kept
DIGITS = 5

Entry = dict[str, Any]


def make(case: Case) -> Entry:
    """A case with what torch's model makes of two rows."""
    model = torch_side.make_model(case)
    rows = random_rows(f"{case.name}: golden", LENGTHS, case.vocab_size)
    logits = torch_side.logits(model, rows)
    greedy = torch_side.greedy(model, case, rows, NEW)
    assert _smallest_lead(model, case, rows, greedy) > 1e-3, f"{case.name}: take other rows"
    config = json.loads(model.config.to_json_string())
    del config["transformers_version"]
    return {
        "name": case.name,
        "config": config,
        "usable_vocab": case.usable_vocab,
        "rows": [row.tolist() for row in rows],
        "greedy": greedy.tolist(),
        "places": [list(place) for place in PLACES],
        "logits": [
            [round(float(x), DIGITS) for x in logits[row][position, : case.vocab_size]]
            for row, position in PLACES
        ],
    }


def _smallest_lead(model: Any, case: Case, rows: torch_side.Rows, greedy: np.ndarray) -> float:
    """Of a greedy token over the next likely one: rounding mustn't choose another token."""
    whole = [np.concatenate(pair) for pair in zip(rows, greedy, strict=True)]
    logits = torch_side.logits(model, whole)
    drawn_at = [row[len(prompt) - 1 : -1] for row, prompt in zip(logits, rows, strict=True)]
    two = np.sort(np.concatenate(drawn_at)[:, : case.vocab_size])[:, -2:]
    return float((two[:, 1] - two[:, 0]).min())


def write(entries: Sequence[Entry]) -> None:
    """A line for each field."""
    fields = [
        ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in entry.items())
        for entry in entries
    ]
    PATH.write_text("[\n {\n" + "\n },\n {\n".join(fields) + "\n }\n]\n", encoding="utf-8")


def read() -> list[Entry]:
    return json.loads(PATH.read_text(encoding="utf-8"))
