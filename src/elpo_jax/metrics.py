"""The names of all metrics in one table, and the log of a run: `metrics.jsonl` and TensorBoard.

`python -m elpo_jax.metrics` prints the table as Markdown.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import NormalDist
from types import TracebackType
from typing import Any, NamedTuple

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from elpo_jax.errors import UsageError, suggestion
from elpo_jax.workdir import naming, write_atomic

Row = dict[str, Any]  # {'step': int, name: number, ...}


class Metric(NamedTuple):
    """One name, or a family of names if it ends in `<...>`.

    Attributes:
      name: as in `metrics.jsonl`.
      description: one line.
      varies: depends on the clock or the process, so equal runs may differ in it.
    """

    name: str
    description: str
    varies: bool = False


TABLE = (
    Metric("reward/mean", "mean shaped reward of the trajectories, branches included"),
    Metric("success/mean", "share of trajectories that the verifier accepts, branches included"),
    Metric(
        "success/unaided",
        "the same over each task's first rollouts, asked for before any outcome is known: "
        "what the policy does unaided, under every algorithm",
    ),
    Metric("response_length/mean", "tokens after the prompt, the environment's included"),
    Metric("episode/turns", "assistant turns a trajectory"),
    Metric("episode/calls", "tool calls a trajectory"),
    Metric("episode/error_share", "share of observations that are errors"),
    Metric("episode/end_<reason>", "share of trajectories that ended so"),
    Metric("episode/drops", "rollouts lost to broken infrastructure, and replaced"),
    Metric("episode/tool_timeouts", "of these, calls that ran over episode.tool_seconds"),
    Metric("episode/dropped_tasks", "tasks that left the batch after too many drops"),
    Metric("sandbox/snippets", "programs run in the sandbox, the verifiers' among them"),
    Metric("sandbox/clock_kills", "of these, killed for their time by the clock, not on the CPU"),
    Metric("sandbox/restarts", "processes of the sandbox that were replaced"),
    Metric("rollout/total", "rollouts of the step, branches included"),
    Metric("rollout/tasks", "tasks of the step, without those that were dropped"),
    Metric("rollout/per_tree", "rollouts a tree, branches included"),
    Metric("bel/searches", "searches a tree"),
    Metric("bel/localized_frac", "share of searches resolved within the budget"),
    Metric("bel/probes", "anchors a search at which suffixes were sampled"),
    Metric("bel/suffixes", "suffixes a search"),
    Metric("bel/relative_position", "t_crit / (K + 1) of the resolved searches"),
    Metric("policy/loss", "Eq. 12, negated, averaged over the updates"),
    Metric("policy/clip_frac_low", "share of policy tokens clipped at the lower bound"),
    Metric("policy/clip_frac_high", "share of policy tokens clipped at the upper bound"),
    Metric(
        "policy/clip_frac_low_elc", "clip_frac_low among tokens with the widened bound (Eq. 11)"
    ),
    Metric("policy/clip_frac_low_plain", "clip_frac_low among the other tokens"),
    Metric("policy/clip_frac_high_elc", "clip_frac_high among tokens with the widened lower bound"),
    Metric("policy/clip_frac_high_plain", "clip_frac_high among the other tokens"),
    Metric(
        "policy/kl_old", "KL from the policy before the step's updates, estimated on its samples"
    ),
    Metric("policy/entropy", "mean entropy of policy tokens before the updates, nats"),
    Metric(
        "policy/grad_norm", "global norm of the gradient before clipping, averaged over updates"
    ),
    Metric("policy/ratio_max", "largest importance ratio"),
    Metric("policy/sampler_kl", "KL between the sampler's and the learner's log-probabilities"),
    Metric("policy/sampler_max_diff", "largest difference between the two log-probabilities"),
    Metric("policy/trained_rows_frac", "share of trajectories with an advantage other than 0"),
    Metric("optimizer/learning_rate", "after the step's last update"),
    Metric("sft/loss", "cross-entropy of the cold start's last update, nats a token"),
    Metric("sft/grad_norm", "global norm of its gradient before clipping"),
    Metric("sft/tokens", "tokens with a loss in that update"),
    Metric("eval/success", "share of held-out tasks solved; the first row is the cold start's"),
    Metric("eval/success/<kind>", "the same for tasks of one kind"),
    Metric("eval/success_by_calls/<n>", "the same for tasks that the suite solves in n calls"),
    Metric("eval/tasks", "held-out tasks tried"),
    Metric("eval/trials/<kind>", "samples behind eval/success/<kind>"),
    Metric("eval/trials_by_calls/<n>", "samples behind eval/success_by_calls/<n>"),
    Metric("eval/reward", "mean shaped reward on held-out tasks"),
    Metric("eval/response_length", "tokens after the prompt on held-out tasks"),
    Metric("eval/calls", "tool calls a held-out task"),
    Metric("eval/error_share", "share of observations on held-out tasks that are errors"),
    Metric("eval/end_<reason>", "share of held-out trajectories that ended so"),
    Metric("sampler/prefill_tokens", "tokens that went through prefill"),
    Metric("sampler/decode_tokens", "tokens drawn"),
    Metric("sampler/saved_tokens", "prefix tokens that forks spared from prefill"),
    Metric("sampler/forks", "cache rows copied for branches"),
    Metric("sampler/swaps", "cache rows moved to host memory and back", varies=True),
    Metric("sampler/lane_use", "share of lane-steps that drew a token", varies=True),
    Metric("sampler/compiles", "programs compiled since the process started", varies=True),
    Metric("sampler/tokens_per_s", "tokens drawn a second of rollout", varies=True),
    Metric(
        "update/tokens_per_s",
        "tokens of trajectories, prompts included, a second of updates; those without an "
        "advantage, which take a forward pass only, among them",
        varies=True,
    ),
    Metric("time/rollout", "seconds of rollouts", varies=True),
    Metric("time/update", "seconds of updates", varies=True),
    Metric("time/eval", "seconds of evaluation", varies=True),
    Metric("time/step", "seconds since the row before, everything included", varies=True),
)

_EXACT = {metric.name: metric for metric in TABLE if "<" not in metric.name}
_FAMILIES = {metric.name.partition("<")[0]: metric for metric in TABLE if "<" in metric.name}


def lookup(name: str) -> Metric:
    """The table's entry for a name.

    Raises:
      ValueError: the table has none.
    """
    if name in _EXACT:
        return _EXACT[name]
    for prefix, metric in _FAMILIES.items():
        if name.startswith(prefix) and name != prefix:
            return metric
    raise ValueError(f"{name}: no such metric{suggestion(name, _EXACT)}")


def deterministic(row: Mapping[str, Any]) -> Row:
    """The row without what may differ between equal runs."""
    return {name: x for name, x in row.items() if name == "step" or not lookup(name).varies}


def held_out_counts(
    row: Mapping[str, Any], shares: str = "eval/success/", trials: str = "eval/trials/"
) -> dict[str, tuple[int, int]]:
    """(successes, trials) by group, from a row with an evaluation.

    Args:
      row: of metrics.
      shares: the family of metrics with the groups' success.
      trials: the family with the groups' samples.
    """
    groups = [name.removeprefix(trials) for name in row if name.startswith(trials)]
    return {
        group: (round(row[shares + group] * row[trials + group]), round(row[trials + group]))
        for group in groups
    }


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n); Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953.

    Raises:
      ValueError: unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"wilson: expected successes among trials, got {successes} of {trials}")
    p, n = successes / trials, trials
    center = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def difference_interval(
    before: tuple[int, int], after: tuple[int, int], z: float = 1.96
) -> tuple[float, float]:
    """Interval of a change in a proportion, 95 % by default, from Wilson's intervals of the two.

    With d = p₂ - p₁: d - √((u₁-p₁)² + (p₂-l₂)²) to d + √((p₁-l₁)² + (u₂-p₂)²); Newcombe 1998 (Stat.
    Med. 17, 873), method 10, for independent samples. On the same tasks twice it is cautious.

    Args:
      before: (successes, trials), at least one trial.
      after: the same.
    """
    (low1, high1), (low2, high2) = wilson(*before, z), wilson(*after, z)
    p1, p2 = before[0] / before[1], after[0] / after[1]
    return (
        p2 - p1 - math.hypot(high1 - p1, p2 - low2),
        p2 - p1 + math.hypot(p1 - low1, high2 - p2),
    )


def simultaneous_z(count: int) -> float:
    """The z at which `count` intervals hold together at 95 % (Bonferroni); 1.96 for one."""
    return NormalDist().inv_cdf(1 - 0.025 / count)


def markdown() -> str:
    """The table as Markdown."""
    lines = ["| name | meaning |", "| --- | --- |"]
    lines += [f"| `{m.name}` | {m.description}{' *' if m.varies else ''} |" for m in TABLE]
    return "\n".join([*lines, "", "\\* differs between equal runs"])


def read(path: Path, last_step: int | None = None) -> list[Row]:
    """The rows of a `metrics.jsonl`; a last line torn by a kill is left out.

    Args:
      path: the file; without it there are no rows.
      last_step: rows of later steps are left out, unread from the first of them on.

    Raises:
      UsageError: on any other line that isn't a row, or when steps don't ascend.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is torn
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if rows and rows[-1]["step"] == last_step:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise _damaged(path, number, f"an object with a step, got {line[:80]!r}")
        if rows and row["step"] <= rows[-1]["step"]:
            raise _damaged(path, number, f"a step after {rows[-1]['step']}, got {row['step']}")
        if last_step is not None and row["step"] > last_step:
            break
        rows.append(row)
    return rows


def _damaged(path: Path, line: int, expected: str) -> UsageError:
    return UsageError([f"{path}:{line}: expected {expected}; mend the line, or delete it"])


class MetricsWriter:
    """Writes `metrics.jsonl`, a row a step, and shows the same in TensorBoard.

    The file is the truth: the events are made anew from it when a run is taken up again.

    Args:
      path: the `metrics.jsonl`.
      events: the folder of the TensorBoard events; what it holds is replaced.
      last_step: rows of later steps are dropped, because they come after the checkpoint that the
        run goes on from; None for a new run, which drops all.
    """

    def __init__(self, path: Path, events: Path, last_step: int | None):
        kept = [] if last_step is None else read(path, last_step)
        for number, row in enumerate(kept, 1):  # every line is a row
            for name, value in row.items():
                if not _is_finite(value):
                    shown = f"{name}={value!r}"[:80]
                    raise _damaged(path, number, f"finite numbers, got {shown}")
        write_atomic(path, "".join(_line(row) for row in kept))
        shutil.rmtree(events, ignore_errors=True)
        events.mkdir()
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and then it blocks.
        self._events = EventsWriter(str(events / "events"))
        self._path, self._events_folder = path, events
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.last_step: int | None = None  # of the last row
        for row in kept:
            self._show(row)

    def write(self, step: int, values: Mapping[str, Any]) -> Row:
        """Appends one row, on the disk when this returns, and returns it.

        Args:
          step: greater than the last one.
          values: numbers or scalar arrays by metric name.

        Raises:
          ValueError: on an unknown name, a value that isn't a finite number, or a step that doesn't
            ascend. Nothing is written then.
          OSError: the disk is full, or worse; the rows before stand.
        """
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(f"step: expected more than {self.last_step}, got {step}")
        row: Row = {"step": int(step)}
        for name, value in values.items():
            lookup(name)
            row[name] = _number(value, name, step)
        self._append(_line(row).encode())
        self._show(row)
        return row

    def close(self) -> None:
        os.close(self._file)
        with suppress(OSError):  # events are made anew when the run is taken up
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        """All of the line or, on a full disk, nothing of it."""
        end = os.fstat(self._file).st_size
        try:
            with naming(self._path):
                while line:
                    line = line[os.write(self._file, line) :]
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _show(self, row: Row) -> None:
        self.last_step = row["step"]
        scalars = [scalar(name, value) for name, value in row.items() if name != "step"]
        values = [value for each in scalars for value in each.value]
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        with naming(self._events_folder):
            self._events.write_event(event)
            self._events.flush()


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    # Not `isfinite` of what it is: that of an integer beyond all floats raises.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _number(value: Any, name: str, step: int) -> int | float:
    value = value.item() if hasattr(value, "item") else value  # arrays of NumPy and JAX
    if not _is_finite(value):
        raise ValueError(f"{name} at step {step}: expected a finite number, got {value!r}")
    return value


if __name__ == "__main__":
    print(markdown())
