"""Rows, weights and micro-batches against numbers by hand and loops over trajectories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY, answer_step, call_step, empty_tree, rollout

from elpo_jax.learner.base import AGGREGATIONS
from elpo_jax.learner.batch import (
    make_micro_batches,
    place_rows,
    stack,
    token_weights,
    trajectory_rows,
)
from elpo_jax.rollout.tree import ROOT


def _fork():
    """A call (2 policy, 1 environment token) with two answers below it, of 3 and 1 tokens."""
    tree = empty_tree()
    tree.add(rollout(0, ROOT, [call_step((1.0, 1.0)), answer_step((1.0,) * 3)], False))
    tree.add(rollout(1, 0, [answer_step((1.0,))], True))
    return tree


def _single():
    """One answer of 4 tokens."""
    tree = empty_tree()
    tree.add(rollout(0, ROOT, [answer_step((1.0,) * 4)], True))
    return tree


def _rows(trees=None):
    trees = [_fork(), _single()] if trees is None else trees
    advantages = [np.arange(1.0, len(tree.nodes) + 1.0) for tree in trees]
    elc = [np.arange(len(tree.nodes)) == 1 for tree in trees]
    return trajectory_rows(trees, advantages, elc)


def test_rows_by_hand():
    long, short, single = _rows()
    assert [row.tree for row in (long, short, single)] == [0, 0, 1]
    np.testing.assert_array_equal(long.tokens, [7, 8, 9, 0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(long.mask, [0, 0, 0, 1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(long.advantages, [0, 0, 0, 1, 1, 0, 2, 2, 2])
    np.testing.assert_array_equal(long.elc, [0, 0, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(
        long.sampler_log_probs, [0, 0, 0, -0.5, -0.5, 0, -0.5, -0.5, -0.5]
    )
    np.testing.assert_array_equal(short.tokens, [7, 8, 9, 0, 1, 2, 0])
    np.testing.assert_array_equal(short.advantages, [0, 0, 0, 1, 1, 0, 3])
    np.testing.assert_array_equal(short.elc, np.zeros(7))
    np.testing.assert_array_equal(single.mask, [0, 0, 0, 1, 1, 1, 1])
    for row in (long, short, single):
        assert row.tokens.dtype == np.int32
        assert {row.mask.dtype, row.advantages.dtype, row.elc.dtype} == {np.dtype(np.float32)}


def test_advantages_may_differ_within_a_step():
    (row,) = trajectory_rows([_single()], [[np.array([1.0, 2.0, 3.0, 4.0])]], [np.array([False])])
    np.testing.assert_array_equal(row.advantages, [0, 0, 0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [  # one weight a row: of 5, 3 and 4 policy tokens in groups of 2, 2 and 1, of 2 trees
        ("seq-mean-token-mean", [1 / 20, 1 / 12, 1 / 8]),
        ("token-mean", [1 / 12, 1 / 12, 1 / 12]),
        ("seq-mean-token-sum", [1 / 4, 1 / 4, 1 / 2]),
        ("seq-mean-token-sum-norm", [1 / 40, 1 / 40, 1 / 20]),
    ],
)
def test_weights_by_hand(aggregation, expected):
    rows = _rows()
    weights = token_weights(rows, aggregation, response_limit=10)
    for row, weight, value in zip(rows, weights, expected, strict=True):
        np.testing.assert_allclose(weight, row.mask * value, rtol=1e-6)
        assert weight.dtype == np.float32


def test_shared_node_weighs_once_for_each_trajectory_through_it():
    weights = token_weights(_rows(), "seq-mean-token-mean")
    np.testing.assert_allclose(weights[0][3] + weights[1][3], 1 / 20 + 1 / 12, rtol=1e-6)


@st.composite
def _random_trees(draw):
    """One to three trees whose later rollouts branch off random nodes."""
    trees = []
    for _ in range(draw(st.integers(1, 3))):
        tree = empty_tree()
        for ordinal in range(draw(st.integers(1, 5))):
            branching = [ROOT, *(node.id for node in tree.nodes if node.step.is_open)]
            calls = [
                call_step((1.0,) * draw(st.integers(1, 3)), environment=draw(st.integers(0, 2)))
                for _ in range(draw(st.integers(0, 2)))
            ]
            steps = [*calls, answer_step((1.0,) * draw(st.integers(1, 3)))]
            tree.add(rollout(ordinal, draw(st.sampled_from(branching)), steps, False))
        trees.append(tree)
    return trees


def _loop_objective(trees, advantages, elc, ratios, aggregation, limit):
    """Eq. 12 with one Python number a token, over the trees' own nodes."""
    sequences = []  # (tree, [objective of each policy token])
    for t, tree in enumerate(trees):
        for leaf in tree.leaves:
            terms = []
            for node in tree.path(leaf.node):
                for i in np.flatnonzero(tree.nodes[node].step.is_policy):
                    r, a = ratios[t][node][i], advantages[t][node]
                    low = 1 - 0.2 - (0.115 if elc[t][node] else 0.0)
                    terms.append(min(r * a, min(max(r, low), 1.315) * a))
            sequences.append((t, terms))
    if aggregation == "token-mean":
        return np.mean([term for _, terms in sequences for term in terms])
    reduce = np.mean if aggregation == "seq-mean-token-mean" else np.sum
    groups = [
        np.mean([reduce(terms) for tree, terms in sequences if tree == t])
        for t in range(len(trees))
    ]
    return np.mean(groups) / (limit if aggregation.endswith("norm") else 1)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(trees=_random_trees(), seed=st.integers(0, 2**16))
@PROPERTY
def test_packed_arrays_hold_equation_12(aggregation, trees, seed):
    rng = np.random.default_rng(seed)
    advantages = [rng.normal(size=len(tree.nodes)) for tree in trees]
    elc = [rng.random(len(tree.nodes)) < 0.5 for tree in trees]
    ratios = [[rng.uniform(0.4, 1.6, len(n.step.tokens)) for n in tree.nodes] for tree in trees]
    rows = trajectory_rows(trees, advantages, elc)
    # The log ratio goes in where the old log-probabilities do: here minus them, new ones being 0.
    log_ratio_rows = trajectory_rows(
        trees, [[np.log(node) for node in tree] for tree in ratios], elc
    )
    batches = make_micro_batches(
        rows,
        token_weights(rows, aggregation, 17),
        [-row.advantages for row in log_ratio_rows],
        buckets=(8, 16, 32),
        micro_rows=4,
    )
    total = 0.0
    for batch in batches:
        ratio, a = np.exp(-batch.old_log_probs), batch.advantages
        clipped = np.clip(ratio, 0.8 - 0.115 * batch.elc, 1.315)
        total += float(np.sum(batch.weights * np.minimum(ratio * a, clipped * a)))
    expected = _loop_objective(trees, advantages, elc, ratios, aggregation, 17)
    assert total == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert sum(batch.mask.sum() for batch in batches) == sum(row.policy_tokens for row in rows)


def test_placement_by_hand():
    lengths = [3, 9, 4, 2, 10, 4, 16, 1]
    assert place_rows(lengths, (4, 10, 16), 2) == [
        (4, (0, 2)),
        (4, (3, 5)),
        (10, (1, 4)),
        (16, (6, 7)),  # the short row left over finds no place among those of 10
    ]


def test_left_over_rows_fill_a_longer_bucket():
    assert place_rows([3, 9, 4, 2], (4, 10), 2) == [(4, (0, 2)), (10, (1, 3))]
    assert place_rows([3, 9], (4, 10, 16), 4) == [(10, (0, 1))]
    assert place_rows([3, 9, 9], (4, 10), 2) == [(4, (0,)), (10, (1, 2))]
    assert place_rows([], (4, 10), 2) == []


@given(
    lengths=st.lists(st.integers(1, 32), max_size=30),
    micro_rows=st.integers(1, 5),
)
@PROPERTY
def test_every_row_is_placed_once_where_it_fits(lengths, micro_rows):
    placements = place_rows(lengths, (8, 16, 32), micro_rows)
    assert sorted(row for placement in placements for row in placement.rows) == list(
        range(len(lengths))
    )
    for placement in placements:
        assert placement.length in (8, 16, 32)
        assert 1 <= len(placement.rows) <= micro_rows
        assert all(lengths[row] <= placement.length for row in placement.rows)


def test_micro_batches_are_padded_with_zeros():
    rows = _rows()
    weights = token_weights(rows, "token-mean")
    (batch,) = make_micro_batches(rows, weights, [row.mask - 1.0 for row in rows], (16,), 4)
    for field, dtype in zip(batch, [np.int32] + [np.float32] * 5, strict=True):
        assert field.shape == (4, 16)
        assert field.dtype == dtype
        np.testing.assert_array_equal(field[3], np.zeros(16))
        np.testing.assert_array_equal(field[:, 9:], np.zeros((4, 7)))
    np.testing.assert_array_equal(batch.tokens[1, :7], rows[1].tokens)
    np.testing.assert_array_equal(batch.old_log_probs[1, :7], rows[1].mask - 1.0)
    assert batch.weights.sum() == pytest.approx(1.0)


def test_stack_follows_the_placement():
    placement = place_rows([1, 3, 2], (2, 4), 2)[0]
    assert placement == (2, (0, 2))
    columns = [np.array([5]), np.array([1, 2, 3]), np.array([8, 9])]
    np.testing.assert_array_equal(stack(columns, placement, 2, np.int32), [[5, 0], [8, 9]])


def test_bad_input_is_refused():
    tree, flags = _fork(), np.zeros(3, bool)
    with pytest.raises(ValueError, match="expected one entry for each of the 1 trees, got 1 and 0"):
        trajectory_rows([tree], [np.zeros(3)], [])
    with pytest.raises(ValueError, match=r"tree 0 \(train/0\): expected a leaf, got none"):
        trajectory_rows([empty_tree()], [np.zeros(0)], [np.zeros(0, bool)])
    without_prompt = _single()
    without_prompt.prompt = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="expected a prompt, got no token"):
        trajectory_rows([without_prompt], [np.zeros(1)], [np.zeros(1, bool)])
    with pytest.raises(ValueError, match="each of its 3 nodes, got 2 and 3"):
        trajectory_rows([tree], [np.zeros(2)], [flags])
    with pytest.raises(ValueError, match=r"node 1: expected one number or 3, got shape \(2,\)"):
        trajectory_rows([tree], [[0.0, np.zeros(2), 0.0]], [flags])
    empty = empty_tree()
    empty.add(rollout(0, ROOT, [call_step((), environment=2)], False))
    with pytest.raises(ValueError, match=r"rollout 0: expected .* at least one policy token"):
        trajectory_rows([empty], [np.zeros(1)], [np.zeros(1, bool)])
    with pytest.raises(ValueError, match=r"row 1: expected at most 8 tokens, .* got 9"):
        place_rows([8, 9], (4, 8), 2)
    for buckets, micro_rows in [((), 2), ((8, 4), 2), ((4, 4), 2), ((0, 4), 2), ((4,), 0)]:
        with pytest.raises(ValueError, match="expected ascending lengths"):
            place_rows([1], buckets, micro_rows)
    with pytest.raises(ValueError, match=r"aggregation: expected one of .* got 'sum'"):
        token_weights(_rows(), "sum")
    with pytest.raises(ValueError, match=r"response_limit: expected > 0 .* got None"):
        token_weights(_rows(), "seq-mean-token-sum-norm")
