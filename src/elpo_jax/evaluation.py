"""Held-out evaluation: independent samples of every task, and what they say of the policy."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from elpo_jax.components import EVALUATION, Components
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.statistics import summarize
from elpo_jax.rollout.tree import Tree
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler
from elpo_jax.tasks.base import HELD_OUT, Task

Params = Any


@dataclass(frozen=True)
class Count:
    """Successful samples among all, of the tasks of one kind."""

    successes: int
    trials: int


def held_out_tasks(components: Components) -> list[Task]:
    """The first `eval.tasks` tasks of the held-out split, the same at every evaluation."""
    return [components.suite.task(HELD_OUT, i) for i in range(components.config.eval.tasks)]


def evaluate(
    components: Components,
    scheduler: Scheduler,
    params: Params,
    tasks: Sequence[Task],
    on_round: Callable[[], None] = lambda: None,
) -> list[Tree]:
    """Samples `eval.samples` independent trajectories of each task.

    The keys are those of evaluation at step 0 every time, so two evaluations of a run differ by
    their parameters alone.
    """
    config = components.config
    rollout = replace(config.rollout, budget=config.eval.samples)
    settings = SamplingSettings(config.eval.temperature, config.eval.top_p, config.eval.top_k)
    trees, _ = scheduler.run(
        params,
        components.key(EVALUATION),
        list(enumerate(tasks)),
        partial(independent, config=rollout),
        settings,
        on_round,
    )
    return trees


def count_by_kind(trees: Sequence[Tree]) -> dict[str, Count]:
    """Successes by task kind, in alphabetical order."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for tree in trees:
        outcomes[tree.task.kind] += [leaf.success for leaf in tree.leaves]
    return {kind: Count(sum(each), len(each)) for kind, each in sorted(outcomes.items())}


def evaluation_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """Metrics of the held-out evaluation, under 'eval/'."""
    summary = summarize(trees)
    metrics = {
        "eval/success": summary["success/mean"],
        "eval/reward": summary["reward/mean"],
        "eval/response_length": summary["response_length/mean"],
        "eval/calls": summary["episode/calls"],
        "eval/tasks": float(len(trees)),
    }
    for kind, count in count_by_kind(trees).items():
        metrics[f"eval/success/{kind}"] = count.successes / count.trials
    return metrics


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """Unbiased pass@k of one task: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, in the product form that stays in range.

    Raises:
      ValueError: unless 0 <= successes <= samples and 1 <= k <= samples.
    """
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass_at_k: expected 0 <= successes <= samples and 1 <= k <= samples, got "
            f"samples={samples}, successes={successes}, k={k}"
        )
    failures = samples - successes
    if failures < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(failures + 1, samples + 1)))
