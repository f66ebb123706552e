"""Episodes of fixed lengths, so that every contender does the same work with any parameters.

`ScriptedEnvironment` takes the place of `rollout.episode.Environment` under the real scheduler. The
policy draws every token of its turns, but a script says how long a turn is and what answers it, and
a hash says which rollouts succeed. So the work depends neither on what is drawn nor on rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elpo_jax.rollout.episode import NO_ANSWER, Outcome, Progress, Turn
from elpo_jax.rollout.tree import Exchange, Rollout, Step, Tree
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tools.base import Observation

NEVER = ()  # no token ends a turn


@dataclass(frozen=True, eq=False)
class Script:
    """The shape of one task's episodes.

    Attributes:
      prompt: int32 [P].
      turns: tokens of each assistant turn, the answer's last.
      answers: int32 [A] each; what follows a turn but the last one.
    """

    prompt: np.ndarray
    turns: tuple[int, ...]
    answers: tuple[np.ndarray, ...]

    @property
    def length(self) -> int:
        """Tokens of a whole episode."""
        return len(self.prompt) + sum(self.turns) + sum(map(len, self.answers))


@dataclass(frozen=True)
class ScriptedCall:
    """Stands in for `PendingCalls`; its tool answers at once."""

    states: Mapping[str, Any]
    count = 1

    def run(self) -> tuple[Mapping[str, Any], list[Observation]]:
        return self.states, [Observation("")]


class ScriptedEnvironment:
    """Plays scripts; see the module's words.

    Args:
      scripts: by task id.
      success: share of rollouts that succeed.
    """

    def __init__(self, scripts: Mapping[str, Script], success: float):
        self._scripts = scripts
        self._success = success

    def prompt_ids(self, task: Task) -> np.ndarray:
        return self._scripts[task.id].prompt

    def begin(self, task: Task, prompt_length: int) -> Progress:
        script = self._scripts[task.id]
        return Progress(0, 0, prompt_length, prompt_length, {"script": script}, len(script.answers))

    def resume(self, tree: Tree, node: int) -> Progress:
        path = tree.path(node)
        begun = self.begin(tree.task, len(tree.prompt))
        length = begun.length + sum(len(tree.nodes[i].step.tokens) for i in path)
        return replace(begun, turns=len(path), calls=len(path), length=length)

    def turn_budget(self, progress: Progress) -> int:
        return progress.states["script"].turns[progress.turns]

    def finish_turn(self, progress: Progress, turn: Turn) -> Outcome | ScriptedCall:
        if progress.turns < progress.max_calls:
            return ScriptedCall(progress.states)
        step = _step(turn, np.zeros(0, np.int32), (), progress.states)
        return Outcome(step, progress, "answer")

    def observe(
        self,
        progress: Progress,
        turn: Turn,
        pending: ScriptedCall,
        states: Mapping[str, Any],
        observations: Sequence[Observation],
    ) -> Outcome:
        answer = progress.states["script"].answers[progress.turns]
        length = progress.length + len(turn.tokens) + len(answer)
        after = replace(progress, turns=progress.turns + 1, length=length)
        exchanges = tuple(Exchange(None, each) for each in observations)
        return Outcome(_step(turn, answer, exchanges, states), after, None)

    def verify(self, task: Task, answer: Step) -> Verdict:
        return NO_ANSWER  # a script's success is drawn by the rollout's ordinal, see `conclude`

    def conclude(
        self,
        task: Task,
        ordinal: int,
        parent: int,
        steps: Sequence[Step],
        progress: Progress,
        end: str,
        verdict: Verdict,
    ) -> Rollout:
        draw = np.random.default_rng([int(task.id.rpartition("/")[2]), ordinal]).random()
        success = bool(draw < self._success)
        reward = 1.0 if success else -1.0
        return Rollout(ordinal, parent, tuple(steps), end, success, reward, None)


def _step(
    turn: Turn, answer: np.ndarray, exchanges: tuple[Exchange, ...], states: Mapping[str, Any]
) -> Step:
    nothing = np.zeros(len(answer), np.float32)
    return Step(
        tokens=np.concatenate([turn.tokens, answer]),
        is_policy=np.arange(len(turn.tokens) + len(answer)) < len(turn.tokens),
        log_probs=np.concatenate([turn.log_probs, nothing]),
        entropies=np.concatenate([turn.entropies, nothing]),
        exchanges=exchanges,
        states=states,
        is_open=bool(exchanges),
    )


def scripted_tasks(
    count: int, script: Callable[[int], Script]
) -> tuple[list[tuple[int, Task]], dict[str, Script]]:
    """`count` tasks as the scheduler takes them, and their scripts by task id."""
    tasks = [Task(f"scripted/{i}", "scripted", "", {}, 0) for i in range(count)]
    return list(enumerate(tasks)), {task.id: script(i) for i, task in enumerate(tasks)}
