"""An environment without text, for tests of the scheduler: what happens is a function of tokens."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from elpo_jax.rollout.episode import Outcome, Progress
from elpo_jax.rollout.tree import Exchange, Rollout, Step
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tools.base import Observation, ToolFailure

END_OF_TURN = 0
MAX_LENGTH = 96
MAX_TURN = 10


def task(number: int) -> Task:
    return Task(f"train/{number}", "scripted", f"question {number}", {}, 2)


def mix(*numbers: int) -> int:
    return int(np.random.SeedSequence([int(n) & 0xFFFFFFFF for n in numbers]).generate_state(1)[0])


def never(seed):
    return False


@dataclass(frozen=True)
class ScriptedCall:
    """Stands in for `PendingCalls`: answers after a delay with what depends on the call alone."""

    seed: int
    delay: float
    breaks: Callable[[int], bool]
    hangs: Callable[[int], bool]
    gate: threading.Event
    count: int = 1

    def run(self):
        time.sleep(self.delay)
        if self.hangs(self.seed):
            self.gate.wait()
        if self.breaks(self.seed):
            raise ToolFailure("broken on purpose")
        return {"calls": self.seed}, [Observation(str(self.seed))]


class ScriptedEnvironment:
    """Calls a tool after most turns; three quarters of the answers are failures.

    Args:
      delays: seconds a tool may take, drawn anew at every call, so no two runs have the same
      timing.
      breaks: says by its turn's hash, at each try, whether a call breaks.
      hangs: says so of the calls that wait for the environment's `gate`.
      breaks_verifier: says by its answer's hash, at each try, whether the verifier breaks.
    """

    def __init__(self, delays=(0.0,), breaks=never, hangs=never, breaks_verifier=never):
        self._timing = np.random.default_rng()
        self._delays = delays
        self._breaks = breaks
        self._hangs = hangs
        self._breaks_verifier = breaks_verifier
        self.gate = threading.Event()

    def prompt_ids(self, task):
        number = int(task.id.split("/")[1])
        rng = np.random.default_rng(number)
        return rng.integers(1, 32, 5 + mix(number) % 30).astype(np.int32)

    def begin(self, task, prompt_length):
        return Progress(0, 0, prompt_length, prompt_length, {}, max_calls=3)

    def resume(self, tree, node):
        path = tree.path(node)
        prompt, turns = len(tree.prompt), len(path)
        length = prompt + sum(len(tree.nodes[i].step.tokens) for i in path)
        return Progress(turns, turns, prompt, length, tree.nodes[node].step.states, max_calls=3)

    def turn_budget(self, progress):
        return min(MAX_TURN, MAX_LENGTH - progress.length)

    def finish_turn(self, progress, turn):
        seed = mix(*turn.tokens, progress.length)
        if not turn.stopped and progress.length + len(turn.tokens) >= MAX_LENGTH:
            return self._final(progress, turn, "length")
        if seed % 4 == 0 or progress.turns >= progress.max_calls:
            return self._final(progress, turn, "answer")
        delay = float(self._timing.choice(self._delays))
        return ScriptedCall(seed, delay, self._breaks, self._hangs, self.gate)

    def observe(self, progress, turn, pending, states, observations):
        (observation,) = observations
        seed = int(observation.text)
        answer = np.random.default_rng(seed).integers(1, 32, 1 + seed % 22).astype(np.int32)
        length = progress.length + len(turn.tokens) + len(answer)
        if length >= MAX_LENGTH:
            return self._final(progress, turn, "observation")
        step = self._step(turn, answer, (Exchange(None, observation),), states, True)
        after = replace(progress, turns=progress.turns + 1, length=length, states=states)
        return Outcome(step, after, None)

    def verify(self, task, answer):
        time.sleep(float(self._timing.choice(self._delays)))
        seed = mix(*answer.tokens)
        if self._breaks_verifier(seed):
            raise ToolFailure("the verifier is broken on purpose")
        return Verdict(seed % 4 == 0, None)

    def conclude(self, task, ordinal, parent, steps, progress, end, verdict):
        success = verdict.success
        return Rollout(ordinal, parent, tuple(steps), end, success, 1.0 if success else -1.0, None)

    def _final(self, progress, turn, end):
        exchanges = () if end == "answer" else (Exchange(None, None),)
        step = self._step(turn, np.zeros(0, np.int32), exchanges, progress.states, False)
        return Outcome(step, progress, end)

    def _step(self, turn, answer, exchanges, states, is_open):
        zeros = np.zeros(len(answer), np.float32)
        return Step(
            tokens=np.concatenate([turn.tokens, answer]),
            is_policy=np.arange(len(turn.tokens) + len(answer)) < len(turn.tokens),
            log_probs=np.concatenate([turn.log_probs, zeros]),
            entropies=np.concatenate([turn.entropies, zeros]),
            exchanges=exchanges,
            states=states,
            is_open=is_open,
        )
