"""Fake rollouts for tests of trees: steps with chosen entropies, verdicts that a test dictates."""

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import settings

from elpo_jax.rollout.controller import Controller, Wave
from elpo_jax.rollout.tree import ROOT, Exchange, Rollout, Step, ToolCall, Tree
from elpo_jax.tasks.base import Task
from elpo_jax.tools.base import Observation

PROPERTY = settings(deadline=None, derandomize=True)  # machines are busy, and runs alike

TASK = Task("train/0", "ratio", "How heavy?", {"value": 1}, calls=2)


def empty_tree() -> Tree:
    return Tree(TASK, np.array([7, 8, 9], np.int32))


def call_step(
    entropies: Sequence[float] = (1.0,),
    environment: int = 1,
    is_open: bool = True,
    error: str | None = None,
    arguments: dict | None = None,
) -> Step:
    """A turn of `len(entropies)` policy tokens with a call and `environment` tokens of output."""
    return _step(
        entropies,
        environment,
        is_open=is_open,
        exchanges=(Exchange(ToolCall("lookup", arguments or {}), Observation("42", error)),),
    )


def answer_step(entropies: Sequence[float] = (1.0,)) -> Step:
    """A turn without a call: the answer, or a turn that a cap cut short."""
    return _step(entropies, 0, is_open=False, exchanges=())


def _step(
    entropies: Sequence[float],
    environment: int,
    is_open: bool,
    exchanges: tuple[Exchange, ...],
) -> Step:
    size = len(entropies) + environment
    is_policy = np.arange(size) < len(entropies)
    return Step(
        tokens=np.arange(size, dtype=np.int32),
        is_policy=is_policy,
        log_probs=np.where(is_policy, -0.5, 0.0).astype(np.float32),
        entropies=np.array([*entropies, *[0.0] * environment], np.float32),
        exchanges=exchanges,
        states={},
        is_open=is_open,
    )


def rollout(
    ordinal: int,
    parent: int,
    steps: Sequence[Step],
    success: bool,
    reward: float | None = None,
    end: str = "answer",
) -> Rollout:
    """A rollout with reward 1 or -1.1, unless another is given."""
    if reward is None:
        reward = 1.0 if success else -1.1
    return Rollout(ordinal, parent, tuple(steps), end, success, reward, "1" if success else None)


def drive(
    controller: Controller, tree: Tree, sample: Callable[[int, int], Rollout]
) -> list[tuple[Wave, tuple[int, ...]]]:
    """Runs a controller to its end; `sample(ordinal, parent)` plays policy and environment.

    A branch from a rollout that was not retained and kept since fails, as it does in the sampler.

    Returns:
      Each wave with the ordinals of its rollouts.
    """
    waves = []
    ordinal, retained = 0, set()
    try:
        wave = next(controller)
        while True:
            ordinals = tuple(range(ordinal, ordinal + len(wave.parents)))
            ordinal += len(ordinals)
            waves.append((wave, ordinals))
            retained &= wave.keep
            assert {tree.nodes[node].ordinal for node in wave.parents if node != ROOT} <= retained
            rollouts = [sample(*pair) for pair in zip(ordinals, wave.parents, strict=True)]
            retained |= {each.ordinal for each in rollouts if wave.retain(each)}
            leaves = [tree.add(each) for each in rollouts]
            wave = controller.send(leaves)
    except StopIteration:
        return waves
