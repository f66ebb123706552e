"""The sandbox as the rest of the program sees it: zygotes that take snippets from many threads."""

import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elpo_jax.sandbox.base import Limits, Result, Snippet, Tier
from elpo_jax.sandbox.probe import choose
from elpo_jax.sandbox.zygotes import Zygote, ZygoteFailure
from elpo_jax.tools.base import ToolFailure

if TYPE_CHECKING:  # a zygote imports this module too, and has no use for what that imports
    from elpo_jax.config import SandboxConfig

PRELOAD = ("numpy", "sympy")


@dataclass
class Counters:
    """What a sandbox has done.

    Attributes:
      snippets: that were run.
      clock_kills: of these, killed for their time by the clock, which depends on the machine.
      restarts: zygotes that broke, and were replaced.
    """

    snippets: int = 0
    clock_kills: int = 0
    restarts: int = 0


class Sandbox:
    """Runs snippets. Nothing starts before the first one, or `start`.

    Safe on many threads: as many snippets run at once as there are workers, others wait.

    Attributes:
      config: as given.
      limits: of snippets that come without.
      counters: what it has done.
      failures: why the tiers above its own weren't taken, once it has started.

    Args:
      config: workers, limits and tier.
      preload: modules that snippets find loaded, with what those import.
    """

    def __init__(self, config: "SandboxConfig", preload: Sequence[str] = PRELOAD):
        self.config = config
        self.limits = Limits(
            cpu_seconds=config.cpu_seconds,
            wall_seconds=config.wall_seconds,
            memory_mb=config.memory_mb,
            output_bytes=config.output_kb << 10,
            disk_mb=config.disk_mb,
            files=config.files,
        )
        self.counters = Counters()
        self._wanted = None if config.tier == "auto" else Tier(config.tier)
        self._allow_unsafe = config.allow_unsafe
        self._preload = tuple(preload)
        self._is_closed = False
        self._forget()
        _SANDBOXES.add(self)

    def _forget(self) -> None:
        """As when nothing was started. Also in a fork of the process: what runs is its parent's."""
        self._tier: Tier | None = None
        self.failures: list[str] = []
        self._lock = threading.Lock()  # of the start, the counters and closing
        # A zygote, or None in place of one that isn't started. The last used comes first, so that
        # only as many start as are needed.
        self._idle: queue.LifoQueue[Zygote | None] = queue.LifoQueue()
        for _ in range(self.config.workers or os.cpu_count() or 1):
            self._idle.put(None)

    def start(self) -> Tier:
        """Finds out how snippets can be locked in here, by attacking; the first time only.

        Raises:
          UsageError: in no way, or not in the one that was asked for.
        """
        with self._lock:
            if self._tier is None:
                zygote, self._tier, self.failures = choose(
                    self._wanted, self._allow_unsafe, self._preload
                )
                self._idle.get()
                self._idle.put(zygote)
                atexit.register(self.close)
            return self._tier

    def run(self, snippet: Snippet, limits: Limits | None = None) -> Result:
        """Runs a snippet; waits while all workers are busy.

        Raises:
          ToolFailure: the sandbox itself broke, twice.
          UsageError: as `start`.
        """
        self.start()
        limits = limits or self.limits
        zygote = self._idle.get()
        try:
            for is_last in (False, True):
                try:
                    zygote = zygote or self._new_zygote()
                    result, is_clock_kill = zygote.run(snippet, limits)
                except ZygoteFailure as failure:
                    if zygote is not None:
                        zygote.close()
                        with self._lock:
                            self.counters.restarts += 1
                    zygote = None
                    if is_last or self._is_closed:
                        raise ToolFailure(f"sandbox: {failure}") from None
                    continue
                except BaseException:  # an interrupt: its answer must not become the next one's
                    if zygote is not None:
                        zygote.close()
                    zygote = None
                    raise
                with self._lock:
                    self.counters.snippets += 1
                    self.counters.clock_kills += is_clock_kill
                return result
            raise AssertionError  # the last try returns or raises
        finally:
            self._give_back(zygote)

    def close(self) -> None:
        """Ends all zygotes; those at work end with their snippets. Snippets can't be run after."""
        with self._lock:
            self._is_closed = True
        waiting: list[Zygote | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._idle.get_nowait())
        for zygote in waiting:
            if zygote is not None:
                zygote.close()
            self._idle.put(None)
        atexit.unregister(self.close)

    def _new_zygote(self) -> Zygote:
        assert self._tier is not None
        if self._is_closed:
            raise ZygoteFailure("closed")
        return Zygote(self._tier, self._preload)

    def _give_back(self, zygote: Zygote | None) -> None:
        with self._lock:
            is_closed = self._is_closed
        if is_closed and zygote is not None:
            zygote.close()
            zygote = None
        self._idle.put(zygote)


_SANDBOXES: "weakref.WeakSet[Sandbox]" = weakref.WeakSet()


def _forget_all() -> None:
    for sandbox in _SANDBOXES:
        sandbox._forget()


os.register_at_fork(after_in_child=_forget_all)
