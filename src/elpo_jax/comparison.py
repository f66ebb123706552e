"""Several runs side by side: algorithms at equal budget over the same seeds, with intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from elpo_jax.errors import UsageError

Row = Mapping[str, Any]

# What held-out success is drawn against, and how much of it a step adds.
AXES: Mapping[str, str] = {
    "rollouts": "rollouts",
    "tokens": "tokens drawn",
    "seconds": "seconds of rollouts and updates",
}


class Point(NamedTuple):
    """Where a run stood at an evaluation; costs are those of the RL steps before it."""

    step: int
    rollouts: float
    tokens: float
    seconds: float
    success: float


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: of the seeds' values.
      spread: their standard deviation (ddof 1); NaN for one seed.
      low, high: Student's 95 % interval of the mean; NaN for one seed.
    """

    mean: float
    spread: float
    low: float
    high: float


def curve(rows: Sequence[Row]) -> list[Point]:
    """The evaluations of a run.

    Args:
      rows: of its `metrics.jsonl`.

    Raises:
      ValueError: the run has no evaluation.
    """
    rollouts = tokens = seconds = 0.0
    points = []
    for row in rows:
        rollouts += row.get("rollout/total", 0)
        tokens += row.get("sampler/decode_tokens", 0)
        seconds += row.get("time/rollout", 0) + row.get("time/update", 0)
        if "eval/success" in row:
            points.append(Point(row["step"], rollouts, tokens, seconds, row["eval/success"]))
    if not points:
        raise ValueError("metrics: expected a row with eval/success, got none")
    return points


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan, math.nan)
    spread = statistics.stdev(values)
    half = stats.t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values))
    return Estimate(mean, spread, mean - half, mean + half)


def compare(runs: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[str, Any]:
    """Numbers of a comparison, as JSON can hold them.

    Args:
      runs: rows by algorithm and seed; every algorithm has the same seeds.

    Returns:
      'algorithms': by name, 'before', 'after' and 'gain' (estimates of held-out success), the
      means of what was spent, and 'curves' by seed; 'differences': by 'A - B', the estimate of
      A's final success less B's, paired by seed; 'unequal_starts': the seeds whose runs did not
      begin with the same policy.

    Raises:
      UsageError: a run lacks a row that another has: what it cost isn't known then.
    """
    steps = {
        f"{name}/{seed}": [(row["step"], "eval/success" in row) for row in rows]
        for name, by_seed in runs.items()
        for seed, rows in by_seed.items()
    }
    most = max(steps.values(), key=len)
    problems = [
        f"{run}/metrics.jsonl: expected the steps and evaluations of the other runs, differs at "
        f"step {min(step for step, _ in {*most} ^ {*found})}; put the row back, or remove the "
        f"folder {run} to train it again"
        for run, found in steps.items()
        if found != most
    ]
    if problems:
        raise UsageError(problems)
    curves = {
        name: {seed: curve(rows) for seed, rows in by_seed.items()}
        for name, by_seed in runs.items()
    }
    finals = {name: {s: c[-1].success for s, c in by.items()} for name, by in curves.items()}
    names = list(curves)
    return {
        "algorithms": {name: _summary(by_seed) for name, by_seed in curves.items()},
        "differences": {
            f"{one} - {other}": _json(
                estimate([finals[one][seed] - finals[other][seed] for seed in finals[one]])
            )
            for i, one in enumerate(names)
            for other in names[i + 1 :]
        },
        "unequal_starts": [
            seed
            for seed in curves[names[0]]
            if len({_start(by_seed[seed]) for by_seed in runs.values()}) > 1
        ],
    }


def _start(rows: Sequence[Row]) -> tuple[float | None, ...]:
    """What the row before the first step tells a policy by; nothing where that row is gone."""
    first = rows[0] if rows[0]["step"] == 0 else {}
    return tuple(first.get(name) for name in ("sft/loss", "eval/success"))


def _summary(by_seed: Mapping[int, Sequence[Point]]) -> dict[str, Any]:
    curves = list(by_seed.values())
    return {
        "before": _json(_within(estimate([c[0].success for c in curves]), 0.0, 1.0)),
        "after": _json(_within(estimate([c[-1].success for c in curves]), 0.0, 1.0)),
        "gain": _json(estimate([c[-1].success - c[0].success for c in curves])),
        **{axis: statistics.fmean(getattr(c[-1], axis) for c in curves) for axis in AXES},
        "curves": {str(seed): [p._asdict() for p in c] for seed, c in by_seed.items()},
    }


def _within(value: Estimate, low: float, high: float) -> Estimate:
    """The estimate with its interval cut to what is possible."""
    return value._replace(low=max(value.low, low), high=min(value.high, high))


def _json(value: Estimate) -> dict[str, float | None]:
    return {name: x if math.isfinite(x) else None for name, x in value._asdict().items()}


def markdown(found: Mapping[str, Any], trials: int) -> str:
    """The table of a comparison.

    Args:
      found: as `compare` returns it.
      trials: held-out tasks an evaluation.
    """
    lines = [
        "| algorithm | seeds | before | after | points gained | rollouts | tokens | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["algorithms"].items():
        costs = [f"{row[axis]:,.0f}" for axis in AXES]
        cells = [name, len(row["curves"]), *(_cell(row[k]) for k in ("before", "after"))]
        lines.append(f"| {' | '.join(map(str, [*cells, _cell(row['gain'], '+'), *costs]))} |")
    for names, value in found["differences"].items():
        lines += ["", f"Final success, {names}, paired by seed: {_cell(value, '+')} points."]
    if unequal := found["unequal_starts"]:
        lines += [
            "",
            f"Warning: the runs of seeds {', '.join(map(str, unequal))} began with different "
            "policies: something that the cold start depends on changed between them.",
        ]
    has_spread = any(len(row["curves"]) > 1 for row in found["algorithms"].values())
    about = (
        "mean ± standard deviation over seeds [95 % interval of the mean, Student's t, cut to "
        "0-100]. Costs are means over seeds."
        if has_spread
        else "of one seed, so without an interval."
    )
    lines += ["", f"Held-out success in %, {trials} tasks; {about}"]
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, float | None], sign: str = "") -> str:
    mean, spread, low, high = (
        math.nan if x is None else 100 * x for x in (value[name] for name in Estimate._fields)
    )
    if math.isnan(spread):
        return f"{mean:{sign}.1f}"
    return f"{mean:{sign}.1f} ± {spread:.1f} [{low:.1f}, {high:.1f}]"
