"""The report in a few lines, made of what its sections show: why, what is wrong, where to look."""

from collections.abc import Sequence
from typing import NamedTuple

from elpo_jax.metrics import Row, difference_interval, simultaneous_z
from elpo_jax.report.documents import ENDS
from elpo_jax.report.failures import Failures, LostAt, mode_words
from elpo_jax.report.habits import Habit
from elpo_jax.report.run import Run, total
from elpo_jax.report.verdict import Pair, Share, Verdict, answering
from elpo_jax.report.words import percent, points

TELLING = 2  # traits of failures that the summary tells
MOSTLY = 2 / 3  # share of a change from which on it is mostly of one thing


class Line(NamedTuple):
    """A line: its label, its text, and the section that says more."""

    label: str
    text: str
    section: str


def brief(
    run: Run, verdict: Verdict, habits: Sequence[Habit], failures: Failures | None
) -> list[Line]:
    """Why success changed, what goes wrong now, and which checks ask to be looked at."""
    look = [check.name for check in verdict.checks if check.state == "look"]
    lines = [
        Line("Why", _why(run, verdict, habits), "why"),
        Line("Wrong now", _wrong(failures), "wrong"),
        Line("Look at", "; ".join(look), "why"),
    ]
    return [line for line in lines if line.text]


def summary(found: Failures, lost: Sequence[LostAt]) -> str:
    """The failures in a few sentences, what sets them apart first."""
    if not found.failures:
        return ""
    parts = _traits(found)
    if not parts and found.traits and found.trials > found.failures:
        parts.append(
            "Nothing that is looked for here is found in failures more often than in solved "
            "episodes, beyond chance."
        )
    parts.append(f"The most frequent way to fail is {_way(found)}{_types(found)}.")
    if lost:
        searches = sum(group.size for group in lost)
        parts.append(
            f"In training, BEL lately placed the loss most often at: {lost[0].does} "
            f"({lost[0].size} of {searches} searches)."
        )
    return " ".join(parts)


def _why(run: Run, verdict: Verdict, habits: Sequence[Habit]) -> str:
    """What went along with a change that counts; nothing where none does."""
    if verdict.outcome not in ("better", "worse"):
        return ""
    first, last = run.evaluations[0], run.evaluations[-1]
    parts = [_split(first, last), _ending(first, last)]
    for habit in [each for each in habits if each.counts][:1]:
        pair = habit.pair
        parts.append(
            f"Along with it: {percent(pair.before.value)} of the episodes {pair.group} before, "
            f"{percent(pair.after.value)} do now."
        )
    return " ".join(part for part in parts if part)


def _split(first: dict[str, float], last: dict[str, float]) -> str:
    """Whether success changed with answering or with being right."""
    split = answering(first, last)
    if not split:
        return ""
    by_answering, by_being_right = split.points
    change = by_answering + by_being_right
    more = "more" if change > 0 else "fewer"
    shares = {
        f"{more} episodes end with an answer": (split.answering, by_answering),
        f"{more} answers are right": (split.right, by_being_right),
    }
    ranked = sorted(shares.items(), key=lambda item: item[1][1] / change, reverse=True)
    texts = [
        f"{text}, {percent(then)} before and {percent(now)} now ({points(by)} points)"
        for text, ((then, now), by) in ranked
        if by / change > 0
    ]
    if ranked[0][1][1] / change >= MOSTLY:
        return f"Mostly because {texts[0]}."
    return f"Because {'; and '.join(texts)}."


def _ending(first: Row, last: Row) -> str:
    """The cap whose share of the episodes changed most, as success did and beyond chance."""
    is_better = total(last)[0] / total(last)[1] > total(first)[0] / total(first)[1]
    caps = {end: words for end, words in ENDS.items() if end != "answer"}
    z = simultaneous_z(len(caps))
    told: list[Pair] = []
    for end, words in caps.items():
        pair = Pair(words, _ended(first, end), _ended(last, end))
        low, high = difference_interval(pair.before, pair.after, z)
        if high < 0 if is_better else low > 0:
            told.append(pair)
    if not told:
        return ""
    most = max(told, key=lambda pair: abs(pair.gain))
    now = percent(most.after.value)
    return f"{percent(most.before.value)} ended as “{most.group}” before, {now} now."


def _ended(row: Row, end: str) -> Share:
    """The share of an evaluation's episodes that ended so."""
    trials = total(row)[1]
    return Share(round(row.get(f"eval/end_{end}", 0.0) * trials), trials)


def _wrong(found: Failures | None) -> str:
    if not found or not found.failures:
        return ""
    text = f"{found.failures} of {found.trials} held-out episodes fail, most often: {_way(found)}."
    return " ".join([text, *(_traits(found) or _common(found))])


def _traits(found: Failures) -> list[str]:
    """What failures do more often than solved episodes, and how many do nothing of the kind."""
    parts = [
        f"{trait.failed} of the {found.failures} failures {trait.name}; {trait.solved} of the "
        f"{found.trials - found.failures} solved episodes did."
        for trait in found.telling[:TELLING]
    ]
    if parts and found.rest.failed:
        parts.append(f"{found.rest.failed} failures show nothing of what is looked for.")
    return parts


def _common(found: Failures) -> list[str]:
    """What most failures do, where nothing sets them apart: few episodes are solved, for one."""
    most = max(found.traits, key=lambda trait: trait.failed, default=None)
    if most is None or 2 * most.failed <= found.failures:
        return []
    text = f"{most.failed} of the {found.failures} failures {most.name}"
    solved = found.trials - found.failures
    if not solved:
        return [f"{text}; nothing is solved."]
    return [f"{text}; {most.solved} of the {solved} solved episodes did too: it needn't be why."]


def _way(found: Failures) -> str:
    mode = max(found.modes, key=found.by_mode)
    return f"“{mode_words(mode)}” ({found.by_mode(mode)} of {found.failures})"


def _types(found: Failures) -> str:
    """Which type has the most failures, and which the largest share; nothing if there is one."""
    most = found.kinds[0]
    if most.failures == found.failures:
        return ""
    worst = max(found.kinds, key=lambda row: (row.failures / row.trials, row.trials))
    text = f", the most frequent type is {most.kind} ({most.failures} of {found.failures})"
    if worst is not most:
        text += f"; {worst.kind} fails most often ({worst.failures} of its {worst.trials})"
    return text
