"""Computes a dumped update again, stage by stage: where does the first NaN or infinity arise?"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elpo_jax.cold_start import make_supervised_learner
from elpo_jax.config import MeshConfig
from elpo_jax.errors import UsageError
from elpo_jax.faults import SAMPLE, Fault
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.partition import split
from elpo_jax.learner.run import SUPERVISED, NonFiniteUpdateError
from elpo_jax.learner.sft import SupervisedLearner
from elpo_jax.learner.surrogate import clipped_surrogate
from elpo_jax.learner.update import TrainState, make_log_probs
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import batch_sharding, make_mesh
from elpo_jax.trainer import make_learner


class Stage(NamedTuple):
    """One stage of the computation.

    Attributes:
      name: of its values.
      broken: how many of them are NaN or infinite.
      total: how many there are.
      first: where the first broken one is, in words.
    """

    name: str
    broken: int
    total: int
    first: str


class Replay:
    """The learner of a dumped fault; on one device where those here don't make up its mesh.

    Attributes:
      is_on_mesh: whether they do.
    """

    def __init__(self, fault: Fault):
        config = fault.config
        self.fault = fault
        try:
            self.mesh, self.is_on_mesh = make_mesh(config.mesh), True
        except UsageError:
            self.mesh, self.is_on_mesh = make_mesh(MeshConfig(), jax.devices()[:1]), False
        self.model = make_decoder(config.policy, fault.vocab_size, self.mesh)
        make = make_supervised_learner if fault.kind == SUPERVISED else make_learner
        self.learner: Learner | SupervisedLearner = make(config, self.model, self.mesh)
        self._log_probs = make_log_probs(
            self.model, config.train.logprob_chunk, batch_sharding(self.mesh)
        )

    def stages(self, state: TrainState) -> Iterator[Stage]:
        """All stages, in the order of the computation; those behind the fault are broken too."""
        fault = self.fault
        yield _of_tree("parameters", state.params)
        yield _of_tree("optimiser state", state.opt_state)
        temperature = self.learner.temperature
        results = [
            self._log_probs(state.params, b.tokens, temperature) for b in fault.micro_batches
        ]
        log_probs = [np.asarray(log_prob) for log_prob, _ in results]
        yield self._of_tokens("log-probabilities", log_probs)
        if fault.kind == SAMPLE:
            yield self._of_tokens("entropies", [np.asarray(entropy) for _, entropy in results])
            return
        batches = fault.micro_batches
        objectives = log_probs
        bounds = self.learner.bounds
        if bounds is not None:
            yield self._of_tokens("old log-probabilities", [b.old_log_probs for b in batches])
            yield self._of_tokens("advantages", [b.advantages for b in batches])
            surrogates = [
                clipped_surrogate(jnp.asarray(p), b.old_log_probs, b.advantages, b.elc, bounds)
                for p, b in zip(log_probs, batches, strict=True)
            ]
            yield self._of_tokens("ratios", [np.asarray(s.ratio) for s in surrogates])
            objectives = [np.asarray(s.objective) for s in surrogates]
        terms = [b.weights * o for b, o in zip(batches, objectives, strict=True)]
        yield self._of_tokens("loss terms", terms)
        gradients, loss = self._accumulate(state, batches)
        yield _of_tree("loss", loss)
        yield _of_tree("gradients", gradients)
        yield _of_tree("norm of the gradients", optax.tree.norm(gradients))
        yield _of_tree("new parameters", self._new_parameters(state, gradients))

    def update(self, state: TrainState) -> str:
        """Makes the update anew. Returns what stopped it, or '' if nothing did."""
        try:
            self.learner.run(state, self.fault.micro_batches)
        except NonFiniteUpdateError as error:
            return str(error)
        return ""

    def _accumulate(self, state: TrainState, batches: Sequence[MicroBatch]) -> tuple[Any, Any]:
        programs = self.learner.programs
        accumulator = programs.zeros(state.params)
        for batch in batches:
            accumulator, _ = programs.accumulate(
                state.params, accumulator, batch, self.learner.temperature, self.learner.bounds
            )
        return accumulator.gradients, accumulator.loss

    def _new_parameters(self, state: TrainState, gradients: Any) -> Any:
        weights = state.masters or split(state.params)[0]
        transform = self.learner.optimizer.transform
        updates, _ = transform.update(gradients, state.opt_state, weights)
        return optax.apply_updates(weights, updates)

    def _of_tokens(self, name: str, values: Sequence[np.ndarray]) -> Stage:
        """Of the tokens that count, [B, T] for each micro-batch."""
        broken, total, first = 0, 0, ""
        for number, (value, batch) in enumerate(zip(values, self.fault.micro_batches, strict=True)):
            bad = ~np.isfinite(value) & (np.asarray(batch.mask) > 0)
            total += int((np.asarray(batch.mask) > 0).sum())
            broken += int(bad.sum())
            if bad.any() and not first:
                row, token = (int(i) for i in np.argwhere(bad)[0])
                task, rollout = self.fault.labels[number][row]
                first = (
                    f"{value[row, token]} at micro-batch {number}, row {row} ({task}, rollout "
                    f"{rollout}), token {token}"
                )
        return Stage(name, broken, total, first)


def _of_tree(name: str, tree: Any) -> Stage:
    broken, total, first = 0, 0, ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.asarray(leaf)
        bad = ~np.isfinite(value.astype(np.float64))
        broken, total = broken + int(bad.sum()), total + bad.size
        if bad.any() and not first:
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            place = f"{jax.tree_util.keystr(path)}{list(index) or ''}"
            first = f"{value[index]} at {place}, {bad.sum()} of its {bad.size}"
            first = first if path else str(value)
    return Stage(name, broken, total, first)
