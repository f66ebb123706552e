"""Rollout trees as JSON, for people and for reports.

A document is an object with these members; `null` stands for what does not exist and for numbers
that are not finite, so every document is strict JSON.

  format         'elpo_jax.tree/2'; the number rises when a reader has to change
  task           {id, kind, question, answer, calls}, `calls` those of the suite's solver
  prompt         {text, tokens}, `tokens` a count
  nodes          a list in id order, parents before children:
    id, parent     `parent` is -1 for first turns
    depth          from 1
    ordinal        of the rollout that made the node
    text           the policy's turn
    exchanges      the turn's calls in order: {call, observation}, `call` {name, arguments} of a
                   well-formed one, or null; `observation` {text, error}, or null where a cap ended
                   the episode first
    is_open        the caps let the episode go on
    policy_tokens, environment_tokens
    mean_entropy   nats, over the policy's tokens
    trajectories   how many pass through the node
    critical       a localisation names it
    elc            the lower clip bound is widened here
    reward         of the trajectory that ends here, or null
    success        the verdict on it, or null
    credit         the values given to `to_json` by name, e.g. {step_reward, branch, trajectory,
                   hierarchical}; empty when none were given
  leaves         in ordinal order: {node, ordinal, end, success, reward, answer}
  localizations  in the order of the searches: {leaf, ordinal, low, high, resolved,
                 probes: [{step, suffixes, successes}], critical_node, widen_clip}
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from elpo_jax.rollout.nodes import elc_nodes, trajectory_counts
from elpo_jax.rollout.tree import Exchange, Leaf, Localization, Node, Tree

FORMAT = "elpo_jax.tree/2"
MAX_DEPTH = 64  # of values inside a call's arguments; the policy writes those


class Skeleton(NamedTuple):
    """What credit needs of a tree.

    Attributes:
      parents: int32 [N], -1 for first turns.
      rewards: float64 [N], at leaves; 0 elsewhere.
    """

    parents: np.ndarray
    rewards: np.ndarray


def to_json(
    tree: Tree,
    advantages: Mapping[str, np.ndarray] | None = None,
    *,
    decode: Callable[[list[int]], str],
) -> dict[str, Any]:
    """The document of a tree (see the module).

    Args:
      tree: N nodes.
      advantages: float [N] by name, e.g. `hierarchical_advantages(...)._asdict()`.
      decode: token ids to text.

    Raises:
      ValueError: for advantages of another shape than [N].
    """
    credit = dict(advantages or {})
    for name, values in credit.items():
        if np.shape(values) != (len(tree.nodes),):
            raise ValueError(
                f"advantages[{name!r}]: expected shape ({len(tree.nodes)},), got {np.shape(values)}"
            )
    ends = {leaf.node: leaf for leaf in tree.leaves}
    critical = {found.critical_node for found in tree.localizations}
    counts, widened = trajectory_counts(tree), elc_nodes(tree)
    nodes = [
        _node(node, ends.get(node.id), decode)
        | {
            "trajectories": counts[node.id],
            "critical": node.id in critical,
            "elc": widened[node.id],
            "credit": {name: values[node.id] for name, values in credit.items()},
        }
        for node in tree.nodes
    ]
    document = {
        "format": FORMAT,
        "task": {
            "id": tree.task.id,
            "kind": tree.task.kind,
            "question": tree.task.question,
            "answer": tree.task.answer,
            "calls": tree.task.calls,
        },
        "prompt": {"text": decode(tree.prompt.tolist()), "tokens": len(tree.prompt)},
        "nodes": nodes,
        "leaves": [_leaf(leaf) for leaf in tree.leaves],
        "localizations": [_localization(tree, found) for found in tree.localizations],
    }
    return {name: _strict(value) for name, value in document.items()}


def skeleton(document: Mapping[str, Any]) -> Skeleton:
    """Reads back what credit needs, so that a stored tree's advantages can be computed again.

    Raises:
      ValueError: for a document of another format.
    """
    if document.get("format") != FORMAT:
        raise ValueError(f"tree document: expected format {FORMAT!r}, got {document.get('format')}")
    nodes = document["nodes"]
    return Skeleton(
        np.array([node["parent"] for node in nodes], np.int32),
        np.array([node["reward"] or 0.0 for node in nodes], np.float64),
    )


def _node(node: Node, leaf: Leaf | None, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    step = node.step
    return {
        "id": node.id,
        "parent": node.parent,
        "depth": node.depth,
        "ordinal": node.ordinal,
        "text": decode(step.tokens[step.is_policy].tolist()),
        "exchanges": [_exchange(each) for each in step.exchanges],
        "is_open": step.is_open,
        "policy_tokens": step.is_policy.sum(),
        "environment_tokens": (~step.is_policy).sum(),
        "mean_entropy": step.mean_entropy,
        "reward": leaf and leaf.reward,
        "success": leaf and leaf.success,
    }


def _exchange(exchange: Exchange) -> dict[str, Any]:
    call, observation = exchange.call, exchange.observation
    return {
        "call": call and {"name": call.name, "arguments": call.arguments},
        "observation": observation and {"text": observation.text, "error": observation.error},
    }


def _leaf(leaf: Leaf) -> dict[str, Any]:
    return {
        "node": leaf.node,
        "ordinal": leaf.ordinal,
        "end": leaf.end,
        "success": leaf.success,
        "reward": leaf.reward,
        "answer": leaf.answer,
    }


def _localization(tree: Tree, found: Localization) -> dict[str, Any]:
    return {
        "leaf": found.leaf,
        "ordinal": tree.nodes[found.leaf].ordinal,
        "low": found.low,
        "high": found.high,
        "resolved": found.resolved,
        "probes": [
            {"step": probe.step, "suffixes": probe.suffixes, "successes": probe.successes}
            for probe in found.probes
        ],
        "critical_node": found.critical_node,
        "widen_clip": found.widen_clip,
    }


def _strict(value: Any, depth: int = 0) -> Any:
    """Plain JSON values: no NaN or infinity, no numpy scalars, no nesting without bound."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic):
        return _strict(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): _strict(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item, depth + 1) for item in value]
    raise ValueError(f"tree document: expected JSON values, got {type(value).__name__}")
