"""Metrics of a batch of trees."""

from collections.abc import Sequence

import numpy as np

from elpo_jax.rollout.tree import Node, Tree

ENDS = ("answer", "length", "turns", "calls", "observation", "eos")


def summarize(trees: Sequence[Tree]) -> dict[str, float]:
    """Means over a batch, by metric name; a mean over nothing is left out, so none is NaN.

    A trajectory is a path from the prompt to a leaf, so branches count like full trajectories, with
    the prefix that they share.

      success/mean            share of trajectories that the verifier accepts
      success/unaided         the same, over the first wave of each tree: full trajectories,
                              asked for before any outcome is known. So this is the policy's own
                              success, without bias under every strategy. Later rollouts depend on
                              outcomes: BEL branches where others failed, and samples more full
                              trajectories of solved tasks
      reward/mean             mean shaped reward of the trajectories
      response_length/mean    tokens after the prompt, the policy's and the environment's
      episode/turns           assistant turns per trajectory
      episode/calls           tool calls per trajectory, well-formed or not
      episode/error_share     share of observations that are errors; each is counted once, however
                              many trajectories share it
      episode/end_<reason>    share of trajectories that ended so: answer, length, turns, calls,
                              observation, eos
      rollout/total           rollouts, branches included
      rollout/tasks           tasks, a tree each
      rollout/per_tree        rollouts a tree, branches included
      bel/searches            searches a tree (only where there are any, like all of bel/)
      bel/localized_frac      share of searches resolved within the budget
      bel/probes              anchors a search at which suffixes were sampled
      bel/suffixes            suffixes a search
      bel/relative_position   t_crit / (K + 1) of the resolved searches, K the trajectory's turns
                              with calls
    """
    paths = [
        (leaf, [tree.nodes[node] for node in tree.path(leaf.node)])
        for tree in trees
        for leaf in tree.leaves
    ]
    observations = [
        seen for tree in trees for node in tree.nodes for seen in node.step.observations
    ]
    values: dict[str, list[float]] = {
        "success/mean": [leaf.success for leaf, _ in paths],
        "success/unaided": [
            leaf.success for tree in trees for leaf in tree.leaves[: tree.first_wave]
        ],
        "reward/mean": [leaf.reward for leaf, _ in paths],
        "response_length/mean": [sum(len(node.step.tokens) for node in path) for _, path in paths],
        "episode/turns": [len(path) for _, path in paths],
        "episode/calls": [sum(len(node.step.exchanges) for node in path) for _, path in paths],
        "episode/error_share": [seen.error is not None for seen in observations],
        "rollout/per_tree": [len(tree.leaves) for tree in trees],
    }
    for end in ENDS:
        values[f"episode/end_{end}"] = [leaf.end == end for leaf, _ in paths]
    means = {name: float(np.mean(each)) for name, each in (values | _bel(trees)).items() if each}
    return {"rollout/total": float(len(paths)), "rollout/tasks": float(len(trees)), **means}


def _bel(trees: Sequence[Tree]) -> dict[str, list[float]]:
    searches = [(tree, found) for tree in trees for found in tree.localizations]
    if not searches:
        return {}
    return {
        "bel/searches": [len(tree.localizations) for tree in trees],
        "bel/localized_frac": [found.resolved for _, found in searches],
        "bel/probes": [sum(probe.suffixes > 0 for probe in found.probes) for _, found in searches],
        "bel/suffixes": [sum(probe.suffixes for probe in found.probes) for _, found in searches],
        "bel/relative_position": [
            found.low / (1 + _calling_turns([tree.nodes[i] for i in tree.path(found.leaf)]))
            for tree, found in searches
            if found.resolved
        ],
    }


def _calling_turns(path: Sequence[Node]) -> int:
    return sum(node.step.is_call for node in path)
