"""Which tasks a run takes, and in which order: Grain's iterator, whose state a checkpoint holds.

The tasks of a finite split come in a new order of the seed each epoch; those of an endless one from
index 0 up. What is random about a task's rollouts depends on its draw, not on the task.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grain

from elpo_jax.errors import UsageError
from elpo_jax.rollout.episode import Environment
from elpo_jax.tasks.base import TRAIN, Suite, Task
from elpo_jax.tasks.files import KEYS

_LOOKED_AT = 256  # tasks of an endless split


def shuffled(indices: Sequence[int], seed: int) -> Any:
    """A Grain dataset: the indices again and again, in another order of the seed each time."""
    return grain.MapDataset.source(indices).seed(seed).shuffle().repeat()


def first_tasks(suite: Suite, split: str) -> list[Task]:
    """The tasks of a split that settings are judged by: all, or of an endless one the first."""
    size = suite.size(split)
    return [suite.task(split, index) for index in range(_LOOKED_AT if size is None else size)]


def fitting(
    suite: Suite, environment: Environment, split: str, max_length: int
) -> Sequence[int] | None:
    """The indices of a finite split whose prompts have fewer tokens than an episode may have.

    None for an endless split: it is the suite's to keep prompts short, and only the first are
    looked at.

    Raises:
      UsageError: there is none; or a prompt of an endless split is too long.
    """
    lengths = [len(environment.prompt_ids(task)) for task in first_tasks(suite, split)]
    chosen = [index for index, length in enumerate(lengths) if length < max_length]
    if suite.size(split) is None:
        if len(chosen) < len(lengths):
            raise UsageError(
                [
                    f"episode.max_length: expected more than {max(lengths)}, the tokens of a "
                    f"prompt of suite.name={suite.name}, got {max_length}"
                ]
            )
        return None
    if not chosen:
        raise UsageError(
            [
                f"episode.max_length: expected more than {min(lengths)}, the tokens of the "
                f"shortest prompt of {KEYS[split]}, got {max_length}"
            ]
        )
    return chosen


class TrainingTasks:
    """The tasks of the training split, one after another without end.

    Args:
      suite: makes the tasks.
      indices: of a finite split, the tasks to take; None for an endless one.
      seed: of the order.
    """

    def __init__(self, suite: Suite, indices: Sequence[int] | None, seed: int):
        self._suite = suite
        dataset = (
            grain.MapDataset.range(sys.maxsize) if indices is None else shuffled(indices, seed)
        )
        # Without threads: an index costs nothing to compute ahead.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._iterator = iter(dataset.to_iter_dataset(options))
        self._draws = 0

    def take(self, count: int) -> list[tuple[int, Task]]:
        """The next (draw, task) pairs; draws count from 0."""
        first = self._draws
        self._draws += count
        indices = [next(self._iterator) for _ in range(count)]
        return [(first + i, self._suite.task(TRAIN, index)) for i, index in enumerate(indices)]

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON gives it back unchanged."""
        return {"draws": self._draws, "iterator": self._iterator.get_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of an iterator over the same tasks with the same seed."""
        self._draws = state["draws"]
        self._iterator.set_state(dict(state["iterator"]))
