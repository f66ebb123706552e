"""What the leaves and the localisations of a tree say about its nodes."""

import numpy as np

from elpo_jax.rollout.tree import ROOT, Tree


def trajectory_counts(tree: Tree) -> np.ndarray:
    """int64 [N], how many trajectories pass through each node."""
    counts = np.zeros(len(tree.nodes), np.int64)
    for leaf in tree.leaves:
        counts[leaf.node] += 1
    for node in reversed(tree.nodes):  # children before parents
        if node.parent != ROOT:
            counts[node.parent] += counts[node.id]
    return counts


def elc_nodes(tree: Tree) -> np.ndarray:
    """bool [N], where error-localized clipping widens the lower bound (ELPO 4.3, Eq. 11).

    That is each critical node whose localisation widens the clip, and every node below one, so that
    all branches that contain the critical step carry it (https://arxiv.org/abs/2602.09598).
    """
    widened = np.zeros(len(tree.nodes), bool)
    for found in tree.localizations:
        widened[found.critical_node] |= found.widen_clip
    for node in tree.nodes:  # parents before children
        if node.parent != ROOT:
            widened[node.id] |= widened[node.parent]
    return widened
