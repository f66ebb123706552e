"""From rollout trees to the learner's arrays, on the host.

trees -> rows (one per leaf) -> weights of an update -> micro-batches of fixed shapes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from elpo_jax.learner.base import (
    AGGREGATIONS,
    SEQ_MEAN_TOKEN_MEAN,
    SEQ_MEAN_TOKEN_SUM,
    SEQ_MEAN_TOKEN_SUM_NORM,
    TOKEN_MEAN,
    MicroBatch,
)
from elpo_jax.rollout.tree import Node, Tree


@dataclass(frozen=True, eq=False)
class Row:
    """A trajectory, prompt included. All but `tokens` is 0 off the policy's tokens.

    Attributes:
      tree: index of its tree among those it was built with.
      tokens: int32 [T].
      mask: float32 [T], 1 at tokens that the policy wrote.
      advantages: float32 [T].
      elc: float32 [T], 1 where the lower clip bound is widened.
      sampler_log_probs: float32 [T], as sampled.
    """

    tree: int
    tokens: np.ndarray
    mask: np.ndarray
    advantages: np.ndarray
    elc: np.ndarray
    sampler_log_probs: np.ndarray

    @property
    def policy_tokens(self) -> int:
        return int(self.mask.sum())


class Placement(NamedTuple):
    """A micro-batch: which rows it holds, in order, and the length they are padded to."""

    length: int
    rows: tuple[int, ...]


def trajectory_rows(
    trees: Sequence[Tree],
    advantages: Sequence[Sequence[np.ndarray] | np.ndarray],
    elc: Sequence[np.ndarray],
) -> list[Row]:
    """One row per leaf, trees in their order and leaves in ordinal order.

    A node that several trajectories share is in each one's row, which is how ELPO's Eq. 1 counts
    it (https://arxiv.org/abs/2602.09598).

    Args:
      trees: rollout trees with a prompt and at least one leaf each.
      advantages: for each tree one entry a node: a number for the whole step, or float [T] for
        its tokens.
      elc: for each tree bool [N], nodes whose lower clip bound is widened.

    Raises:
      ValueError: when a tree lacks a prompt or leaf, a trajectory policy tokens, or sizes disagree.
    """
    if not len(trees) == len(advantages) == len(elc):
        raise ValueError(
            f"advantages and elc: expected one entry for each of the {len(trees)} trees, "
            f"got {len(advantages)} and {len(elc)}"
        )
    rows = []
    for index, tree in enumerate(trees):
        if not len(tree.prompt):
            raise ValueError(f"tree {index} ({tree.task.id}): expected a prompt, got no token")
        if not tree.leaves:
            raise ValueError(f"tree {index} ({tree.task.id}): expected a leaf, got none")
        if not len(tree.nodes) == len(advantages[index]) == len(elc[index]):
            raise ValueError(
                f"tree {index} ({tree.task.id}): expected an advantage and an elc flag for each of "
                f"its {len(tree.nodes)} nodes, got {len(advantages[index])} and {len(elc[index])}"
            )
        steps = [
            _step_row(index, node, advantages[index][node.id], elc[index][node.id])
            for node in tree.nodes
        ]
        prompt = _prompt_row(index, tree.prompt)
        for leaf in tree.leaves:
            row = _concatenate([prompt, *(steps[node] for node in tree.path(leaf.node))])
            if not row.policy_tokens:
                raise ValueError(
                    f"tree {index} ({tree.task.id}), rollout {leaf.ordinal}: expected a trajectory "
                    "with at least one policy token, got none"
                )
            rows.append(row)
    return rows


def _step_row(tree: int, node: Node, advantage: np.ndarray, widened: bool) -> Row:
    tokens, mask = node.step.tokens, node.step.is_policy.astype(np.float32)
    advantage = np.asarray(advantage, np.float32)
    if advantage.shape not in ((), tokens.shape):
        raise ValueError(
            f"advantages of tree {tree}, node {node.id}: expected one number or {len(tokens)}, "
            f"got shape {advantage.shape}"
        )
    return Row(
        tree=tree,
        tokens=tokens.astype(np.int32),
        mask=mask,
        advantages=np.where(node.step.is_policy, advantage, np.float32(0)),
        elc=mask * np.float32(widened),
        sampler_log_probs=node.step.log_probs.astype(np.float32),
    )


def _prompt_row(tree: int, prompt: np.ndarray) -> Row:
    nothing = np.zeros(len(prompt), np.float32)
    return Row(tree, np.asarray(prompt, np.int32), nothing, nothing, nothing, nothing)


def _concatenate(parts: Sequence[Row]) -> Row:
    return Row(
        tree=parts[0].tree,
        tokens=np.concatenate([part.tokens for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        advantages=np.concatenate([part.advantages for part in parts]),
        elc=np.concatenate([part.elc for part in parts]),
        sampler_log_probs=np.concatenate([part.sampler_log_probs for part in parts]),
    )


def token_weights(
    rows: Sequence[Row], aggregation: str, response_limit: int | None = None
) -> list[np.ndarray]:
    """Each token's share in the loss of one update over these rows (ELPO Eq. 1 by default).

    With P trees, G trajectories in the row's tree and |τ| policy tokens in the row, a policy token
    weighs

    - 'seq-mean-token-mean' (Eq. 1): 1 / (P G |τ|)
    - 'token-mean': 1 / policy tokens of all rows
    - 'seq-mean-token-sum': 1 / (P G)
    - 'seq-mean-token-sum-norm': 1 / (P G response_limit)

    Args:
      rows: every trajectory of the update's trees, also those without advantage.
      aggregation: one of the above.
      response_limit: the longest response in tokens; needed by the last one only.

    Returns:
      float32 [T] for each row, 0 off the policy's tokens.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"aggregation: expected one of {', '.join(AGGREGATIONS)}, got {aggregation!r}"
        )
    if aggregation == SEQ_MEAN_TOKEN_SUM_NORM and not (response_limit and response_limit > 0):
        raise ValueError(f"response_limit: expected > 0 with {aggregation}, got {response_limit}")
    group_sizes: dict[int, int] = {}
    for row in rows:
        group_sizes[row.tree] = group_sizes.get(row.tree, 0) + 1
    total_tokens = sum(row.policy_tokens for row in rows)

    def divisor(row: Row) -> int:
        trajectories = len(group_sizes) * group_sizes[row.tree]
        return {
            SEQ_MEAN_TOKEN_MEAN: trajectories * row.policy_tokens,
            TOKEN_MEAN: total_tokens,
            SEQ_MEAN_TOKEN_SUM: trajectories,
            SEQ_MEAN_TOKEN_SUM_NORM: trajectories * (response_limit or 1),
        }[aggregation]

    return [row.mask / np.float32(divisor(row)) for row in rows]


def place_rows(lengths: Sequence[int], buckets: Sequence[int], micro_rows: int) -> list[Placement]:
    """Deals rows out to micro-batches of the fixed shapes [micro_rows, bucket].

    A row goes to the shortest bucket that holds it, in the given order. The rows of a bucket's
    last, unfilled micro-batch move up into the first longer bucket that has unfilled places for all
    of them, which saves a micro-batch.

    Raises:
      ValueError: when a row is longer than the last bucket.
    """
    if micro_rows < 1 or not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        raise ValueError(
            "buckets and micro_rows: expected ascending lengths >= 1 and rows >= 1, "
            f"got {tuple(buckets)} and {micro_rows}"
        )
    members: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for row, length in enumerate(lengths):
        fitting = [bucket for bucket in buckets if length <= bucket]
        if not fitting:
            raise ValueError(
                f"row {row}: expected at most {buckets[-1]} tokens, the last bucket, got {length}"
            )
        members[fitting[0]].append(row)

    used = [bucket for bucket in buckets if members[bucket]]
    for bucket, longer in itertools.combinations(used, 2):
        rest = len(members[bucket]) % micro_rows
        places = -len(members[longer]) % micro_rows
        if 0 < rest <= places:
            members[longer] = sorted(members[longer] + members[bucket][-rest:])
            del members[bucket][-rest:]
    return [
        Placement(bucket, tuple(members[bucket][start : start + micro_rows]))
        for bucket in used
        for start in range(0, len(members[bucket]), micro_rows)
    ]


def stack(
    columns: Sequence[np.ndarray], placement: Placement, micro_rows: int, dtype: type
) -> np.ndarray:
    """The placement's entries of `columns` (one [T] a row) as [micro_rows, length], zero-padded."""
    stacked: np.ndarray = np.zeros((micro_rows, placement.length), dtype)
    for place, row in enumerate(placement.rows):
        stacked[place, : len(columns[row])] = columns[row]
    return stacked


def make_micro_batches(
    rows: Sequence[Row],
    weights: Sequence[np.ndarray],
    old_log_probs: Sequence[np.ndarray],
    buckets: Sequence[int],
    micro_rows: int,
) -> list[MicroBatch]:
    """Micro-batches of one update; `weights` and `old_log_probs` hold float32 [T] for each row."""
    return [
        MicroBatch(
            tokens=stack([row.tokens for row in rows], placement, micro_rows, np.int32),
            mask=stack([row.mask for row in rows], placement, micro_rows, np.float32),
            weights=stack(weights, placement, micro_rows, np.float32),
            advantages=stack([row.advantages for row in rows], placement, micro_rows, np.float32),
            elc=stack([row.elc for row in rows], placement, micro_rows, np.float32),
            old_log_probs=stack(old_log_probs, placement, micro_rows, np.float32),
        )
        for placement in place_rows([len(row.tokens) for row in rows], buckets, micro_rows)
    ]
