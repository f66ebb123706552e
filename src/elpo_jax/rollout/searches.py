"""Searches for the first irrecoverable step of a failed trajectory (ELPO 4.1, Algorithm 1).

Source: https://arxiv.org/abs/2602.09598.

A search narrows candidates low..high. It proposes an anchor m with a number of suffixes to sample
from prefix(m), everything up to and with step m's output, and is told what came of them. Any
success proves the prefix recoverable, so the critical step is later than m; as many failures as
planned count as irrecoverable, so it is m or earlier. A search knows no tree and no budget.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from elpo_jax.rollout.tree import Probe


@dataclass(frozen=True)
class Failure:
    """A failed trajectory as searches see it.

    Attributes:
      calls: K, its tool-call steps.
      answered: step K+1, the answer, follows; False where a cap cut the trajectory.
      suffixes: planned suffixes X_m at anchors m = 1, 2, ... (Eq. 5), for every anchor that another
        step follows; 0 where the caps leave prefix(m) no room.
    """

    calls: int
    answered: bool
    suffixes: tuple[int, ...]


class Search(Protocol):
    """A running search. `low` and `high` are the first and last step still possible."""

    low: int
    high: int

    def propose(self) -> tuple[int, int] | None:
        """The next anchor and its number of suffixes (0: no room), or None when resolved."""
        ...

    def observe(self, probe: Probe) -> None:
        """Takes in the outcome at the proposed anchor, perhaps of fewer suffixes than planned."""
        ...


@dataclass
class Bisection:
    """Halves the candidates until one is left.

    Fewer suffixes than planned, none of them right, leave the candidates as they are: Eq. 5 says
    how many failures an anchor needs. (A success is proof however few there were.)

    Attributes:
      low, high: the candidates left.
      suffixes: see `Failure`.
      bound: 0 to take the midpoint of low..high, 1 of the anchors low..high-1.
    """

    low: int
    high: int
    suffixes: tuple[int, ...]
    bound: int

    def propose(self) -> tuple[int, int] | None:
        if self.low == self.high:
            return None
        step = (self.low + self.high - self.bound) // 2
        return step, self.suffixes[step - 1]

    def observe(self, probe: Probe) -> None:
        if probe.successes:
            self.low = probe.step + 1
        elif probe.suffixes >= self.suffixes[probe.step - 1]:
            self.high = probe.step


def algorithm1(failure: Failure) -> Bisection:
    """Algorithm 1 as printed: L=1, R=K, until L=R. It never names the answer step."""
    return Bisection(1, max(failure.calls, 1), failure.suffixes, bound=0)


def confirm(failure: Failure) -> Bisection:
    """The closed search: while L <= R, recoverable L=m+1, else R=m-1; here high = R+1.

    Every candidate it names has been probed, or is the last one: the answer step K+1, or K where a
    cap cut the trajectory.
    """
    return Bisection(1, max(failure.calls + failure.answered, 1), failure.suffixes, bound=1)


SEARCHES: Mapping[str, Callable[[Failure], Search]] = {
    "algorithm1": algorithm1,
    "confirm": confirm,
}
