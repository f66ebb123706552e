"""Credit against the paper's Figure 4, hand-computed numbers and a slow exact oracle."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY, answer_step, call_step, empty_tree, rollout

from elpo_jax.config import CreditConfig
from elpo_jax.credit import (
    group_normalized,
    hierarchical,
    hierarchical_advantages,
    to_tokens,
    tree_advantages,
)
from elpo_jax.rollout.tree import ROOT

FIGURE4 = json.loads((Path(__file__).parent / "golden" / "figure4.json").read_text())
EPS = 1e-6
REWARDS = [Fraction(-11, 10), Fraction(-6, 10), Fraction(0), Fraction(1, 3), Fraction(1)]


@st.composite
def trees(draw, max_size=24):
    size = draw(st.integers(1, max_size))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    rewards = draw(st.lists(st.sampled_from(REWARDS), min_size=size, max_size=size))
    return parents, rewards


def oracle(parents, rewards, lambda_tree):
    """Eq. 6-10 read literally, in exact arithmetic up to the square root."""
    nodes = range(len(parents))

    def children(node):
        return [child for child in nodes if parents[child] == node]

    def below(node):
        kids = children(node)
        return [leaf for kid in kids for leaf in below(kid)] if kids else [node]

    def mean(values):
        return sum(values, Fraction(0)) / len(values)

    def z_score(value, values):
        centre = mean(values)
        variance = mean([(other - centre) ** 2 for other in values])
        return float(value - centre) / (math.sqrt(variance) + EPS)

    def step_reward(node):
        kids = children(node)
        return mean([step_reward(kid) for kid in kids]) if kids else rewards[node]

    def branch(node):
        siblings = children(parents[node])
        if len(siblings) > 1:
            return z_score(step_reward(node), [step_reward(each) for each in siblings])
        return 0.0 if parents[node] == ROOT else branch(parents[node])

    leaves = [rewards[leaf] for leaf in nodes if not children(leaf)]

    def trajectory(node):
        through = below(node)
        return math.fsum(z_score(rewards[leaf], leaves) for leaf in through) / len(through)

    rows = [(float(step_reward(node)), branch(node), trajectory(node)) for node in nodes]
    return np.array([(r, b, t, lambda_tree * b + (1 - lambda_tree) * t) for r, b, t in rows]).T


def test_figure_4_to_the_printed_digits():
    credit = hierarchical_advantages(FIGURE4["parents"], FIGURE4["rewards"])
    for line in FIGURE4["printed"]:
        for node in line["nodes"]:
            row = (
                credit.step_reward[node],
                credit.hierarchical[node],
                credit.branch[node],
                credit.trajectory[node],
            )
            # A printed digit is within half a unit of its last place.
            np.testing.assert_allclose(row, line["row"], rtol=0, atol=5e-4, err_msg=line["steps"])


def test_two_levels_by_hand():
    # Root: 0 {2, 3}, 1. Rewards 1, 0 under node 0 and 0 at node 1.
    credit = hierarchical_advantages([-1, -1, 0, 0], [9.0, 0.0, 1.0, 0.0], 0.25, 1e-9)
    third, wide = 1 / math.sqrt(2), math.sqrt(2)  # of the leaves {0, 1, 0}: mean 1/3, std sqrt(2)/3
    np.testing.assert_allclose(credit.step_reward, [0.5, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(credit.branch, [1.0, -1.0, 1.0, -1.0], rtol=1e-8)
    np.testing.assert_allclose(
        credit.trajectory, [(wide - third) / 2, -third, wide, -third], rtol=1e-8
    )
    np.testing.assert_allclose(
        credit.hierarchical, 0.25 * credit.branch + 0.75 * credit.trajectory, rtol=1e-15
    )
    assert all(values.dtype == np.float64 for values in credit)


@PROPERTY
@given(trees(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_equals_the_exact_oracle(tree, lambda_tree):
    parents, rewards = tree
    credit = hierarchical_advantages(parents, [float(r) for r in rewards], lambda_tree, EPS)
    expected = oracle(parents, rewards, lambda_tree)
    for values, row in zip(credit, expected, strict=True):
        np.testing.assert_allclose(values, row, rtol=1e-9, atol=1e-9)
    assert (credit.branch[expected[1] == 0] == 0).all()  # equal siblings: exactly 0


@PROPERTY
@given(trees(), st.sampled_from([-1.1, -0.6, 0.1, 1 / 3]))
def test_equal_rewards_give_exactly_zero(tree, reward):
    parents, _ = tree
    credit = hierarchical_advantages(parents, [reward] * len(parents))
    assert (credit.step_reward == reward).all()
    assert not credit.branch.any()
    assert not credit.trajectory.any()


@PROPERTY
@given(trees(), st.floats(-100, 100), st.floats(0.01, 100))
def test_shift_and_scale_of_rewards(tree, shift, scale):
    parents, rewards = tree
    plain = np.array(rewards, float)
    credit = hierarchical_advantages(parents, plain)
    moved = hierarchical_advantages(parents, scale * plain + shift, eps=scale * EPS)
    np.testing.assert_allclose(moved.step_reward, scale * credit.step_reward + shift, atol=1e-9)
    np.testing.assert_allclose(moved.hierarchical, credit.hierarchical, rtol=1e-6, atol=1e-6)


@PROPERTY
@given(trees(), st.randoms(use_true_random=False))
def test_names_of_nodes_do_not_matter(tree, random):
    parents, rewards = tree
    order, ready = [], [node for node, parent in enumerate(parents) if parent == ROOT]
    while ready:  # a random order with parents before children
        order.append(ready.pop(random.randrange(len(ready))))
        ready += [node for node, parent in enumerate(parents) if parent == order[-1]]
    renamed = [order.index(parents[node]) if parents[node] != ROOT else ROOT for node in order]
    plain = np.array(rewards, float)
    for before, after in zip(
        hierarchical_advantages(parents, plain),
        hierarchical_advantages(renamed, plain[order]),
        strict=True,
    ):
        np.testing.assert_allclose(after, before[order], rtol=1e-9, atol=1e-9)


def test_siblings_that_differ_by_rounding_are_equal():
    # Nodes 0 and 1 have the same three rewards in another order; their means differ by an ulp.
    rewards = [0.0, 0.0, -1.1, 1.0, 1.0, 1.0, 1.0, -1.1]
    credit = hierarchical_advantages([-1, -1, 0, 0, 0, 1, 1, 1], rewards)
    assert credit.step_reward[0] != credit.step_reward[1]
    assert credit.branch[:2].tolist() == [0.0, 0.0]


def test_rewards_above_leaves_are_not_read():
    credit = hierarchical_advantages([-1, 0, 0], [math.nan, 1.0, 0.0])
    np.testing.assert_allclose(credit.step_reward, [0.5, 1.0, 0.0])


def test_an_empty_tree_has_no_values():
    assert all(values.shape == (0,) for values in hierarchical_advantages([], []))


@pytest.mark.parametrize(
    ("parents", "rewards", "settings", "message"),
    [
        ([-1, 1], [0.0, 0.0], {}, r"parents\[1\]: expected -1 or an earlier node, got 1"),
        ([-2], [0.0], {}, r"parents\[0\]: .* got -2"),
        ([0], [0.0], {}, r"parents\[0\]"),
        ([-1, 2, 0], [0.0] * 3, {}, r"parents\[1\]"),
        ([-1.0], [0.0], {}, "expected integers, got dtype float64"),
        ([True], [0.0], {}, "expected integers"),
        ([-1], [0.0, 1.0], {}, r"got \(1,\) and \(2,\)"),
        ([[-1]], [[0.0]], {}, r"expected two arrays of one shape \[N\]"),
        (-1, 0.0, {}, "expected two arrays"),
        ([-1], [math.nan], {}, r"rewards\[0\]: expected a finite reward"),
        ([-1, -1], [0.0, math.inf], {}, r"rewards\[1\]"),
        ([-1], ["1"], {}, "rewards: expected real numbers"),
        ([-1], [None], {}, "rewards: expected real numbers"),
        ([-1], [0.0], {"lambda_tree": 1.1}, r"lambda_tree: expected a number in \[0, 1\], got 1.1"),
        ([-1], [0.0], {"lambda_tree": math.nan}, "lambda_tree"),
        ([-1], [0.0], {"eps": 0.0}, "eps: expected a finite number above 0, got 0.0"),
        ([-1], [0.0], {"eps": math.nan}, "eps"),
    ],
)
def test_wrong_input(parents, rewards, settings, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_advantages(parents, rewards, **settings)


def small_tree():
    """Node 0 is shared by rollouts 0 (nodes 0, 1) and 1 (nodes 0, 2, 3)."""
    tree = empty_tree()
    tree.add(rollout(0, ROOT, [call_step([1, 1], 2), answer_step([1, 1])], True, 1.0))
    tree.add(rollout(1, 0, [call_step([1] * 3, 1), answer_step([1] * 3)], False, 0.0))
    return tree


def test_hierarchical_credit_of_tokens():
    tree = small_tree()
    values = tree_advantages(tree, CreditConfig(lambda_tree=0.5)).hierarchical
    np.testing.assert_allclose(values, [0, 1, -1, -1], atol=1e-5)
    ((first, second, third, fourth),) = hierarchical([tree], CreditConfig(lambda_tree=0.5))
    np.testing.assert_array_equal(first, [values[0]] * 2 + [0, 0])
    np.testing.assert_array_equal(second, [values[1]] * 2)
    np.testing.assert_array_equal(third, [values[2]] * 3 + [0])
    np.testing.assert_array_equal(fourth, [values[3]] * 3)
    assert first.dtype == np.float64


def test_group_credit_weighs_shared_nodes_by_trajectory_length():
    # Rewards 1 and 0: std (ddof 1) is sqrt(1/2). |tau| is 4 and 8.
    high = 0.5 / (math.sqrt(0.5) + EPS)
    ((first, second, third, fourth),) = group_normalized([small_tree()], CreditConfig())
    shared = (high / 4 - high / 8) / (1 / 4 + 1 / 8)
    np.testing.assert_allclose(first, [shared, shared, 0, 0])
    np.testing.assert_allclose(second, [high, high])
    np.testing.assert_allclose(third, [-high] * 3 + [0])
    np.testing.assert_allclose(fourth, [-high] * 3)


@pytest.mark.parametrize("rewards", [[-0.6] * 3, [1.0]])
def test_group_without_variance_gets_exactly_zero(rewards):
    tree = empty_tree()
    for ordinal, reward in enumerate(rewards):
        tree.add(rollout(ordinal, ROOT, [answer_step()], False, reward))
    assert not np.concatenate(group_normalized([tree], CreditConfig())[0]).any()


def test_four_independent_rollouts_by_hand():
    tree = empty_tree()
    for ordinal, reward in enumerate([1.0, 0.0, 0.0, 1.0]):
        tree.add(rollout(ordinal, ROOT, [answer_step([1, 1])], reward > 0, reward))
    (nodes,) = group_normalized([tree], CreditConfig())
    np.testing.assert_allclose(np.array(nodes)[:, 0], [0.8660, -0.8660, -0.8660, 0.8660], atol=1e-4)


def test_to_tokens_wants_a_value_per_node():
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got \(3,\)"):
        to_tokens(small_tree(), np.zeros(3))


def test_a_large_and_deep_tree():
    random = np.random.default_rng(0)
    size = 20_000
    parents = [-1, *[int(random.integers(max(-1, node - 5), node)) for node in range(1, size)]]
    credit = hierarchical_advantages(parents, random.normal(size=size))
    assert np.isfinite(credit.hierarchical).all()
