"""What the policy does wrong now: the failures of the newest evaluation, sorted."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from elpo_jax.metrics import difference_interval, simultaneous_z
from elpo_jax.report.documents import MODES, Critical, Episode
from elpo_jax.report.traits import traits
from elpo_jax.report.words import last_line, short

EXAMPLES = 12  # failed episodes that the report shows
ERRORS = 6  # texts of errors that it lists


class Group(NamedTuple):
    """Failures that have something in common; `example` is one of them."""

    name: str
    size: int
    example: Episode


class Trait(NamedTuple):
    """Something that episodes may have: how many failures and successes have it.

    `example` is a failure that has it, if there is one.
    """

    name: str
    failed: int
    solved: int
    example: Episode | None


class KindRow(NamedTuple):
    """One question type: its failures by mode, in the order of `Failures.modes`."""

    kind: str
    failures: int
    trials: int
    by_mode: tuple[int, ...]


@dataclass(frozen=True)
class Failures:
    """The failures of an evaluation.

    Attributes:
      trials, failures: episodes, and those that failed.
      modes: the ways to fail that occurred (keys of `MODES`), the most frequent first.
      kinds: by question type, the most failures first.
      errors: by the kind of the first tool error; 'none' for those without.
      messages: the most frequent first errors as the tools put them.
      traits: what failures have more often or less often than successes, the largest difference of
        shares first.
      telling: those that failures have more often than chance explains, the most telling first.
      rest: episodes that have none of them.
      examples: failures of all types, those of frequent modes first.
    """

    trials: int
    failures: int
    modes: tuple[str, ...]
    kinds: tuple[KindRow, ...]
    errors: tuple[Group, ...]
    messages: tuple[Group, ...]
    traits: tuple[Trait, ...]
    telling: tuple[Trait, ...]
    rest: Trait
    examples: tuple[Episode, ...]

    def by_mode(self, mode: str) -> int:
        """Failures of that mode."""
        place = self.modes.index(mode)
        return sum(row.by_mode[place] for row in self.kinds)


class Moves(NamedTuple):
    """How verdicts on the same samples moved between two evaluations."""

    gained: tuple[Episode, ...]
    lost: tuple[Episode, ...]
    kept: int
    failing: int


class LostAt(NamedTuple):
    """Critical steps that do the same; `example` says in which file and where."""

    does: str
    size: int
    errors: int
    example: tuple[str, Critical]


def sort_failures(episodes: Sequence[Episode]) -> Failures:
    """The failures among the episodes of an evaluation."""
    failed = [episode for episode in episodes if not episode.success]
    modes = tuple(mode for mode, _ in Counter(e.mode for e in failed).most_common())
    trials = Counter(episode.kind for episode in episodes)
    by_kind = Counter(episode.kind for episode in failed)
    by_both = Counter((episode.kind, episode.mode) for episode in failed)
    found = _traits(episodes)
    return Failures(
        trials=len(episodes),
        failures=len(failed),
        modes=modes,
        kinds=tuple(
            KindRow(kind, count, trials[kind], tuple(by_both[kind, mode] for mode in modes))
            for kind, count in by_kind.most_common()
        ),
        errors=_groups(failed, lambda episode: (episode.error or "none").replace("_", " ")),
        messages=_groups([e for e in failed if e.error], _message)[:ERRORS],
        traits=tuple(found),
        telling=_telling(found, len(failed), len(episodes) - len(failed)),
        rest=_rest(episodes, found),
        examples=tuple(_examples(failed, [kind for kind, _ in by_kind.most_common()], modes)),
    )


def moves(before: Sequence[Episode], after: Sequence[Episode]) -> Moves | None:
    """Compares the samples that both evaluations have; None if there are none."""
    then = {(episode.task, episode.ordinal): episode.success for episode in before}
    pairs = [(then[e.task, e.ordinal], e) for e in after if (e.task, e.ordinal) in then]
    if not pairs:
        return None
    return Moves(
        gained=tuple(e for was, e in pairs if e.success and not was),
        lost=tuple(e for was, e in pairs if was and not e.success),
        kept=sum(was and e.success for was, e in pairs),
        failing=sum(not was and not e.success for was, e in pairs),
    )


def lost_at(found: Iterable[tuple[str, Critical]]) -> list[LostAt]:
    """Critical steps by what they do, the most frequent first.

    Args:
      found: (name of the file, critical step).
    """
    by_doing: dict[str, list[tuple[str, Critical]]] = {}
    for each in found:
        by_doing.setdefault(each[1].does, []).append(each)
    groups = [
        LostAt(does, len(each), sum(critical.error for _, critical in each), each[-1])
        for does, each in by_doing.items()
    ]
    return sorted(groups, key=lambda group: -group.size)


def mode_words(mode: str) -> str:
    """A mode in words; one that isn't known says itself."""
    return MODES.get(mode, mode)


def _groups(episodes: Sequence[Episode], name: Callable[[Episode], str]) -> tuple[Group, ...]:
    counts = Counter(map(name, episodes))
    examples = {name(episode): episode for episode in reversed(episodes)}
    return tuple(Group(each, count, examples[each]) for each, count in counts.most_common())


def _message(episode: Episode) -> str:
    return short(last_line(episode.error_text), 60)


_CAPS = [{mode} for mode in ("length", "calls", "turns", "observation")]


def _traits(episodes: Sequence[Episode]) -> list[Trait]:
    failed = [episode for episode in episodes if not episode.success]
    solved = [episode for episode in episodes if episode.success]
    found = []
    for name, has in traits(episodes).items():
        losers = [episode for episode in failed if has(episode)]
        winners = sum(map(has, solved))
        # Episodes out of calls all made many, for one: the table of ways to fail says that.
        says_a_cap = not winners and {episode.mode for episode in losers} in _CAPS
        if (losers or winners) and not says_a_cap:
            found.append(Trait(name, len(losers), winners, losers[0] if losers else None))
    return sorted(found, key=lambda t: abs(_excess(t, len(failed), len(solved))), reverse=True)


def _rest(episodes: Sequence[Episode], found: Sequence[Trait]) -> Trait:
    """Episodes with none of the traits that are told: how much these leave open."""
    every = traits(episodes)
    known = [every[trait.name] for trait in found]
    left = [episode for episode in episodes if not any(has(episode) for has in known)]
    failed = [episode for episode in left if not episode.success]
    example = failed[0] if failed else None
    return Trait("did none of these", len(failed), len(left) - len(failed), example)


def _excess(trait: Trait, failures: int, successes: int) -> float:
    """How much larger the trait's share is among failures."""
    return trait.failed / max(1, failures) - trait.solved / max(1, successes)


def _telling(candidates: Sequence[Trait], failures: int, successes: int) -> tuple[Trait, ...]:
    """Traits that failures have more often, at 95 % for all traits together.

    The difference of shares has an interval above 0, as wide as all traits ask for; then, without
    those found, as wide as the others ask for, and so on (Holm 1979).
    """
    if not failures or not successes:
        return ()
    found: list[Trait] = []
    left = list(candidates)
    while left:
        z = simultaneous_z(len(left))
        above = [
            trait
            for trait in left
            if difference_interval((trait.solved, successes), (trait.failed, failures), z)[0] > 0
        ]
        if not above:
            break
        found += above
        left = [trait for trait in left if trait not in above]
    return tuple(sorted(found, key=lambda t: _excess(t, failures, successes), reverse=True))


def _examples(
    failed: Sequence[Episode], kinds: Sequence[str], modes: Sequence[str]
) -> Iterable[Episode]:
    """Failures in turns: one of each kind, then a second, ...; frequent modes come first."""
    left = {
        kind: sorted((e for e in failed if e.kind == kind), key=lambda e: modes.index(e.mode))
        for kind in kinds
    }
    chosen: list[Episode] = []
    while any(left.values()) and len(chosen) < EXAMPLES:
        for kind in kinds:
            if left[kind] and len(chosen) < EXAMPLES:
                used = {e.mode for e in chosen if e.kind == kind}
                fresh = [e for e in left[kind] if e.mode not in used] or left[kind]
                chosen.append(fresh[0])
                left[kind].remove(fresh[0])
    return chosen
