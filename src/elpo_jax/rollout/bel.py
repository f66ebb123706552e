"""Binary Error Localization: the strategy that grows ELPO's trees (4.1, Algorithm 1).

Source: https://arxiv.org/abs/2602.09598, Eq. 3-5.

Cycle until the budget is spent: sample full trajectories until `max_failed` of them failed, select
the failure with the largest entropy gap, and search it for its first irrecoverable step by sampling
suffixes from its prefixes. Everything sampled stays in the tree; failed suffixes are never
selected.
"""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

import numpy as np

from elpo_jax.config import RolloutConfig
from elpo_jax.rollout.controller import Controller, Wave
from elpo_jax.rollout.searches import SEARCHES, Failure
from elpo_jax.rollout.tree import ROOT, Leaf, Localization, Probe, Rollout, Step, Tree

GAPS = ("call_mean", "token_mean")


def bel(tree: Tree, config: RolloutConfig) -> Controller:
    """Grows `tree` by exactly `config.budget` rollouts and appends a `Localization` per search.

    The last selection is recorded too when no budget is left for it: unresolved, without probes.

    Raises:
      ValueError: for settings outside their range.
    """
    _check(config)
    return _grow(tree, config)


def entropy_gap(steps: Sequence[Step], gap: str = "call_mean") -> float:
    """H_tool - H_root of a trajectory in nats (Eq. 4); -inf where nothing follows a tool's output.

    H_root is the mean over the first turn's policy tokens. H_tool is over the turns that follow a
    tool's output: the mean of their means ('call_mean'), or of their tokens ('token_mean').

    Args:
      steps: the trajectory, first turn first.
      gap: one of `GAPS`.
    """
    after = [step for step in steps[1:] if step.is_policy.any()]
    if not after:
        return -math.inf
    if gap == "token_mean":
        tool = float(np.concatenate([step.entropies[step.is_policy] for step in after]).mean())
    else:
        tool = math.fsum(step.mean_entropy for step in after) / len(after)
    return tool - steps[0].mean_entropy


def suffix_count(difference: float, config: RolloutConfig) -> int:
    """X_m of Eq. 5 from H_tool_m - H_root in nats, rounded to the nearest, halves up."""
    sigmoid = 0.5 * (1.0 + math.tanh(0.5 * config.beta * difference))  # never overflows
    span = config.max_suffixes - config.min_suffixes
    return math.floor(config.min_suffixes + span * sigmoid + 0.5)


def _check(config: RolloutConfig) -> None:
    if config.budget < 1:
        raise ValueError(f"rollout.budget: expected at least 1, got {config.budget}")
    if config.max_failed < 1:
        raise ValueError(f"rollout.max_failed: expected at least 1, got {config.max_failed}")
    if not 1 <= config.min_suffixes <= config.max_suffixes:
        raise ValueError(
            "rollout.min_suffixes, rollout.max_suffixes: expected 1 <= min <= max, got "
            f"{config.min_suffixes}, {config.max_suffixes}"
        )
    if not math.isfinite(config.beta):
        raise ValueError(f"rollout.beta: expected a finite number, got {config.beta}")
    if config.search not in SEARCHES:
        raise ValueError(
            f"rollout.search: expected one of {sorted(SEARCHES)}, got {config.search!r}"
        )
    if config.gap not in GAPS:
        raise ValueError(f"rollout.gap: expected one of {list(GAPS)}, got {config.gap!r}")


def _grow(tree: Tree, config: RolloutConfig) -> Controller:
    left = config.budget
    while left:
        failed: list[Leaf] = []
        while left and len(failed) < config.max_failed:
            count = min(config.max_failed - len(failed), left)
            left -= count
            roots, buffered = (ROOT,) * count, frozenset(leaf.ordinal for leaf in failed)
            # Nothing can branch after the wave that spends the budget.
            leaves = yield Wave(roots, buffered, retain=_has_anchor) if left else Wave(roots)
            failed += [leaf for leaf in leaves if not leaf.success]
        if failed:
            # max() returns the first of equals, which is the lowest ordinal.
            selected = max(failed, key=lambda leaf: entropy_gap(_steps(tree, leaf), config.gap))
            left = yield from _localize(tree, config, selected, left)


def _has_anchor(rollout: Rollout) -> bool:
    return not rollout.success and len(rollout.steps) > 1


def _localize(
    tree: Tree, config: RolloutConfig, leaf: Leaf, left: int
) -> Generator[Wave, list[Leaf], int]:
    """Searches one failed trajectory and returns the budget that is left."""
    path = tree.path(leaf.node)
    search = SEARCHES[config.search](_failure(tree, leaf, config))
    probes: list[Probe] = []
    while (proposal := search.propose()) is not None:
        step, planned = proposal
        count = min(planned, left)
        if planned and not count:
            break
        successes = 0
        if count:
            left -= count
            leaves = yield Wave((path[step - 1],) * count, frozenset({leaf.ordinal}))
            successes = sum(suffix.success for suffix in leaves)
        probes.append(Probe(step, count, successes))
        search.observe(probes[-1])
    tree.localizations.append(
        Localization(
            leaf=leaf.node,
            low=search.low,
            high=search.high,
            resolved=proposal is None,
            probes=tuple(probes),
            critical_node=path[search.low - 1],
            widen_clip=config.widen_unprobed or any(probe.suffixes for probe in probes),
        )
    )
    return left


def _failure(tree: Tree, leaf: Leaf, config: RolloutConfig) -> Failure:
    steps = _steps(tree, leaf)
    root = steps[0].mean_entropy
    return Failure(
        calls=sum(step.is_call for step in steps),
        answered=leaf.end == "answer",
        suffixes=tuple(
            suffix_count(after.mean_entropy - root, config) if step.is_open else 0
            for step, after in pairwise(steps)
        ),
    )


def _steps(tree: Tree, leaf: Leaf) -> list[Step]:
    return [tree.nodes[node].step for node in tree.path(leaf.node)]
