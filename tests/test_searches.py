"""Searches against the literal loops of the paper and their expected hit rates."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.rollout.searches import SEARCHES, Failure
from elpo_jax.rollout.tree import Probe


def literal(form, calls, recoverable):
    """The loops of Algorithm 1 and of the closed search, as written; (anchors, t_crit)."""
    left, right, anchors = 1, calls, []
    while left < right or (form == "confirm" and left == right):
        middle = (left + right) // 2
        anchors.append(middle)
        if recoverable(middle):
            left = middle + 1
        else:
            right = middle - 1 if form == "confirm" else middle
    return anchors, left


def run_search(form, failure, outcome):
    search, probes = SEARCHES[form](failure), []
    while (proposal := search.propose()) is not None:
        step, planned = proposal
        probes.append(Probe(step, planned, outcome(step, planned)))
        search.observe(probes[-1])
    assert search.low == search.high
    return probes, search.low


@PROPERTY
@given(st.sampled_from(sorted(SEARCHES)), st.integers(1, 40), st.integers(0, 2**40))
def test_searches_equal_their_literal_form(form, calls, bits):
    # Verdicts of any kind, monotone or not.
    probes, found = run_search(form, Failure(calls, True, (2,) * calls), lambda m, _: bits >> m & 1)
    anchors, expected = literal(form, calls, lambda m: bits >> m & 1)
    assert ([probe.step for probe in probes], found) == (anchors, expected)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("calls", range(12))
def test_true_verdicts_find_every_truth(calls, answered):
    last = max(calls + answered, 1)
    failure = Failure(calls, answered, (1,) * (last - 1))
    for truth in range(1, last + 1):
        confirmed, found = run_search("confirm", failure, lambda m, _, t=truth: m < t)
        assert found == truth
        assert truth == last or truth in [probe.step for probe in confirmed]
        _, found = run_search("algorithm1", failure, lambda m, _, t=truth: m < t)
        assert found == min(truth, max(calls, 1))  # it never names the answer step


def test_an_anchor_without_room_is_irrecoverable_at_no_cost():
    probes, found = run_search("confirm", Failure(2, True, (2, 0)), lambda _, planned: planned)
    assert probes == [Probe(1, 2, 2), Probe(2, 0, 0)]
    assert found == 2


def expectation(search, truth, p):
    """(hit, distance, suffixes) expected of a search whose recoverable prefixes succeed with p."""
    if (proposal := search.propose()) is None:
        return np.array([search.low == truth, abs(search.low - truth), 0.0])
    step, suffixes = proposal
    success = 1 - (1 - p) ** suffixes if step < truth else 0.0
    total = np.array([0.0, 0.0, suffixes])
    for successes, probability in ((1, success), (0, 1 - success)):
        if probability:
            branch = dataclasses.replace(search)
            branch.observe(Probe(step, suffixes, successes))
            total += probability * expectation(branch, truth, p)
    return total


@pytest.mark.parametrize(
    ("calls", "p", "form", "hits", "distance", "spent"),
    [
        (2, 0.9, "algorithm1", 0.70, 0.31, 2.0),
        (2, 0.9, "confirm", 0.99, 0.02, 3.3),
        (4, 0.6, "algorithm1", 0.69, 0.44, 4.0),
        (4, 0.6, "confirm", 0.81, 0.33, 4.6),
        (8, 0.6, "algorithm1", 0.70, 0.65, 6.0),
        (8, 0.6, "confirm", 0.73, 0.59, 6.2),
        (16, 0.6, "algorithm1", 0.68, 1.00, 8.0),
        (16, 0.6, "confirm", 0.69, 0.93, 8.1),
    ],
)
def test_expected_hit_rates(calls, p, form, hits, distance, spent):
    """The truth uniform on 1..K+1, two suffixes an anchor; the expected rows were simulated."""
    failure = Failure(calls, True, (2,) * calls)
    truths = range(1, calls + 2)
    rows = [expectation(SEARCHES[form](failure), truth, p) for truth in truths]
    mean_hits, mean_distance, mean_spent = np.mean(rows, axis=0)
    assert mean_hits == pytest.approx(hits, abs=0.04)
    assert mean_distance == pytest.approx(distance, abs=0.1)
    assert mean_spent == pytest.approx(spent, abs=0.1)


def test_expected_hit_rate_by_hand():
    # confirm, K=4: a truth of 1, 2, 3, 4, 5 lies behind 0, 1, 1, 2, 3 recoverable anchors.
    failure, success = Failure(4, True, (2,) * 4), 1 - 0.4**2
    hits = [expectation(SEARCHES["confirm"](failure), truth, 0.6)[0] for truth in range(1, 6)]
    np.testing.assert_allclose(hits, [1, success, success, success**2, success**3])
    # algorithm1 never probes step 4 and never names step 5.
    hits = [expectation(SEARCHES["algorithm1"](failure), truth, 0.6)[0] for truth in range(1, 6)]
    np.testing.assert_allclose(hits, [1, success, success, success**2, 0])
