"""What the policy does otherwise than before: its habits and its tools, over two evaluations."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from elpo_jax.metrics import difference_interval, simultaneous_z
from elpo_jax.report.documents import Episode
from elpo_jax.report.traits import traits
from elpo_jax.report.verdict import Pair, Share


class Habit(NamedTuple):
    """A trait of episodes before and now; `counts`: chance doesn't explain the change."""

    pair: Pair
    counts: bool


class ToolUse(NamedTuple):
    """What an evaluation's episodes did with a tool."""

    calls: int
    errors: int
    episodes: int  # of the evaluation


class ToolRow(NamedTuple):
    """A tool before and now; before is None where there is one evaluation.

    `kinds`: (kind of error, how many) now, the most frequent first.
    """

    name: str
    before: ToolUse | None
    now: ToolUse
    kinds: tuple[tuple[str, int], ...]


def habits(before: Sequence[Episode], now: Sequence[Episode]) -> list[Habit]:
    """Traits of all episodes, solved or not, before and now; the largest change first.

    A change counts if its interval, as wide as their number asks for (Bonferroni), leaves out 0.

    Args:
      before: episodes of the first evaluation; without any nothing is compared.
      now: of the newest.
    """
    if not before or not now:
        return []
    pairs = [
        Pair(name, _share(before, has), _share(now, has))
        for name, has in traits([*before, *now]).items()
    ]
    pairs = [pair for pair in pairs if pair.before.successes or pair.after.successes]
    z = simultaneous_z(max(1, len(pairs)))
    found = []
    for pair in sorted(pairs, key=lambda pair: -abs(pair.gain)):
        low, high = difference_interval(pair.before, pair.after, z)
        found.append(Habit(pair, low > 0 or high < 0))
    return found


def tools(before: Sequence[Episode], now: Sequence[Episode]) -> list[ToolRow]:
    """The tools that either evaluation called, by the calls of both.

    Args:
      before: episodes of the first evaluation; empty if there is one.
      now: of the newest.
    """
    calls = Counter(name for episode in [*before, *now] for name, _ in episode.calls)
    rows = []
    for name, _ in calls.most_common():
        errors = [error for episode in now for each, error in episode.calls if each == name]
        kinds = Counter(error.replace("_", " ") for error in errors if error)
        rows.append(
            ToolRow(
                name=name,
                before=_use(before, name) if before else None,
                now=_use(now, name),
                kinds=tuple(kinds.most_common()),
            )
        )
    return rows


def _share(episodes: Sequence[Episode], has: Callable[[Episode], bool]) -> Share:
    return Share(sum(map(has, episodes)), len(episodes))


def _use(episodes: Sequence[Episode], name: str) -> ToolUse:
    found = [error for episode in episodes for each, error in episode.calls if each == name]
    return ToolUse(len(found), sum(error is not None for error in found), len(episodes))
