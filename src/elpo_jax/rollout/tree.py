"""The rollout tree: everything that was sampled for one task, as it was produced.

A node is a sampling event: one assistant turn with the environment tokens that answered it. The
same text drawn twice is two nodes. First turns of full trajectories are children of the root, which
is the prompt and has no node of its own (parent `ROOT`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elpo_jax.tasks.base import Task
from elpo_jax.tools.base import Observation

ROOT = -1  # the parent of first turns


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call: the name and the arguments object as parsed."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Exchange:
    """A call and its answer.

    Attributes:
      call: as parsed; None if it was malformed.
      observation: None where a cap ended the episode first.
    """

    call: ToolCall | None
    observation: Observation | None


@dataclass(frozen=True, eq=False)
class Step:
    """An assistant turn and the environment's answer, token for token.

    Attributes:
      tokens: int32 [T], the policy's tokens, then the environment's.
      is_policy: bool [T].
      log_probs: float32 [T], as sampled; 0 where the environment wrote.
      entropies: float32 [T] nats, full vocabulary, as sampled; 0 where the environment wrote.
      exchanges: the turn's calls, well-formed or not, in order; empty for an answer turn.
      states: tool states after this step, by tool name.
      is_open: the episode can go on after this step under the caps.
    """

    tokens: np.ndarray
    is_policy: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray
    exchanges: tuple[Exchange, ...]
    states: Mapping[str, Any]
    is_open: bool

    @property
    def is_call(self) -> bool:
        """Whether the turn asked for a tool."""
        return bool(self.exchanges)

    @property
    def observations(self) -> list[Observation]:
        """The answers to the turn's calls, in order."""
        return [each.observation for each in self.exchanges if each.observation]

    @property
    def mean_entropy(self) -> float:
        """Mean entropy over the policy's tokens, in nats (0 for a turn without any)."""
        return float(self.entropies[self.is_policy].mean()) if self.is_policy.any() else 0.0


@dataclass(frozen=True, eq=False)
class Rollout:
    """What one request came to: a full trajectory, or the suffix sampled from `parent`.

    Attributes:
      ordinal: the request's number within its task, part of every sampling key.
      parent: the node it continues, or ROOT.
      steps: the new steps, at least one.
      end: why it ended: 'answer', 'length', 'turns', 'calls', 'observation' or 'eos'.
      success: the verifier's verdict.
      reward: the shaped reward.
      answer: what the verifier extracted.
    """

    ordinal: int
    parent: int
    steps: tuple[Step, ...]
    end: str
    success: bool
    reward: float
    answer: str | None


@dataclass(frozen=True, eq=False)
class Node:
    """A step in its tree. `depth` counts from 1; `ordinal` names the rollout that made it."""

    id: int
    parent: int
    depth: int
    ordinal: int
    step: Step


@dataclass(frozen=True)
class Leaf:
    """The end of a trajectory: the last node of a rollout with that rollout's outcome."""

    node: int
    ordinal: int
    end: str
    success: bool
    reward: float
    answer: str | None


@dataclass(frozen=True)
class Probe:
    """Suffixes sampled at one anchor: step number, how many, how many succeeded.

    No suffix is sampled at an anchor where the caps leave no room.
    """

    step: int
    suffixes: int
    successes: int


@dataclass(frozen=True)
class Localization:
    """The outcome of one search for the first irrecoverable step of a failed trajectory.

    Attributes:
      leaf: node id of the trajectory's end.
      low, high: the range of step numbers (from 1) that is left; equal when resolved.
      resolved: the search came to its end within the budget.
      probes: anchors in the order they were visited.
      critical_node: node of step `low`, the step the search names.
      widen_clip: ELC applies from the critical node downwards.
    """

    leaf: int
    low: int
    high: int
    resolved: bool
    probes: tuple[Probe, ...]
    critical_node: int
    widen_clip: bool


@dataclass(eq=False)
class Tree:
    """The growing tree of one task.

    Attributes:
      task: the question.
      prompt: int32 [P] ids, the generation prompt included.
      nodes: parents before children; a node's id is its index.
      leaves: one per rollout, in ordinal order.
      first_wave: how many of the leaves, from the first, were asked for before any outcome was
        known; 0 if nobody counted.
      localizations: what BEL found (empty for other strategies).
    """

    task: Task
    prompt: np.ndarray
    nodes: list[Node] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    first_wave: int = 0
    localizations: list[Localization] = field(default_factory=list)

    def add(self, rollout: Rollout) -> Leaf:
        """Appends a rollout's steps below its parent and returns its leaf."""
        if not rollout.steps:
            raise ValueError(f"rollout {rollout.ordinal}: expected at least one step, got none")
        parent = rollout.parent
        for step in rollout.steps:
            depth = 1 if parent == ROOT else self.nodes[parent].depth + 1
            self.nodes.append(Node(len(self.nodes), parent, depth, rollout.ordinal, step))
            parent = self.nodes[-1].id
        leaf = Leaf(
            parent, rollout.ordinal, rollout.end, rollout.success, rollout.reward, rollout.answer
        )
        self.leaves.append(leaf)
        return leaf

    def path(self, node: int) -> list[int]:
        """Node ids from the first turn to `node` (empty for ROOT)."""
        ids = []
        while node != ROOT:
            ids.append(node)
            node = self.nodes[node].parent
        return ids[::-1]

    @property
    def parents(self) -> np.ndarray:
        """int32 [N], ROOT for first turns."""
        return np.array([node.parent for node in self.nodes], np.int32)

    @property
    def rewards(self) -> np.ndarray:
        """float64 [N], each rollout's reward at its leaf and 0 elsewhere."""
        rewards = np.zeros(len(self.nodes))
        for leaf in self.leaves:
            rewards[leaf.node] = leaf.reward
        return rewards
