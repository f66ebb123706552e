"""A task's growth: waves handed over whole, dropped rollouts replaced, and when it is given up."""

import pytest
from worlds import answer_step, empty_tree, rollout

from elpo_jax.rollout.controller import Wave
from elpo_jax.rollout.growth import Growth
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
    assert (growth.is_over, growth.is_abandoned, handed) == (True, False, [[2]])


def test_an_empty_wave_is_refused():
    growth, _ = growing([0])
    with pytest.raises(ValueError, match="at least one rollout"):
        growth.start()
