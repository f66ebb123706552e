"""The order of training tasks: shuffled epochs, exact resume at any point, prompts that fit."""

import json

import pytest

from elpo_jax.data_order import TrainingTasks, fitting, shuffled
from elpo_jax.errors import UsageError
from elpo_jax.tasks.base import TRAIN, Task


class Numbered:
    """A suite whose tasks are numbers; the prompt of number n has n tokens."""

    name = "numbers"

    def __init__(self, count=None):
        self.count = count

    def size(self, split):
        return self.count

    def task(self, split, index):
        return Task(f"{split}/{index}", "number", str(index), {}, 2)

    def prompt_ids(self, task):
        return [0] * int(task.question)


def draws_and_indices(batch):
    return [(draw, int(task.question)) for draw, task in batch]


def stream(indices, seed=0, count=None):
    return TrainingTasks(Numbered(count), indices, seed)


def test_an_endless_split_is_taken_from_its_start_whatever_the_seed():
    tasks = stream(None, seed=5)
    assert draws_and_indices(tasks.take(3)) == [(0, 0), (1, 1), (2, 2)]
    assert draws_and_indices(tasks.take(2)) == [(3, 3), (4, 4)]


@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_an_epoch_has_every_task_once_in_an_order_of_its_own(size):
    used = [3 * i + 1 for i in range(size)]
    pairs = draws_and_indices(stream(used, seed=1).take(4 * size))
    assert [draw for draw, _ in pairs] == list(range(4 * size))
    epochs = [[index for _, index in pairs[i * size : (i + 1) * size]] for i in range(4)]
    assert all(sorted(epoch) == used for epoch in epochs)
    if size > 2:
        assert len({tuple(epoch) for epoch in [*epochs, used]}) == 5


def test_the_order_is_a_function_of_the_seed():
    def order(seed):
        return tuple(index for _, index in draws_and_indices(stream(range(200), seed).take(400)))

    assert order(3) == order(3)
    assert len({order(seed) for seed in range(8)}) == 8
    # No seed's second epoch is its neighbour's first.
    assert order(0)[200:] != order(1)[:200]


def test_the_order_stays_what_it_is():
    # Published runs on files can't be repeated if this changes.
    order = shuffled(range(100), 0)
    assert [order[i] for i in range(8)] == [96, 77, 31, 79, 9, 70, 28, 83]
    assert [order[i] for i in range(100, 108)] == [24, 72, 1, 95, 41, 99, 3, 73]


@pytest.mark.parametrize("indices", [None, range(7, 107, 5)])
def test_a_restored_iterator_gives_the_same_tail(indices):
    whole = draws_and_indices(stream(indices, seed=7).take(25))
    for taken in range(26):
        before = stream(indices, seed=7)
        before.take(taken)
        state = json.loads(json.dumps(before.state()))
        after = stream(indices, seed=7)
        after.take(3)  # wherever it stood
        after.restore(state)
        assert after.state() == state
        assert draws_and_indices(after.take(25 - taken)) == whole[taken:]


def test_a_state_is_not_changed_by_what_is_taken_later():
    tasks = stream([1, 2, 3])
    tasks.take(2)
    state = tasks.state()
    kept = json.dumps(state)
    tasks.take(5)
    assert json.dumps(state) == kept


def test_prompts_that_are_too_long_are_left_out():
    suite = Numbered(10)
    assert fitting(suite, suite, TRAIN, max_length=4) == [0, 1, 2, 3]
    assert fitting(suite, suite, TRAIN, max_length=100) == list(range(10))


def test_an_endless_split_keeps_its_prompts_short_itself():
    endless = Numbered()
    endless.prompt_ids = lambda task: [0] * (int(task.question) % 6)
    assert fitting(endless, endless, TRAIN, max_length=6) is None
    with pytest.raises(UsageError) as caught:
        fitting(endless, endless, TRAIN, max_length=5)
    assert caught.value.problems == (
        "episode.max_length: expected more than 5, the tokens of a prompt of suite.name=numbers, "
        "got 5",
    )


def test_a_split_without_a_prompt_that_fits_is_an_error():
    suite = Numbered(10)
    suite.prompt_ids = lambda task: [0] * (8 + int(task.question))
    with pytest.raises(UsageError) as caught:
        fitting(suite, suite, TRAIN, max_length=8)
    assert caught.value.problems == (
        "episode.max_length: expected more than 8, the tokens of the shortest prompt of "
        "data.train, got 8",
    )
