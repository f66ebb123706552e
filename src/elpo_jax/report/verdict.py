"""Whether training worked, in words, and what speaks for it: the report's first page.

Every sentence is made of the run's own numbers. The rules that judge them stand here and on the
page: a change counts if its 95 % interval leaves out 0, and `CHECKS` says what is noted and why.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from elpo_jax.metrics import Row, difference_interval, simultaneous_z, wilson
from elpo_jax.report.run import Run, counts, total
from elpo_jax.report.words import interval, number, percent, points, signed

Counts = tuple[int, int]  # (successes, trials)


class Share(NamedTuple):
    """A share with its count and Wilson's interval."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        return self.successes / self.trials

    @property
    def bounds(self) -> tuple[float, float]:
        return wilson(self.successes, self.trials)

    def __str__(self) -> str:
        return (
            f"{percent(self.value)} ({self.successes} of {self.trials}, 95% interval "
            f"{interval(self.successes, self.trials)})"
        )


class Change(NamedTuple):
    """Success of a group of tasks before and after, either missing where it wasn't tried."""

    group: str
    before: Share | None
    after: Share | None

    @property
    def points(self) -> float | None:
        if self.before and self.after:
            return self.after.value - self.before.value
        return None


class Pair(NamedTuple):
    """A change of a group that was tried before and after."""

    group: str
    before: Share
    after: Share

    @property
    def gain(self) -> float:
        return self.after.value - self.before.value


class Check(NamedTuple):
    """One thing to know about the training: 'ok' or 'look', what, and the numbers."""

    state: str
    name: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The report's opening.

    Attributes:
      outcome: 'better', 'worse', 'unclear' or 'open' (no two evaluations yet).
      title: a few words.
      lead: the figures behind it.
      before, after: held-out success at the first and the newest evaluation.
      reasons: what changed along with it.
      checks: the health of the training.
    """

    outcome: str
    title: str
    lead: str
    before: Share | None
    after: Share | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


def judge(run: Run) -> Verdict:
    """The verdict on a run as far as it came."""
    rows = run.evaluations
    shares = [Share(*total(row)) for row in rows if total(row)[1]]
    before, after = (shares[0], shares[-1]) if len(shares) > 1 else (None, None)
    if before and after:
        outcome, title = _outcome(before, after)
        lead = _lead(run, before, after, rows[-1]["step"])
    else:
        is_done = run.steps >= run.whole("train.steps", run.steps + 1)
        outcome, title = "open", "Not measured" if is_done else "Too early to say"
        lead = "Two evaluations are needed to say what training changed; this run has " + (
            f"one: held-out success {shares[0]} after step {rows[0]['step']}."
            if shares
            else "none."
        )
    return Verdict(
        outcome=outcome,
        title=title,
        lead=lead,
        before=before,
        after=after,
        reasons=tuple(_reasons(run, rows[0], rows[-1])) if before else (),
        checks=tuple(check for make in CHECKS if (check := make(run))),
    )


def changes(run: Run, by: str) -> list[Change]:
    """Success before and after by 'kind' or 'calls' (see `run.counts`)."""
    rows = run.evaluations
    if not rows:
        return []
    first, last = counts(rows[0], by), counts(rows[-1], by)
    if len(rows) == 1:
        first = {}
    return [
        Change(group, _share(first.get(group)), _share(last.get(group)))
        for group in dict.fromkeys([*first, *last])
    ]


def _share(found: Counts | None) -> Share | None:
    return Share(*found) if found and found[1] else None


def _outcome(before: Share, after: Share) -> tuple[str, str]:
    low, high = difference_interval(before, after)
    if low > 0:
        return "better", "Training worked"
    if high < 0:
        return "worse", "Training made the policy worse"
    return "unclear", "No change that these tasks can show"


def _lead(run: Run, before: Share, after: Share, step: int) -> str:
    low, high = difference_interval(before, after)
    algorithm = str(run.config.get("algorithm", "RL")).upper()
    return (
        f"After {step} steps of {algorithm} the policy solves {after} held-out tasks; before RL "
        f"it solved {before}. That is a change of "
        f"{points(after.value - before.value)} points (95% interval {points(low)} to "
        f"{points(high)})."
    )


def _reasons(run: Run, first: Row, last: Row) -> list[str]:
    found = (
        _answering(first, last),
        _groups(changes(run, "kind"), "question type"),
        _groups(changes(run, "calls"), "number of calls that the solver needs"),
        _habits(first, last),
        _training_reward(run),
    )
    return [sentence for sentence in found if sentence]


class Answering(NamedTuple):
    """A change of success, split between ending with an answer and that answer being right.

    Attributes:
      answering: share of the episodes that end with an answer, before and now.
      right: share of these answers that is right, before and now.
    """

    answering: tuple[float, float]
    right: tuple[float, float]

    @property
    def points(self) -> tuple[float, float]:
        """What either adds to the change of success.

        With a the share that answers and r the share of answers that is right, success is a r and
        its change is Δa (r₁+r₂)/2 + Δr (a₁+a₂)/2 exactly.
        """
        (a1, a2), (r1, r2) = self.answering, self.right
        return (a2 - a1) * (r1 + r2) / 2, (r2 - r1) * (a1 + a2) / 2


def answering(first: Row, last: Row) -> Answering | None:
    """Splits the change between two evaluations; None if one has no episode with an answer."""
    name = "eval/end_answer"
    if not (first.get(name) and last.get(name)):
        return None
    return Answering(
        (first[name], last[name]),
        (first["eval/success"] / first[name], last["eval/success"] / last[name]),
    )


def _answering(first: Row, last: Row) -> str:
    split = answering(first, last)
    if not split:
        return ""
    (a1, a2), (r1, r2) = split.answering, split.right
    by_answering, by_being_right = split.points
    return (
        f"Episodes that end with an answer: {percent(a1)} before, {percent(a2)} now "
        f"({points(by_answering)} points of success). Answers that are right: {percent(r1)} "
        f"before, {percent(r2)} now ({points(by_being_right)} points)."
    )


def _groups(found: list[Change], what: str) -> str:
    """Names the groups that gained more or less than the others, if chance doesn't explain it.

    A group is named if the interval of its gain less that of all others together leaves out 0. The
    intervals hold at 95 % for all groups at once (Bonferroni): with 95 % each, eight groups that
    are alike would have one named in every third run.
    """
    known = [
        Pair(each.group, each.before, each.after) for each in found if each.before and each.after
    ]
    if len(known) < 2:
        return ""
    z = simultaneous_z(len(known))
    bounds = [_against_others(pair, known, z) for pair in known]
    more = [pair for pair, (low, _) in zip(known, bounds, strict=True) if low > 0]
    less = [pair for pair, (_, high) in zip(known, bounds, strict=True) if high < 0]
    if not (more or less):
        low, *_, high = sorted(pair.after.trials for pair in known)
        n = f"n = {low} each" if low == high else f"n = {low} to {high}"
        return f"By {what} ({n}), gains differ by no more than chance explains."
    named = [
        f"{word} was gained on {_listed(pairs)}"
        for word, pairs in (("more", more), ("less", less))
        if pairs
    ]
    return f"By {what}, {' and '.join(named)} than on the others together (points of success)."


def _against_others(pair: Pair, known: Sequence[Pair], z: float) -> tuple[float, float]:
    """Interval of a group's gain less that of all other groups together.

    It joins the intervals of the two gains as Newcombe's joins those of two proportions: Zou and
    Donner 2008, https://doi.org/10.1002/sim.3095.
    """
    others = [each for each in known if each is not pair]
    before, after = _sum(each.before for each in others), _sum(each.after for each in others)
    low, high = difference_interval(pair.before, pair.after, z)
    low_others, high_others = difference_interval(before, after, z)
    gain, gain_others = pair.gain, after.value - before.value
    return (
        gain - gain_others - math.hypot(gain - low, high_others - gain_others),
        gain - gain_others + math.hypot(high - gain, gain_others - low_others),
    )


def _sum(shares: Iterable[Share]) -> Share:
    """All of the trials together."""
    successes, trials = zip(*shares, strict=True)
    return Share(sum(successes), sum(trials))


def _listed(pairs: Iterable[Pair]) -> str:
    ranked = sorted(pairs, key=lambda pair: pair.gain, reverse=True)
    return ", ".join(
        f"{each.group} ({points(each.gain)}, n = {each.after.trials})" for each in ranked
    )


def _habits(first: Row, last: Row) -> str:
    names = (
        ("eval/calls", "tool calls a task", "{:.2f}".format),
        ("eval/error_share", "tool outputs that are errors", percent),
        ("eval/response_length", "tokens a response", "{:.0f}".format),
    )
    parts = [
        f"{label} {text(first[name])} → {text(last[name])}"
        for name, label, text in names
        if name in first and name in last
    ]
    return f"Habits on held-out tasks: {'; '.join(parts)}." if parts else ""


def _training_reward(run: Run) -> str:
    early, late = _quarters(run, "reward/mean")
    if early is None or late is None:
        return ""
    return (
        f"Mean reward of training rollouts: {signed(early)} over the first quarter of the steps, "
        f"{signed(late)} over the last."
    )


def _quarters(run: Run, name: str) -> tuple[float | None, float | None]:
    """Means over the first and the last quarter of the steps that have the metric."""
    values = [value for step, value in run.series(name) if step > 0]
    if not values:
        return None, None
    size = max(1, len(values) // 4)
    return sum(values[:size]) / size, sum(values[-size:]) / size


def _signal(run: Run) -> Check | None:
    early, late = _quarters(run, "policy/trained_rows_frac")
    if early is None or late is None:
        return None
    text = (
        f"{percent(late)} of trajectories carried an advantage lately ({percent(early)} at first)"
    )
    if late < 0.2:
        return Check("look", "Learning signal", f"{text}; most tasks are all solved or all failed.")
    return Check("ok", "Learning signal", f"{text}.")


def _entropy(run: Run) -> Check | None:
    early, late = _quarters(run, "policy/entropy")
    if early is None or late is None:
        return None
    text = f"{number(late)} nats a token lately, {number(early)} at first"
    if late < 0.2 * early:
        return Check("look", "Entropy", f"{text}: it collapses, samples get alike.")
    if late > 2 * early:
        return Check("look", "Entropy", f"{text}: it more than doubled, the policy gets unsure.")
    return Check("ok", "Entropy", f"{text}.")


def _kl(run: Run) -> Check | None:
    values = [value for _, value in run.series("policy/kl_old")]
    if not values:
        return None
    text = f"at most {number(max(values))} nats a token from one step to the next"
    if max(values) > 0.1:
        return Check("look", "Size of steps", f"{text}: more than 0.1, a smaller rate may do.")
    return Check("ok", "Size of steps", f"{text}.")


def _gradient(run: Run) -> Check | None:
    values = sorted(value for _, value in run.series("policy/grad_norm"))
    if not values:
        return None
    median = values[len(values) // 2]
    text = f"norm {number(median)} in the median, {number(values[-1])} at most"
    if not values[-1]:
        return Check("look", "Gradients", "all are 0: nothing was learnt.")
    if values[-1] > 10 * median:
        return Check("look", "Gradients", f"{text}: there were spikes.")
    return Check("ok", "Gradients", f"{text}.")


def _mismatch(run: Run) -> Check | None:
    values = [value for _, value in run.series("policy/sampler_kl")]
    if not values:
        return None
    text = f"KL at most {number(max(values))} nats a token"
    if max(values) > 1e-3:
        return Check("look", "Sampler and learner agree", f"{text}: above 0.001 they don't.")
    return Check("ok", "Sampler and learner agree", f"{text}.")


def _endings(run: Run) -> Check | None:
    _, late = _quarters(run, "episode/end_answer")
    if late is None:
        return None
    text = f"{percent(late)} of training episodes lately ended with an answer"
    if late < 0.9:
        return Check("look", "Episodes end with an answer", f"{text}; the others hit a cap.")
    return Check("ok", "Episodes end with an answer", f"{text}.")


def _errors(run: Run) -> Check | None:
    _, late = _quarters(run, "episode/error_share")
    if late is None:
        return None
    text = f"{percent(late)} of tool outputs lately were errors"
    return Check("look" if late > 0.1 else "ok", "Tool use", f"{text}.")


def _localisation(run: Run) -> Check | None:
    _, late = _quarters(run, "bel/localized_frac")
    if late is None:
        return None
    text = f"{percent(late)} of the searches lately found the critical step within the budget"
    return Check("look" if late < 0.4 else "ok", "Error localisation", f"{text}.")


def _generalisation(run: Run) -> Check | None:
    """A sample counts as much as its task: rollouts of one task are alike, so this is cautious."""
    rows = [row for row in run.rows if "success/unaided" in row and row.get("rollout/tasks")]
    evaluations = [row for row in run.evaluations if total(row)[1]]
    if not rows or len(evaluations) < 2:
        return None
    late = rows[-max(1, len(rows) // 4) :]
    tasks = round(sum(row["rollout/tasks"] for row in late))
    solved = sum(row["success/unaided"] * row["rollout/tasks"] for row in late)
    held_out = Share(*total(evaluations[-1]))
    training = Share(min(tasks, round(solved)), tasks)
    low, high = difference_interval(held_out, training)
    text = (
        f"{percent(solved / tasks)} success unaided on {tasks} training tasks lately, "
        f"{percent(held_out.value)} on {held_out.trials} held-out ones (difference "
        f"{points(training.value - held_out.value)} points, 95% interval {points(low)} to "
        f"{points(high)})"
    )
    if low > 0:
        return Check("look", "Training against held-out", f"{text}: what it learns transfers less.")
    return Check("ok", "Training against held-out", f"{text}.")


def _drops(run: Run) -> Check | None:
    drops = sum(value for _, value in run.series("episode/drops"))
    if not run.series("episode/drops"):
        return None
    text = f"{number(drops)} rollouts were lost to broken infrastructure"
    return Check("look" if drops else "ok", "Infrastructure", f"{text}.")


CHECKS: tuple[Callable[[Run], Check | None], ...] = (
    _signal,
    _generalisation,
    _entropy,
    _kl,
    _gradient,
    _mismatch,
    _endings,
    _errors,
    _localisation,
    _drops,
)


def phases(run: Run) -> Mapping[str, float]:
    """Seconds of the whole run by phase; 'other' is what a step takes besides."""
    names = {"rollout": "time/rollout", "update": "time/update", "evaluation": "time/eval"}
    seconds = {label: sum(value for _, value in run.series(name)) for label, name in names.items()}
    steps = sum(value for _, value in run.series("time/step"))
    initial = sum(value for step, value in run.series("time/eval") if step == 0)
    if steps:  # step 0 is no step: its evaluation isn't in time/step
        seconds["other"] = max(0.0, steps + initial - sum(seconds.values()))
    return {label: value for label, value in seconds.items() if value}
