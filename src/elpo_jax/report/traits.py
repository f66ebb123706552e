"""Traits that an episode may have. They know no suite and no tool."""

from collections import Counter
from collections.abc import Callable, Sequence

from elpo_jax.report.documents import Episode

# From this share of the tasks on, and at least so many, a number that nothing gave is a constant
# that the policy knows: Avogadro's, or the 100 of percentages.
CONSTANT_SHARE, CONSTANT_TASKS = 0.05, 3

# In sentences such as '12 of the 40 failures called no tool; 3 of the 60 solved episodes did.'
_TRAITS: dict[str, Callable[[Episode], bool]] = {
    "asked a tool about something that neither the question nor a tool named": lambda e: bool(
        e.origins.names
    ),
    "answered another number than the last tool output": lambda e: e.drifts,
    "called no tool": lambda e: not e.calls,
    "repeated a call word for word": lambda e: e.repeats,
    "saw a tool error": lambda e: e.error is not None,
    "made fewer calls than the solver": lambda e: (
        e.solver_calls is not None and len(e.calls) < e.solver_calls
    ),
    "made more calls than the solver": lambda e: (
        e.solver_calls is not None and len(e.calls) > e.solver_calls
    ),
}


def traits(episodes: Sequence[Episode]) -> dict[str, Callable[[Episode], bool]]:
    """All traits; which numbers are made up depends on what the other episodes use."""
    constants = _constants(episodes)
    return _TRAITS | {
        "put a number into a call that neither the question nor a tool gave": lambda e: bool(
            e.origins.numbers - constants
        )
    }


def _constants(episodes: Sequence[Episode]) -> set[float]:
    """Numbers that calls of many tasks hold although nothing gave them."""
    uses = {(number, episode.task) for episode in episodes for number in episode.origins.numbers}
    tasks = len({episode.task for episode in episodes})
    least = max(CONSTANT_TASKS, CONSTANT_SHARE * tasks)
    return {number for number, count in Counter(n for n, _ in uses).items() if count >= least}
