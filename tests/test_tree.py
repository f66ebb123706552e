"""The tree, what its nodes stand for, its JSON form and its statistics."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY, answer_step, call_step, empty_tree, rollout

from elpo_jax.config import CreditConfig
from elpo_jax.credit import hierarchical_advantages, tree_advantages
from elpo_jax.rollout.nodes import elc_nodes, trajectory_counts
from elpo_jax.rollout.statistics import summarize
from elpo_jax.rollout.tree import ROOT, Leaf, Localization, Probe
from elpo_jax.rollout.tree_json import FORMAT, MAX_DEPTH, skeleton, to_json


def decode(ids):
    return " ".join(map(str, ids))


def small_tree():
    """Rollout 0: nodes 0, 1, 2. Rollout 1 branches after node 0: 3. Rollout 2: node 4."""
    tree = empty_tree()
    first = call_step([1.0, 2.0], environment=3, arguments={"element": "He"})
    tree.add(rollout(0, ROOT, [first, call_step(error="bad_arguments"), answer_step()], False))
    tree.add(rollout(1, 0, [answer_step([0.5])], True))
    tree.add(rollout(2, ROOT, [answer_step([3.0] * 4)], False, -0.6, end="length"))
    tree.localizations.append(
        Localization(2, 2, 2, True, (Probe(1, 2, 1), Probe(2, 0, 0)), 1, True)
    )
    tree.localizations.append(Localization(4, 1, 1, True, (), 4, False))
    return tree


def test_adding_rollouts():
    tree = small_tree()
    assert tree.parents.tolist() == [-1, 0, 1, 0, -1]
    assert [node.depth for node in tree.nodes] == [1, 2, 3, 2, 1]
    assert [node.ordinal for node in tree.nodes] == [0, 0, 0, 1, 2]
    assert tree.path(2) == [0, 1, 2]
    assert tree.path(3) == [0, 3]
    assert tree.path(ROOT) == []
    assert tree.rewards.tolist() == [0, 0, -1.1, 1.0, -0.6]
    assert tree.leaves[1] == Leaf(3, 1, "answer", True, 1.0, "1")
    with pytest.raises(ValueError, match="rollout 9: expected at least one step, got none"):
        tree.add(rollout(9, ROOT, [], False))


def test_mean_entropy_is_over_the_policy():
    assert call_step([1.0, 2.0], environment=5).mean_entropy == 1.5
    assert call_step([], environment=1).mean_entropy == 0.0


@PROPERTY
@given(st.lists(st.tuples(st.integers(-1, 200), st.integers(1, 4)), min_size=1, max_size=20))
def test_nodes_against_paths(rollouts):
    tree = empty_tree()
    for ordinal, (anchor, length) in enumerate(rollouts):
        parent = anchor if anchor < len(tree.nodes) else ROOT
        tree.add(rollout(ordinal, parent, [call_step()] * length, False))
    paths = [set(tree.path(leaf.node)) for leaf in tree.leaves]
    counts = [sum(node in path for path in paths) for node in range(len(tree.nodes))]
    assert trajectory_counts(tree).tolist() == counts

    for leaf, (critical, _) in zip(tree.leaves, rollouts, strict=True):
        critical %= len(tree.nodes)
        widen = critical % 3 > 0
        tree.localizations.append(Localization(leaf.node, 1, 1, True, (), critical, widen))
    widened = {found.critical_node for found in tree.localizations if found.widen_clip}
    expected = [bool(widened & set(tree.path(node))) for node in range(len(tree.nodes))]
    assert elc_nodes(tree).tolist() == expected


# JSON


def test_the_document_of_a_tree():
    tree = small_tree()
    credit = tree_advantages(tree, CreditConfig())
    document = to_json(tree, credit._asdict(), decode=decode)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["format"] == FORMAT == "elpo_jax.tree/2"
    assert document["task"] == {
        "id": "train/0", "kind": "ratio", "question": "How heavy?", "answer": {"value": 1},
        "calls": 2,
    }  # fmt: skip
    assert document["prompt"] == {"text": "7 8 9", "tokens": 3}
    first, second, last, branch, _ = document["nodes"]
    assert {name: first[name] for name in first if name != "credit"} == {
        "id": 0, "parent": -1, "depth": 1, "ordinal": 0, "text": "0 1", "is_open": True,
        "exchanges": [
            {
                "call": {"name": "lookup", "arguments": {"element": "He"}},
                "observation": {"text": "42", "error": None},
            }
        ],
        "policy_tokens": 2, "environment_tokens": 3, "mean_entropy": 1.5,
        "trajectories": 2, "critical": False, "elc": False, "reward": None, "success": None,
    }  # fmt: skip
    assert second["exchanges"][0]["observation"] == {"text": "42", "error": "bad_arguments"}
    assert (second["critical"], second["elc"], last["elc"], branch["elc"]) == (
        True,
        True,
        True,
        False,
    )
    assert (last["exchanges"], last["reward"]) == ([], -1.1)
    assert (branch["reward"], branch["success"]) == (1.0, True)
    for node in document["nodes"]:
        expected = {name: values[node["id"]] for name, values in credit._asdict().items()}
        assert node["credit"] == expected
    assert document["leaves"][1] == {
        "node": 3, "ordinal": 1, "end": "answer", "success": True, "reward": 1.0, "answer": "1",
    }  # fmt: skip
    assert document["localizations"][0] == {
        "leaf": 2, "ordinal": 0, "low": 2, "high": 2, "resolved": True,
        "probes": [
            {"step": 1, "suffixes": 2, "successes": 1}, {"step": 2, "suffixes": 0, "successes": 0}
        ],
        "critical_node": 1, "widen_clip": True,
    }  # fmt: skip


def test_credit_can_be_computed_again_from_a_document():
    tree = small_tree()
    stored = json.loads(json.dumps(to_json(tree, decode=decode)))
    assert stored["nodes"][0]["credit"] == {}
    again = hierarchical_advantages(*skeleton(stored))
    for values, expected in zip(again, tree_advantages(tree, CreditConfig()), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_documents_are_strict_json_whatever_the_policy_wrote():
    deep = []
    for _ in range(500):
        deep = [deep]
    arguments = {"x": math.nan, "y": [math.inf, 1.5, None, True], "deep": deep, "\ud800": "\ud800"}
    tree = empty_tree()
    tree.add(rollout(0, ROOT, [call_step([math.nan], arguments=arguments)], False, end="turns"))
    document = to_json(tree, decode=decode)
    node = json.loads(json.dumps(document, allow_nan=False))["nodes"][0]
    assert node["mean_entropy"] is None
    stored = node["exchanges"][0]["call"]["arguments"]
    assert stored["x"] is None
    assert stored["y"] == [None, 1.5, None, True]
    assert json.dumps(stored["deep"]).count("[") < MAX_DEPTH


def test_wrong_documents_and_advantages():
    with pytest.raises(
        ValueError, match=r"advantages\['branch'\]: expected shape \(5,\), got \(4,\)"
    ):
        to_json(small_tree(), {"branch": np.zeros(4)}, decode=decode)
    with pytest.raises(ValueError, match=r"expected format 'elpo_jax.tree/2', got None"):
        skeleton({})


# Statistics


def test_statistics_by_hand():
    # Trajectories: nodes 0-1-2 (5 + 2 + 1 tokens), 0-3 (5 + 1), 4 (4 tokens).
    other = empty_tree()
    other.add(rollout(0, ROOT, [call_step(is_open=False)], True, 0.5, end="calls"))
    small = small_tree()
    small.first_wave = other.first_wave = 1
    assert summarize([small, other]) == {
        "success/mean": 2 / 4,
        "success/unaided": 1 / 2,
        "reward/mean": pytest.approx((-1.1 + 1 - 0.6 + 0.5) / 4),
        "response_length/mean": (8 + 6 + 4 + 2) / 4,
        "episode/turns": (3 + 2 + 1 + 1) / 4,
        "episode/calls": (2 + 1 + 0 + 1) / 4,
        "episode/error_share": 1 / 3,
        "episode/end_answer": 2 / 4,
        "episode/end_length": 1 / 4,
        "episode/end_turns": 0.0,
        "episode/end_calls": 1 / 4,
        "episode/end_observation": 0.0,
        "episode/end_eos": 0.0,
        "rollout/total": 4.0,
        "rollout/tasks": 2.0,
        "rollout/per_tree": 2.0,
        "bel/searches": 1.0,
        "bel/localized_frac": 1.0,
        "bel/probes": 1 / 2,
        "bel/suffixes": 1.0,
        "bel/relative_position": pytest.approx((2 / 3 + 1 / 1) / 2),
    }


def test_statistics_leave_out_what_is_undefined():
    assert summarize([]) == {"rollout/total": 0.0, "rollout/tasks": 0.0}
    tree = empty_tree()
    tree.add(rollout(0, ROOT, [answer_step()], True))
    metrics = summarize([tree])
    assert "episode/error_share" not in metrics
    assert not any(name.startswith("bel/") for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    tree.localizations.append(Localization(0, 1, 2, False, (), 0, False))
    assert summarize([tree])["bel/localized_frac"] == 0.0
    assert "bel/relative_position" not in summarize([tree])
