"""BEL against the paper's Figure 4, budgets worked out by hand and random worlds."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY, answer_step, call_step, drive, empty_tree, rollout

from elpo_jax.config import RolloutConfig
from elpo_jax.credit import hierarchical_advantages
from elpo_jax.rollout.bel import bel, entropy_gap, suffix_count
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.nodes import elc_nodes
from elpo_jax.rollout.searches import SEARCHES
from elpo_jax.rollout.tree import ROOT, Probe

FIGURE4 = json.loads((Path(__file__).parent / "golden" / "figure4.json").read_text())


def steps_of(calls, entropies=None):
    """`calls` tool steps and an answer; one entropy a step."""
    entropies = entropies or [1.0] * (calls + 1)
    return [*(call_step([h]) for h in entropies[:-1]), answer_step(entropies[-1:])]


def hashed(*key):
    """A number in [0, 1) that depends on `key` only."""
    return random.Random(repr(key)).random()


# Figure 4


def test_figure_4_end_to_end():
    # Leaves 0, 5 and 15 have the largest gaps of their buffers. At leaf 5 the second anchor asks
    # for more suffixes than the first: H_tool_1 = H_root (2 of 1..3), H_tool_2 far above (3).
    entropies = {0: [1.0, 1.0, 2.0], 5: [1.0, 1.0, 3.0], 15: [1.0, 2.0, 2.0]}

    def sample(ordinal, parent):
        depth = 0 if parent == ROOT else tree.nodes[parent].depth
        calls = (3 if ordinal == 9 else 2) - depth
        return rollout(ordinal, parent, steps_of(calls, entropies.get(ordinal)), ordinal in (8, 9))

    tree = empty_tree()
    waves = drive(bel(tree, RolloutConfig()), tree, sample)
    assert [ordinals for _, ordinals in waves] == [
        (0, 1, 2), (3, 4), (5, 6, 7), (8, 9), (10, 11, 12), (13, 14, 15),
    ]  # fmt: skip
    assert [sorted(wave.keep) for wave, _ in waves] == [[], [0], [], [5], [5], []]
    assert tree.parents.tolist() == FIGURE4["parents"]
    assert tree.rewards.tolist() == FIGURE4["rewards"]
    assert (tree.parents == ROOT).sum() == 9
    credit = hierarchical_advantages(tree.parents, tree.rewards)
    for line in FIGURE4["printed"]:
        for node in line["nodes"]:
            row = [getattr(credit, name)[node] for name in ("step_reward", "hierarchical")]
            np.testing.assert_allclose(row, line["row"][:2], rtol=0, atol=5e-4)

    a, b, unprobed = tree.localizations
    assert (a.low, a.high, a.resolved, a.critical_node, a.widen_clip) == (1, 1, True, 0, True)
    assert a.probes == (Probe(1, 2, 0),)
    assert (b.low, b.high, b.resolved, b.critical_node, b.widen_clip) == (2, 2, True, 14, True)
    assert b.probes == (Probe(1, 2, 2), Probe(2, 3, 0))
    assert (unprobed.low, unprobed.high, unprobed.resolved) == (1, 3, False)
    assert (unprobed.probes, unprobed.widen_clip) == ((), False)
    # ELC: everything below a (leaves 0, 3, 4) and below step 2 of leaf 5 (leaves 5, 10, 11, 12).
    assert np.flatnonzero(elc_nodes(tree)).tolist() == [0, 1, 2, 9, 10, 11, 12, 14, 15, 27, 28, 29]


# Entropies


def test_entropy_gap_by_hand():
    steps = [call_step([1.0, 2.0]), call_step([4.0]), answer_step([1.0, 1.0, 2.0, 4.0])]
    assert entropy_gap(steps, "call_mean") == (4.0 + 2.0) / 2 - 1.5
    assert entropy_gap(steps, "token_mean") == pytest.approx(12.0 / 5 - 1.5)
    assert entropy_gap([answer_step([9.0])]) == -math.inf
    assert entropy_gap([call_step([9.0])]) == -math.inf  # a cap came before the next turn


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.0, 2),  # 1 + 2/2
        (-1e6, 1),
        (1e6, 3),
        (math.log(3) / 5, 3),  # sigma = 3/4: 2.5 goes up
        (-math.log(3) / 5, 2),  # sigma = 1/4: 1.5 goes up
        (-0.25, 1),  # 1 + 2 * 0.2227
    ],
)
def test_suffix_count_rounds_halves_up(difference, expected):
    # Nudged up by less than the sigmoid's rounding could matter elsewhere.
    assert suffix_count(difference + 1e-12, RolloutConfig()) == expected


def test_selection_by_gap_with_ties_and_without_calls():
    def selected(*trajectories):
        tree = empty_tree()
        config = RolloutConfig(budget=len(trajectories), max_failed=len(trajectories))
        drive(bel(tree, config), tree, lambda i, _: rollout(i, ROOT, trajectories[i], False))
        (found,) = tree.localizations
        return tree.nodes[found.leaf].ordinal

    no_call, low, high = steps_of(0), steps_of(1, [2.0, 1.0]), steps_of(1, [1.0, 2.0])
    assert selected(no_call, low, high) == 2
    assert selected(no_call, low) == 1
    assert selected(no_call, high, high) == 1
    assert selected(no_call, no_call) == 0


# Budgets


def failing(outcomes, calls=2):
    """Every full trajectory fails; the i-th suffix succeeds as `outcomes` says."""
    verdicts = iter(outcomes)

    def sample(ordinal, parent):
        if parent == ROOT:
            return rollout(ordinal, ROOT, steps_of(calls), False)
        return rollout(ordinal, parent, [answer_step()], next(verdicts))

    return sample


@pytest.mark.parametrize(
    ("budget", "outcomes", "low", "high", "resolved", "probes"),
    [
        (1, [], 1, 3, False, ()),
        # One of the two planned suffixes: a failure is too little, a success is proof.
        (2, [False], 1, 3, False, (Probe(1, 1, 0),)),
        (2, [True], 2, 3, False, (Probe(1, 1, 1),)),
        (3, [False, False], 1, 1, True, (Probe(1, 2, 0),)),
        (3, [False, True], 2, 3, False, (Probe(1, 2, 1),)),
        (4, [False, True, True], 3, 3, True, (Probe(1, 2, 1), Probe(2, 1, 1))),
        (5, [True, True, False, False], 2, 2, True, (Probe(1, 2, 2), Probe(2, 2, 0))),
    ],
)
def test_where_the_budget_ends(budget, outcomes, low, high, resolved, probes):
    tree = empty_tree()
    drive(bel(tree, RolloutConfig(budget=budget, max_failed=1)), tree, failing(outcomes))
    (found,) = tree.localizations
    assert (found.low, found.high, found.resolved) == (low, high, resolved)
    assert found.probes == probes
    assert found.widen_clip == bool(probes)
    assert found.critical_node == tree.path(found.leaf)[low - 1]
    assert len(tree.leaves) == budget


@pytest.mark.parametrize("widen", [False, True])
def test_no_call_needs_no_probe(widen):
    tree = empty_tree()
    config = RolloutConfig(budget=2, max_failed=1, widen_unprobed=widen)
    waves = drive(bel(tree, config), tree, failing([], calls=0))
    assert [wave.parents for wave, _ in waves] == [(ROOT,), (ROOT,)]
    assert [(f.low, f.high, f.resolved, f.probes) for f in tree.localizations] == [
        (1, 1, True, ())
    ] * 2
    assert elc_nodes(tree).tolist() == [widen] * 2


@pytest.mark.parametrize("end", ["calls", "length"])
def test_a_cut_trajectory_ends_at_its_last_call(end):
    # Three calls; 'length' also cut a fourth turn, which is no answer step.
    cut = [call_step(), call_step(), call_step(is_open=end == "length")]
    cut += [answer_step()] * (end == "length")

    def sample(ordinal, parent):
        if parent == ROOT:
            return rollout(ordinal, ROOT, cut, False, end=end)
        return rollout(ordinal, parent, [answer_step()], True)

    tree = empty_tree()
    waves = drive(bel(tree, RolloutConfig(budget=5, max_failed=1)), tree, sample)
    assert [wave.parents for wave, _ in waves] == [(ROOT,), (0, 0), (1, 1)]
    (found,) = tree.localizations
    assert (found.low, found.high, found.resolved, found.critical_node) == (3, 3, True, 2)


def test_a_prefix_without_room_is_not_probed():
    def sample(ordinal, parent):
        if parent == ROOT:
            steps = [call_step(), call_step(is_open=False), answer_step()]
            return rollout(ordinal, ROOT, steps, False)
        return rollout(ordinal, parent, [answer_step()], True)

    tree = empty_tree()
    waves = drive(bel(tree, RolloutConfig(budget=3, max_failed=1)), tree, sample)
    assert [wave.parents for wave, _ in waves] == [(ROOT,), (0, 0)]
    (found,) = tree.localizations
    assert (found.low, found.resolved) == (2, True)
    assert found.probes == (Probe(1, 2, 2), Probe(2, 0, 0))


def test_only_failures_with_an_anchor_are_retained():
    wave = next(bel(empty_tree(), RolloutConfig()))
    assert wave.retain(rollout(0, ROOT, steps_of(1), False))
    assert not wave.retain(rollout(0, ROOT, steps_of(1), True))
    assert not wave.retain(rollout(0, ROOT, steps_of(0), False))
    last = next(bel(empty_tree(), RolloutConfig(budget=3)))  # nothing can branch after it
    assert not last.retain(rollout(0, ROOT, steps_of(1), False))


def test_a_budget_without_failures_is_spent_on_full_trajectories():
    tree = empty_tree()
    waves = drive(
        bel(tree, RolloutConfig(budget=8)), tree, lambda i, _: rollout(i, ROOT, steps_of(1), True)
    )
    assert [len(wave.parents) for wave, _ in waves] == [3, 3, 2]
    assert not tree.localizations


def test_successes_leave_the_buffer_open():
    # Ordinal 1 succeeds: the buffer holds 0 and 2, then 3.
    tree = empty_tree()
    waves = drive(
        bel(tree, RolloutConfig(budget=5)), tree, lambda i, _: rollout(i, ROOT, steps_of(1), i == 1)
    )
    assert [len(wave.parents) for wave, _ in waves] == [3, 1, 1]
    assert [sorted(wave.keep) for wave, _ in waves] == [[], [0, 2], [0]]


class World:
    """Full trajectories with a hidden critical step; verdicts depend on the seed and ordinal."""

    def __init__(self, seed, p):
        self.seed, self.p, self.tree = seed, p, empty_tree()
        self.truth = {}  # ordinal of a full trajectory -> critical step

    def sample(self, ordinal, parent):
        def draw(*key):
            return hashed(self.seed, ordinal, *key)

        if parent == ROOT:
            calls, cut = int(6 * draw("calls")), draw("cut") < 0.2
            steps = steps_of(calls, [draw("entropy", i) for i in range(calls + 1)])
            if cut and calls:
                steps = [*steps[: calls - 1], call_step([draw("cut")], is_open=False)]
            self.truth[ordinal] = 1 + int(len(steps) * draw("truth"))
            end = "calls" if cut and calls else "answer"
            return rollout(ordinal, ROOT, steps, draw("success") < 0.3, end=end)
        anchor = self.tree.nodes[parent]
        recoverable = anchor.depth < self.truth[anchor.ordinal]
        success = recoverable and draw("success") < self.p
        return rollout(ordinal, parent, steps_of(int(3 * draw("calls"))), success)

    def grow(self, config):
        return drive(bel(self.tree, config), self.tree, self.sample)


configs = st.builds(
    RolloutConfig,
    budget=st.integers(1, 24),
    max_failed=st.integers(1, 4),
    max_suffixes=st.integers(1, 4),
    search=st.sampled_from(sorted(SEARCHES)),
    gap=st.sampled_from(["call_mean", "token_mean"]),
    widen_unprobed=st.booleans(),
)


@PROPERTY
@given(configs, st.integers(0, 999), st.sampled_from([0.4, 1.0]))
def test_random_worlds(config, seed, p):
    world = World(seed, p)
    tree, waves = world.tree, world.grow(config)
    assert len(tree.leaves) == config.budget

    searches = iter(tree.localizations)
    failed, found = [], None
    for wave, ordinals in waves:
        assert len(wave.parents) >= 1
        spent = ordinals[-1] + 1 == config.budget
        if wave.parents[0] == ROOT:
            if found or len(failed) == config.max_failed:
                failed, found = [], None
            assert set(wave.parents) == {ROOT}
            assert len(ordinals) <= config.max_failed - len(failed)
            assert wave.keep == (frozenset() if spent else frozenset(failed))
            failed += [i for i in ordinals if not tree.leaves[i].success]
            full = len(failed) == config.max_failed
            if failed and (full or spent):
                found = next(searches)
                assert tree.nodes[found.leaf].ordinal in failed
        else:
            (anchor,) = set(wave.parents)
            assert tree.nodes[anchor].step.is_open
            assert wave.keep == {tree.nodes[anchor].ordinal}
            assert tree.nodes[found.leaf].ordinal in wave.keep
            assert anchor in tree.path(found.leaf)
    assert next(searches, None) is None

    for index, found in enumerate(tree.localizations):
        truth = world.truth[tree.nodes[found.leaf].ordinal]
        assert found.critical_node == tree.path(found.leaf)[found.low - 1]
        assert found.resolved == (found.low == found.high)
        assert found.resolved or index == len(tree.localizations) - 1
        if config.search == "confirm":
            assert found.low <= truth or p < 1
            assert truth <= found.high or p < 1
        assert found.widen_clip == (bool(found.probes) or config.widen_unprobed)

    again = World(seed, p)
    assert again.grow(config) == waves
    assert again.tree.localizations == tree.localizations


# Input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "rollout.budget: expected at least 1, got 0"),
        ({"max_failed": 0}, "rollout.max_failed"),
        ({"min_suffixes": 0}, r"expected 1 <= min <= max, got 0, 3"),
        ({"min_suffixes": 4}, r"got 4, 3"),
        ({"beta": math.nan}, "rollout.beta: expected a finite number, got nan"),
        ({"search": "linear"}, r"expected one of \['algorithm1', 'confirm'\], got 'linear'"),
        ({"gap": "max"}, r"expected one of \['call_mean', 'token_mean'\], got 'max'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        bel(empty_tree(), RolloutConfig(**changes))


def test_independent_is_one_wave():
    tree = empty_tree()
    waves = drive(
        independent(tree, RolloutConfig(budget=5)),
        tree,
        lambda i, _: rollout(i, ROOT, steps_of(1), False),
    )
    assert [(wave.parents, wave.keep) for wave, _ in waves] == [((ROOT,) * 5, frozenset())]
    assert not tree.localizations
    with pytest.raises(ValueError, match=r"rollout.budget: expected at least 1, got -1"):
        independent(tree, RolloutConfig(budget=-1))
