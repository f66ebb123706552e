"""Held-out evaluation: independent samples of every task, and what they say of the policy."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from elpo_jax.components import EVALUATION, Components
from elpo_jax.errors import ToolFault
from elpo_jax.rollout.independent import independent
from elpo_jax.rollout.statistics import ENDS, summarize
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
    """The first `eval.tasks` tasks of the held-out split, the same at every evaluation.

    A finite split may have fewer.
    """
    wanted, indices = components.config.eval.tasks, components.indices[HELD_OUT]
    chosen = range(wanted) if indices is None else indices[:wanted]
    return [components.suite.task(HELD_OUT, index) for index in chosen]


def evaluate(
    components: Components,
    scheduler: Scheduler,
    params: Params,
    tasks: Sequence[Task],
    on_round: Callable[[], None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
) -> list[Tree]:
    """Samples `eval.samples` independent trajectories of each task.

    The keys are those of evaluation at step 0 every time, so two evaluations of a run differ by
    their parameters alone. `warn` is told of tasks that are missing because their tools broke.

    Raises:
      ToolFault: the tools broke in every task.
    """
    config = components.config
    rollout = replace(config.rollout, budget=config.eval.samples)
    settings = SamplingSettings(config.eval.temperature, config.eval.top_p, config.eval.top_k)
    trees, summary = scheduler.run(
        params,
        components.key(EVALUATION),
        list(enumerate(tasks)),
        partial(independent, config=rollout),
        settings,
        on_round,
    )
    if summary.dropped_tasks:
        missing = f"evaluation: {summary.dropped_tasks} of {len(tasks)} tasks dropped"
        line = f"{missing}, their tools broke, the last for: {summary.last_failure}"
        if not trees:
            raise ToolFault([line])
        warn(f"warning: {line}")
    return trees


def count_by(trees: Sequence[Tree], group: Callable[[Task], Any]) -> dict[Any, Count]:
    """Successes by what `group` says of the task, in ascending order."""
    outcomes: dict[Any, list[bool]] = defaultdict(list)
    for tree in trees:
        outcomes[group(tree.task)] += [leaf.success for leaf in tree.leaves]
    return {key: Count(sum(each), len(each)) for key, each in sorted(outcomes.items())}


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
    if "episode/error_share" in summary:
        metrics["eval/error_share"] = summary["episode/error_share"]
    for end in ENDS:
        metrics[f"eval/end_{end}"] = summary[f"episode/end_{end}"]
    for kind, count in count_by(trees, lambda task: task.kind).items():
        metrics[f"eval/success/{kind}"] = count.successes / count.trials
        metrics[f"eval/trials/{kind}"] = count.trials
    with_solver = [tree for tree in trees if tree.task.calls is not None]
    for calls, count in count_by(with_solver, lambda task: task.calls).items():
        metrics[f"eval/success_by_calls/{calls}"] = count.successes / count.trials
        metrics[f"eval/trials_by_calls/{calls}"] = count.trials
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


def majority(answers: Sequence[str | None], successes: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right; of equally frequent ones the first seen counts.

    Args:
      answers: normalised, as verifiers extract them; None has no vote.
      successes: the verdict on each.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    winner, _ = votes.most_common(1)[0]  # equal counts stay in the order of first encounter
    return successes[answers.index(winner)]


def majority_at_k(
    answers: Sequence[str | None], successes: Sequence[bool], k: int, seed: int, subsets: int = 256
) -> float:
    """maj@k of one task: the mean of `majority` over k-subsets of its samples.

    All subsets where there are at most `subsets` of them, else that many drawn from the seed.
    Subsets keep the samples' order.
    """
    count = len(answers)
    if math.comb(count, k) <= subsets:
        chosen = [list(subset) for subset in combinations(range(count), k)]
    else:
        rng = np.random.default_rng(seed)
        chosen = [sorted(rng.choice(count, k, replace=False)) for _ in range(subsets)]
    wins = [majority([answers[i] for i in c], [successes[i] for i in c]) for c in chosen]
    return float(np.mean(wins))


def report(trees: Sequence[Tree], seed: int) -> dict[str, Any]:
    """Everything an evaluation says, as JSON-serialisable values.

    Returns:
      'tasks', 'samples' (a task); 'avg@n'; 'pass@k' and 'maj@k' by k = 1, 2, 4, ... up to n;
      'kinds' with successes and trials; 'tools' with calls and environment tokens per rollout and
      per success, and the share of calls that came to an error.
    """
    samples = min(len(tree.leaves) for tree in trees)
    ks = [1 << i for i in range(samples.bit_length())]
    outcomes = [
        ([leaf.answer for leaf in tree.leaves], [leaf.success for leaf in tree.leaves])
        for tree in trees
    ]
    steps = [node.step for tree in trees for node in tree.nodes]
    rollouts = sum(len(tree.leaves) for tree in trees)
    successes = sum(sum(wins) for _, wins in outcomes)
    calls = sum(len(step.exchanges) for step in steps)
    tool_tokens = sum(int((~step.is_policy).sum()) for step in steps)
    errors = sum(seen.error is not None for step in steps for seen in step.observations)
    return {
        "tasks": len(trees),
        "samples": samples,
        "avg@n": successes / rollouts,
        "pass@k": {
            k: float(np.mean([pass_at_k(len(wins), sum(wins), k) for _, wins in outcomes]))
            for k in ks
        },
        "maj@k": {
            k: float(
                np.mean(
                    [majority_at_k(*outcome, k, seed + i) for i, outcome in enumerate(outcomes)]
                )
            )
            for k in ks
        },
        "kinds": {
            kind: vars(count) for kind, count in count_by(trees, lambda task: task.kind).items()
        },
        "tools": {
            "calls_per_rollout": calls / rollouts,
            "calls_per_success": calls / successes if successes else None,
            "tokens_per_rollout": tool_tokens / rollouts,
            "tokens_per_success": tool_tokens / successes if successes else None,
            "error_share": errors / calls if calls else 0.0,
        },
    }
