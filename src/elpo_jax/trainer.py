"""One training step: rollout, credit, update. Also evaluation, and what is kept of the trees.

A step's rollouts, credit and updates depend on the parameters, the seed, the step's number and its
tasks alone. So a run that goes on from a checkpoint does what it would have done without the
interruption.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from elpo_jax.algorithms import ALGORITHMS, loss_settings
from elpo_jax.components import ROLLOUT, Components
from elpo_jax.config import Config
from elpo_jax.credit.hierarchical import tree_advantages
from elpo_jax.errors import ToolFault
from elpo_jax.evaluation import evaluate, evaluation_metrics, held_out_tasks
from elpo_jax.interrupt import Interrupts
from elpo_jax.learner.batch import trajectory_rows
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.optimizer import make_optimizer
from elpo_jax.learner.run import NonFiniteUpdateError
from elpo_jax.learner.update import TrainState
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import batch_sharding, param_shardings
from elpo_jax.rollout.nodes import elc_nodes
from elpo_jax.rollout.statistics import summarize
from elpo_jax.rollout.tree import Tree
from elpo_jax.rollout.tree_json import to_json
from elpo_jax.sampler.scheduler import SamplingSettings
from elpo_jax.sandbox.pool import Counters
from elpo_jax.tasks.base import Task
from elpo_jax.workdir import WorkDir, write_atomic

Metrics = dict[str, float]


def make_learner(config: Config, model: Decoder, mesh: Mesh) -> Learner:
    """The learner of a run."""
    mini_batches = -(-config.train.batch_prompts // config.train.mini_batch_prompts)
    return Learner(
        model,
        make_optimizer(config.optimizer, config.train.steps * mini_batches * config.train.epochs),
        config.train,
        loss_settings(ALGORITHMS[config.algorithm], config.loss),
        temperature=config.sampler.temperature,
        response_limit=config.episode.max_length,
        param_shardings=param_shardings(model, mesh),
        batch_sharding=batch_sharding(mesh),
    )


class Trainer:
    """Everything a step needs, compiled once.

    Args:
      components: of the run.
      warn: told, in a line, what broke and was made good.
    """

    def __init__(self, components: Components, warn: Callable[[str], None] = lambda line: None):
        config = components.config
        self.components = components
        self.config = config
        self.algorithm = ALGORITHMS[config.algorithm]
        self.scheduler = components.make_scheduler()
        self.held_out = held_out_tasks(components)
        self.learner = make_learner(config, components.model, components.mesh)
        self.warn = warn

    def warm_up(self, state: TrainState) -> TrainState:
        """Compiles every program of the loop. Returns the state, unchanged."""
        self.scheduler.engine.warm_up(state.params)
        return self.learner.warm_up(state)

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return self.scheduler.engine.compiles + sum(self.learner.compiled_programs().values())

    def step(
        self,
        state: TrainState,
        step: int,
        batch: Sequence[tuple[int, Task]],
        interrupts: Interrupts,
    ) -> tuple[TrainState, list[Tree], Metrics]:
        """One rollout batch and the updates on it.

        Args:
          state: donated.
          step: from 1.
          batch: (draw, task) pairs.
          interrupts: checked while rolling out, before anything has changed.

        Raises:
          NonFiniteSampleError, NonFiniteUpdateError: FloatingPointErrors. The first comes before
            anything has changed, the second holds the state before the update that failed.
          ToolFault: the tools broke in every task.
        """
        started = time.monotonic()
        trees, metrics = self._roll_out(state, step, batch, interrupts)
        rolled_out = time.monotonic()
        advantages = self.algorithm.credit(trees, self.config.credit)
        rows = trajectory_rows(trees, advantages, [elc_nodes(tree) for tree in trees])
        try:
            state, update_metrics = self.learner.update(state, rows)
        except NonFiniteUpdateError as error:
            leaves = [(tree.task.id, leaf.ordinal) for tree in trees for leaf in tree.leaves]
            error.labels = [[leaves[row] for row in numbers] for numbers in error.rows]
            error.tasks = sorted({leaves[row][0] for row in error.members})
            raise
        seconds, updating = rolled_out - started, time.monotonic() - rolled_out
        metrics |= update_metrics | {
            "sampler/tokens_per_s": metrics["sampler/decode_tokens"] / seconds,
            "sampler/compiles": self.compiles,
            "update/tokens_per_s": sum(len(row.tokens) for row in rows) / updating,
            "time/rollout": seconds,
            "time/update": updating,
        }
        return state, trees, metrics

    def _roll_out(
        self,
        state: TrainState,
        step: int,
        batch: Sequence[tuple[int, Task]],
        interrupts: Interrupts,
    ) -> tuple[list[Tree], Metrics]:
        sampler, counters = self.config.sampler, self.scheduler.engine.counters
        before, sandboxes = replace(counters), self.components.sandboxes.counters
        trees, summary = self.scheduler.run(
            state.params,
            self.components.key(ROLLOUT, step),
            batch,
            lambda tree: self.algorithm.strategy(tree, self.config.rollout),
            SamplingSettings(sampler.temperature, sampler.top_p, sampler.top_k),
            interrupts.check,
        )
        if summary.dropped_rollouts:
            dropped = (
                f"{summary.dropped_rollouts} rollouts and {summary.dropped_tasks} tasks dropped"
            )
            self.warn(f"warning: step {step}: {dropped}, the last for: {summary.last_failure}")
        if not trees:
            raise ToolFault([f"step {step}: no task left, the tools broke: {summary.last_failure}"])
        done = {name: value - getattr(before, name) for name, value in vars(counters).items()}
        return trees, summarize(trees) | {
            "sampler/prefill_tokens": done["prefill_tokens"],
            "sampler/decode_tokens": done["decode_tokens"],
            "sampler/saved_tokens": summary.saved_tokens,
            "sampler/forks": summary.forks,
            "sampler/swaps": done["swaps_out"] + done["swaps_in"],
            "sampler/lane_use": done["decode_tokens"] / (done["decode_steps"] * sampler.lanes),
            "episode/drops": summary.dropped_rollouts,
            "episode/dropped_tasks": summary.dropped_tasks,
            "episode/tool_timeouts": summary.tool_timeouts,
            **self._sandbox_metrics(sandboxes),
        }

    def _sandbox_metrics(self, before: Counters) -> Metrics:
        """What the sandboxes did since; nothing where none is used."""
        if self.components.sandboxes.start() is None:
            return {}
        after = vars(self.components.sandboxes.counters)
        return {f"sandbox/{name}": count - getattr(before, name) for name, count in after.items()}

    def evaluate(self, state: TrainState) -> tuple[list[Tree], Metrics]:
        """Held-out trees and their metrics."""
        started = time.monotonic()
        trees = evaluate(
            self.components, self.scheduler, state.params, self.held_out, warn=self.warn
        )
        return trees, evaluation_metrics(trees) | {"time/eval": time.monotonic() - started}

    def save_trees(self, folder: WorkDir, step: int, trees: Sequence[Tree]) -> None:
        """Writes the first `train.save_trees` trees of a step, with their advantages."""
        chosen = trees[: self.config.train.save_trees]
        credits = [tree_advantages(tree, self.config.credit)._asdict() for tree in chosen]
        self._write_trees(folder.step_trees(step), chosen, credits)

    def save_evaluation(self, folder: WorkDir, step: int, trees: Sequence[Tree]) -> None:
        """Writes the first `eval.save_trees` trees of an evaluation."""
        chosen = trees[: self.config.eval.save_trees]
        self._write_trees(folder.evaluation_trees(step), chosen, [None] * len(chosen))

    def _write_trees(
        self,
        file: Path,
        trees: Sequence[Tree],
        credits: Sequence[Mapping[str, np.ndarray] | None],
    ) -> None:
        decode = self.components.chat.tokenizer.decode
        documents = [
            to_json(tree, credit, decode=decode)
            for tree, credit in zip(trees, credits, strict=True)
        ]
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, json.dumps(documents, allow_nan=False))
