"""Tools that take their time: what a slow one costs other rollouts, and what waiting side by side
saves.

Episodes are scripted (see `benchmarks.episodes`); a slow tool sleeps.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.episodes import NEVER, Script, ScriptedCall, ScriptedEnvironment, scripted_tasks
from benchmarks.record import Row
from benchmarks.shapes import Shape, one_device
from benchmarks.timing import interleaved
from elpo_jax.config import EpisodeConfig, RolloutConfig, SamplerConfig
from elpo_jax.rollout.episode import Outcome, Progress, Turn
from elpo_jax.rollout.independent import independent
from elpo_jax.sampler.engine import Engine
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler
from elpo_jax.sampler.tool_workers import Limit, ToolWorkers
from elpo_jax.tools.base import Observation

ROLLOUTS = 16
SECONDS = 2.0  # of the slow tool
PROMPT, TURNS, TURN, ANSWER = 32, 6, 48, 8  # tokens, turns of an episode


@dataclass(frozen=True)
class SlowCall(ScriptedCall):
    """A call that sleeps."""

    seconds: float

    def run(self) -> tuple[Mapping[str, Any], list[Observation]]:
        time.sleep(self.seconds)
        return super().run()


class SlowEnvironment(ScriptedEnvironment):
    """Plays scripts whose first call may be slow, and notes when rollouts end.

    Attributes:
      ended: `time.perf_counter()` of each task's end, by id.
    """

    def __init__(self, scripts: Mapping[str, Script], slow: frozenset[str], seconds: float):
        super().__init__(scripts, success=0.0)
        self._slow = {id(scripts[name]): seconds for name in slow}
        self.ended: dict[str, float] = {}

    def finish_turn(self, progress: Progress, turn: Turn) -> Outcome | ScriptedCall:
        call = super().finish_turn(progress, turn)
        seconds = self._slow.get(id(progress.states["script"]))
        if isinstance(call, Outcome) or progress.turns or not seconds:
            return call
        return SlowCall(call.states, seconds)

    def conclude(self, task, *rest):
        self.ended[task.id] = time.perf_counter()
        return super().conclude(task, *rest)


class BlockingWorkers(ToolWorkers):
    """Runs a call where it is submitted, as a sampler without threads would."""

    def submit(self, work: Callable[[], Any], what: str, limit: Limit) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work())
        return future


class Rollouts:
    """`ROLLOUTS` independent rollouts.

    Args:
      shape: of the policy.
      slow: how many of them begin with a slow call.
      blocking: whether calls hold up everything else.
      seconds: of a slow call.
    """

    def __init__(self, shape: Shape, slow: int, blocking: bool = False, seconds: float = SECONDS):
        random = np.random.default_rng(0)

        def tokens(count: int) -> np.ndarray:
            return random.integers(0, shape.vocab_size, count, np.int32)

        def script(_: int) -> Script:
            answers = tuple(tokens(ANSWER) for _ in range(TURNS - 1))
            return Script(tokens(PROMPT), (TURN,) * TURNS, answers)

        self._tasks, scripts = scripted_tasks(ROLLOUTS, script)
        self._slow = frozenset(list(scripts)[:slow])
        self._environment = SlowEnvironment(scripts, self._slow, seconds)
        sampler = SamplerConfig(lanes=ROLLOUTS, rows=ROLLOUTS, tool_workers=ROLLOUTS)
        length = max(each.length for each in scripts.values())
        engine = Engine(shape.model, sampler, length, one_device())
        self._scheduler = Scheduler(engine, self._environment, sampler, EpisodeConfig(), NEVER)
        if blocking:
            self._scheduler._workers = BlockingWorkers(1)
        self._params = shape.params()

    def __call__(self) -> float:
        """Seconds until the last rollout without a slow call has ended; of all, if all have one."""
        self._environment.ended.clear()
        started = time.perf_counter()
        self._scheduler.run(
            self._params,
            jax.random.key(1),
            self._tasks,
            partial(independent, config=RolloutConfig(budget=1)),
            SamplingSettings(),
        )
        ended = self._environment.ended
        others = [name for name in ended if name not in self._slow] or list(ended)
        return max(ended[name] for name in others) - started


def overlap(shape: Shape, repetitions: int, seconds: float = SECONDS) -> list[Row]:
    """Two rows: the others' time beside one slow rollout, and the time of all with slow calls."""
    one, none = (Rollouts(shape, slow, seconds=seconds) for slow in (1, 0))
    beside, alone = _seconds_of([one, none], repetitions)
    every = [Rollouts(shape, ROLLOUTS, blocking, seconds) for blocking in (False, True)]
    for rollouts in every:
        rollouts()
    together, one_by_one = interleaved(every, repetitions)
    return [
        Row(
            f"{ROLLOUTS - 1} rollouts beside one with a {seconds:g} s tool, {shape.name}",
            "s",
            tuple(beside),
            "no slow tool",
            tuple(alone),
            "until the last of the others has ended",
        ),
        Row(
            f"{ROLLOUTS} rollouts with a {seconds:g} s tool each, {shape.name}",
            "s",
            tuple(together),
            "one call after the other",
            tuple(one_by_one),
            f"the tools take {ROLLOUTS * seconds:g} s in all",
        ),
    ]


def _seconds_of(contenders: Sequence[Callable[[], float]], repetitions: int) -> list[list[float]]:
    """What the contenders say of their runs, in turn, after a warm-up of each."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for number in range(1 + repetitions):
        for contender, times in zip(contenders, seconds, strict=True):
            said = contender()
            if number:
                times.append(said)
    return seconds
