"""A task's growth: waves handed over whole, dropped rollouts replaced, and when it is given up."""

import numpy as np
import pytest
from worlds import answer_step, call_step, empty_tree, rollout

from elpo_jax.config import RolloutConfig
from elpo_jax.rollout.bel import bel
from elpo_jax.rollout.controller import Wave
from elpo_jax.rollout.growth import Growth
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.statistics import summarize
from elpo_jax.rollout.tree import ROOT


def growing(waves, max_drops=3):
    """A growth whose controller asks for waves of these sizes; and what it was handed."""
    handed = []

    def controller():
        for size in waves:
            leaves = yield Wave((ROOT,) * size)
            handed.append([leaf.ordinal for leaf in leaves])

    return Growth(0, empty_tree(), controller(), max_drops), handed


def made(request):
    return rollout(request.ordinal, request.parent, [answer_step()], False)


def test_a_wave_is_handed_over_whole_and_in_order():
    growth, handed = growing([3, 2])
    first = growth.start()
    assert [request.ordinal for request in first] == [0, 1, 2]
    assert growth.finish(made(first[2])) == growth.finish(made(first[0])) == []
    second = growth.finish(made(first[1]))
    assert handed == [[0, 1, 2]]
    assert [request.ordinal for request in second] == [3, 4]
    assert growth.tree.first_wave == 3


def test_the_third_drop_gives_the_task_up_and_the_second_does_not():
    growth, handed = growing([2])
    first = growth.start()
    assert growth.drop(first[0]) == []
    (third,) = growth.finish(made(first[1]))
    (fourth,) = growth.drop(third)
    assert (third.ordinal, fourth.ordinal, growth.drops) == (2, 3, 2)
    assert not growth.is_over
    assert growth.drop(fourth) == []
    assert growth.is_over
    assert growth.is_abandoned
    assert handed == []


def test_a_task_that_two_drops_spared_is_done():
    growth, handed = growing([1])
    (request,) = growth.start()
    for _ in range(2):
        (request,) = growth.drop(request)
    assert growth.finish(made(request)) == []
    assert growth.tree.first_wave == len(growth.tree.leaves) == 1
    assert (growth.is_over, growth.is_abandoned, handed) == (True, False, [[2]])


def test_an_empty_wave_is_refused():
    growth, _ = growing([0])
    with pytest.raises(ValueError, match="at least one rollout"):
        growth.start()


@pytest.mark.parametrize("strategy", [bel, independent])
def test_unaided_success_is_the_policys_under_every_strategy(strategy):
    """Half the tasks are solved with probability 0.1, half with 0.9: 0.5 on average.

    BEL's full rollouts all taken together show 0.58, since a task that is solved gets more of them.
    """
    random = np.random.default_rng(0)
    trees = []
    for task in range(600):
        tree = empty_tree()
        growth = Growth(task, tree, strategy(tree, RolloutConfig(budget=16)), max_drops=1)
        waiting = growth.start()
        while waiting:
            request = waiting.pop(0)
            right = bool(random.random() < (0.1, 0.9)[task % 2])
            steps = [call_step(), answer_step()] if request.parent == ROOT else [answer_step()]
            waiting += growth.finish(rollout(request.ordinal, request.parent, steps, right))
        trees.append(tree)
    # Three standard deviations of the smaller sample: 600 tasks, 3 rollouts each, variance 0.09.
    assert summarize(trees)["success/unaided"] == pytest.approx(0.5, abs=3 * (0.09 / 1800) ** 0.5)
