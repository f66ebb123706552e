"""The sampler's invariants: exact tokens, samples that no schedule changes, forks not prefills."""

import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted import END_OF_TURN, MAX_LENGTH, ScriptedEnvironment, mix, task

from elpo_jax.config import EpisodeConfig, MeshConfig, PolicyConfig, RolloutConfig, SamplerConfig
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.rollout.bel import bel
from elpo_jax.rollout.controller import Wave
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.tree import ROOT
from elpo_jax.sampler.engine import Engine, NonFiniteSampleError
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler

POLICY = PolicyConfig(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
# Fewer rows than the trees need, so that some are swapped to the host.
SAMPLER = SamplerConfig(
    lanes=6,
    rows=8,
    decode_block=4,
    prefill_rows=4,
    prefill_chunks=(8, 16),
    fork_rows=4,
    tool_workers=3,
)
EPISODE = EpisodeConfig(tool_retries=1, max_drops=3)
KEY = jax.random.key(11)
STRATEGY = partial(bel, config=RolloutConfig())


@pytest.fixture(scope="module")
def model():
    return make_decoder(POLICY, 32)


@pytest.fixture(scope="module")
def params(model):
    return init_params(model, jax.random.key(0), make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def engine(model, params):
    engine = Engine(model, SAMPLER, MAX_LENGTH, make_mesh(MeshConfig()))
    engine.warm_up(params)
    return engine


@pytest.fixture(scope="module")
def grow(engine, params):
    def run(draws, environment=None, strategy=STRATEGY, settings=None, episode=EPISODE):
        environment = environment or ScriptedEnvironment()
        scheduler = Scheduler(engine, environment, SAMPLER, episode, (END_OF_TURN,))
        tasks = [(draw, task(draw)) for draw in draws]
        return scheduler.run(params, KEY, tasks, strategy, settings or SamplingSettings())

    return run


@pytest.fixture(scope="module")
def grown(grow, engine):
    """Eight trees grown together, with the counters' change."""
    before = engine.counters.prefill_tokens
    trees, summary = grow(range(8))
    return trees, summary, engine.counters.prefill_tokens - before


def assert_same_tree(one, other):
    assert one.task.id == other.task.id
    np.testing.assert_array_equal(one.parents, other.parents)
    assert one.leaves == other.leaves
    assert one.localizations == other.localizations
    for a, b in zip(one.nodes, other.nodes, strict=True):
        for name in ("tokens", "is_policy", "log_probs", "entropies"):
            np.testing.assert_array_equal(getattr(a.step, name), getattr(b.step, name))


def test_trees_are_what_the_budget_says_and_have_branches(grown):
    trees, summary, _ = grown
    for tree in trees:
        assert [leaf.ordinal for leaf in tree.leaves] == list(range(RolloutConfig().budget))
    assert sum(len(tree.localizations) for tree in trees) > 8
    suffixes = [
        node
        for tree in trees
        for node in tree.nodes
        if node.parent != ROOT and tree.nodes[node.parent].ordinal != node.ordinal
    ]
    assert len(suffixes) > 8
    assert summary.dropped_rollouts == summary.dropped_tasks == 0


@pytest.mark.parametrize("draws", [[3], [5, 3], [7, 6, 5, 4, 3, 2, 1, 0], range(2, 15)])
def test_a_tree_is_the_same_alone_and_in_any_company(grow, grown, draws):
    by_id = {tree.task.id: tree for tree in grown[0]}
    again, _ = grow(draws)
    assert [tree.task.id for tree in again] == [f"train/{draw}" for draw in draws]
    for tree in again:
        if tree.task.id in by_id:
            assert_same_tree(by_id[tree.task.id], tree)


def test_a_tree_is_the_same_however_slow_tools_are(grow, grown, engine):
    swaps = engine.counters.swaps_out
    trees, summary = grow(range(8), ScriptedEnvironment(delays=(0.0, 0.004, 0.03)))
    assert summary.parked > 0, "some rollout should have given its lane away"
    assert engine.counters.swaps_out > swaps, "some row should have been swapped to the host"
    for one, other in zip(grown[0], trees, strict=True):
        assert_same_tree(one, other)


def test_a_cache_free_forward_pass_reproduces_every_log_prob_and_entropy(grown, model, params):
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))
    for tree in grown[0]:
        for leaf in tree.leaves:
            steps = [tree.nodes[node].step for node in tree.path(leaf.node)]
            tokens = np.concatenate([tree.prompt, *(step.tokens for step in steps)])
            row = np.zeros((1, MAX_LENGTH), np.int32)
            row[0, : len(tokens)] = tokens
            table = np.asarray(forward(row))[0, len(tree.prompt) - 1 : len(tokens) - 1]
            policy = np.concatenate([step.is_policy for step in steps])
            picked = table[np.arange(len(table)), tokens[len(tree.prompt) :]]
            entropy = -(np.exp(table) * table).sum(-1)
            recorded = np.concatenate([step.log_probs for step in steps])
            np.testing.assert_allclose(picked[policy], recorded[policy], atol=2e-5)
            recorded = np.concatenate([step.entropies for step in steps])
            np.testing.assert_allclose(entropy[policy], recorded[policy], atol=2e-5)


def test_no_prefix_is_prefilled_twice(grown):
    """Each prompt and each tool result once, with the end-of-turn token that precedes a result.

    The last token of a prompt or result goes in by the decode step that draws the next one.
    """
    trees, summary, prefilled = grown
    prompts = sum(len(tree.prompt) - 1 for tree in trees)
    results = sum(
        1 + int((~node.step.is_policy).sum()) - 1
        for tree in trees
        for node in tree.nodes
        if node.step.is_open
    )
    assert prefilled == prompts + results
    # Every rollout but the one that brought the prompt was a fork of its parent's tokens.
    prefixes = 0
    for tree in trees:
        starts = {node.ordinal: node for node in reversed(tree.nodes)}
        for leaf in tree.leaves:
            parent = starts[leaf.ordinal].parent
            path = [] if parent == ROOT else tree.path(parent)
            prefixes += len(tree.prompt) + sum(len(tree.nodes[i].step.tokens) for i in path) - 1
    assert summary.saved_tokens == prefixes - prompts


def test_nothing_compiles_after_warm_up(grow, engine):
    compiled = engine.compiles
    grow(range(20, 29), settings=SamplingSettings(0.6, 0.9, 7))
    grow([40], strategy=partial(independent, config=RolloutConfig(budget=3)))
    assert engine.compiles == compiled


def test_all_rows_are_given_back(grow, engine):
    grow(range(5))
    assert not engine._resident
    assert sorted(engine._free_rows) == list(range(SAMPLER.rows))


def test_an_interrupted_run_gives_its_rows_back(grow, engine, params):
    class StopError(Exception):
        pass

    rounds = iter(range(7))

    def on_round():
        if next(rounds, None) is None:
            raise StopError

    scheduler = Scheduler(
        engine, ScriptedEnvironment(delays=(0.0, 0.02)), SAMPLER, EPISODE, (END_OF_TURN,)
    )
    tasks = [(draw, task(draw)) for draw in range(9)]
    with pytest.raises(StopError):
        scheduler.run(params, KEY, tasks, STRATEGY, SamplingSettings(), on_round)
    assert sorted(engine._free_rows) == list(range(SAMPLER.rows))


def test_a_tool_that_breaks_once_costs_nothing_but_a_retry(grow, grown):
    seen = set()

    def at_first(seed):
        is_first = seed not in seen
        seen.add(seed)
        return is_first

    trees, summary = grow(range(3), ScriptedEnvironment(breaks=at_first))
    assert seen
    assert summary.dropped_rollouts == 0
    for one, other in zip(grown[0][:3], trees, strict=True):
        assert_same_tree(one, other)


def observations(tree):
    """The newest observation of each rollout with a call."""
    return {n.ordinal: int(seen.text) for n in tree.nodes for seen in n.step.observations}


def test_a_rollout_whose_tool_stays_broken_is_replaced_under_the_next_ordinal(grow):
    strategy = partial(independent, config=RolloutConfig(budget=6))
    whole, _ = grow([1], strategy=strategy)
    calls = observations(whole[0])
    victim = sorted(calls)[0]
    trees, summary = grow([1], ScriptedEnvironment(breaks={calls[victim]}.__contains__), strategy)
    assert summary.dropped_rollouts == 1
    ordinals = [leaf.ordinal for leaf in trees[0].leaves]
    assert ordinals == [o for o in range(7) if o != victim], "the budget is exact all the same"
    kept = [leaf for leaf in whole[0].leaves if leaf.ordinal != victim]
    assert [leaf.success for leaf in kept] == [leaf.success for leaf in trees[0].leaves[:-1]]


def test_a_rollout_whose_tool_hangs_is_replaced_too(grow):
    strategy = partial(independent, config=RolloutConfig(budget=6))
    whole, _ = grow([1], strategy=strategy)
    calls = observations(whole[0])
    victim = sorted(calls)[0]
    environment = ScriptedEnvironment(hangs={calls[victim]}.__contains__)
    try:
        trees, summary = grow(
            [1], environment, strategy, episode=replace(EPISODE, tool_seconds=2.0)
        )
    finally:
        environment.gate.set()
    assert (summary.dropped_rollouts, summary.tool_timeouts, summary.dropped_tasks) == (1, 1, 0)
    assert "no answer in 2 s" in summary.last_failure
    assert [leaf.ordinal for leaf in trees[0].leaves] == [o for o in range(7) if o != victim]
    broken, _ = grow([1], ScriptedEnvironment(breaks={calls[victim]}.__contains__), strategy)
    assert_same_tree(broken[0], trees[0])


def test_a_rollout_whose_verifier_stays_broken_is_replaced_too(grow):
    strategy = partial(independent, config=RolloutConfig(budget=6))
    (whole,), _ = grow([1], strategy=strategy)
    answered = [leaf for leaf in whole.leaves if leaf.end == "answer"]
    victim = answered[0]
    seed = mix(*whole.nodes[victim.node].step.tokens)
    environment = ScriptedEnvironment(breaks_verifier={seed}.__contains__)
    (tree,), summary = grow([1], environment, strategy)
    assert (summary.dropped_rollouts, summary.dropped_tasks) == (1, 0)
    assert summary.last_failure == "the verifier is broken on purpose"
    ordinals = [leaf.ordinal for leaf in tree.leaves]
    assert ordinals == [o for o in range(7) if o != victim.ordinal]


def test_an_interruption_is_seen_while_all_wait_for_a_tool(engine, params):
    class StopError(Exception):
        pass

    environment = ScriptedEnvironment(hangs=lambda seed: True)
    started = time.monotonic()

    def on_round():
        if time.monotonic() - started > 0.5:
            raise StopError

    scheduler = Scheduler(engine, environment, SAMPLER, EPISODE, (END_OF_TURN,))
    try:
        with pytest.raises(StopError):
            scheduler.run(params, KEY, [(1, task(1))], STRATEGY, SamplingSettings(), on_round)
    finally:
        environment.gate.set()
    assert time.monotonic() - started < EPISODE.tool_seconds / 2


def test_nan_in_the_policy_is_told_with_the_tokens_that_led_to_it(grow, engine, params):
    broken = jax.tree.map(lambda x: x, params)
    broken["head"]["kernel"] = broken["head"]["kernel"].at[0, 0].set(jnp.nan)
    scheduler = Scheduler(engine, ScriptedEnvironment(), SAMPLER, EPISODE, (END_OF_TURN,))
    with pytest.raises(
        NonFiniteSampleError, match=r"NaN or infinity in task draws \[7\]"
    ) as caught:
        scheduler.run(broken, KEY, [(7, task(7))], STRATEGY, SamplingSettings())
    prompt = ScriptedEnvironment().prompt_ids(task(7))
    assert {name for name, _ in caught.value.rows} == {"train/7"}
    for tokens in caught.value.rows.values():
        np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
        assert len(tokens) == len(prompt) + 1, "the first draw is broken already"
    assert sorted(engine._free_rows) == list(range(SAMPLER.rows))


def test_a_task_whose_tools_stay_broken_leaves_the_batch(grow):
    environment = ScriptedEnvironment(breaks=lambda seed: seed % 2 == 0)
    trees, summary = grow(range(6), environment)
    assert summary.dropped_tasks > 0
    assert len(trees) == 6 - summary.dropped_tasks
    for tree in trees:
        assert len(tree.leaves) == RolloutConfig().budget


def test_a_controller_that_branches_from_what_it_did_not_keep_is_told_so(grow):
    def forgetful(tree):
        while True:
            leaves = yield Wave((ROOT,))
            node = leaves[0].node
            first = tree.path(node)[0]
            if tree.nodes[first].step.is_open:
                yield Wave((first,))
                return

    with pytest.raises(ValueError, match="retained and keeps"):
        grow([0], strategy=forgetful)
