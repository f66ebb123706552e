"""The sandboxes of a run: made as they are asked for, started together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elpo_jax.sandbox.base import Tier
from elpo_jax.sandbox.pool import PRELOAD, Counters, Sandbox

if TYPE_CHECKING:
    from elpo_jax.config import SandboxConfig

_WORDS = {
    Tier.T1: "namespaces, Landlock and seccomp",
    Tier.T2: (
        "Landlock and seccomp, without namespaces; names and sizes of this machine's files can be "
        "seen"
    ),
    Tier.T3: "namespaces and seccomp, without Landlock",
    Tier.UNSAFE: "NOTHING BUT LIMITS: the policy's code can read, change and delete what you can",
}


class Sandboxes:
    """Makes sandboxes of one config. Several share it, since each loads modules of its own.

    Args:
      config: of all of them, its workers filled in.
    """

    def __init__(self, config: "SandboxConfig"):
        self.config = config
        self._made: dict[tuple[str, ...], Sandbox] = {}

    def get(self, preload: Sequence[str] = PRELOAD) -> Sandbox:
        """The sandbox that has these modules loaded. It will be used, so `start` starts it."""
        key = tuple(preload)
        if key not in self._made:
            self._made[key] = Sandbox(self.config, key)
        return self._made[key]

    def start(self) -> Tier | None:
        """Starts what was asked for; the weakest of their tiers, None if nothing was.

        Raises:
          UsageError: nothing protects the host, see `Sandbox.start`.
        """
        tiers = [sandbox.start() for sandbox in self._made.values()]
        return max(tiers, key=list(Tier).index, default=None)

    @property
    def failures(self) -> list[str]:
        """Why stronger tiers weren't taken, of all of them, each once."""
        every = [failure for sandbox in self._made.values() for failure in sandbox.failures]
        return list(dict.fromkeys(every))

    def close(self) -> None:
        """Ends all of them."""
        for sandbox in self._made.values():
            sandbox.close()

    @property
    def counters(self) -> Counters:
        """What all of them did together."""
        each = [vars(sandbox.counters) for sandbox in self._made.values()]
        return Counters(**{name: sum(one[name] for one in each) for name in vars(Counters())})


def described(tier: Tier, failures: Sequence[str] = ()) -> str:
    """A line for the user on how the policy's code is locked in; a warning below T1.

    Args:
      tier: that holds.
      failures: of stronger ones, each with its name.
    """
    line = f"the policy's code runs in sandbox tier {tier}: {_WORDS[tier]}"
    if failures:
        line += f" (what is stronger doesn't hold here: {'; '.join(failures)})"
    return line if tier is Tier.T1 else f"WARNING: {line}"
