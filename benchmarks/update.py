"""Tokens a second of the learner's updates, beside an eager PyTorch step on the same batch."""

from collections.abc import Callable

import jax
import numpy as np

from benchmarks.record import Row, rates
from benchmarks.shapes import Shape, one_device
from benchmarks.timing import interleaved
from elpo_jax.config import OptimizerConfig, TrainConfig
from elpo_jax.learner.base import LossSettings
from elpo_jax.learner.batch import Row as Trajectory
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.optimizer import make_optimizer
from elpo_jax.learner.sft import SupervisedLearner, sft_rows
from elpo_jax.policy.sharding import batch_sharding, param_shardings

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
LOSS = LossSettings()
TREES = 4
# How far loss and gradient norm of two float32 implementations may be apart, relatively.
TOLERANCE = 1e-3

Step = Callable[[], tuple[float, float]]  # one update; its loss and gradient norm


class Work:
    """The batch of a shape, and our learners' updates on it."""

    def __init__(self, shape: Shape):
        self._shape = shape
        self._mesh = one_device()
        self._model = shape.model
        self._train = TrainConfig(
            mini_batch_prompts=TREES,
            micro_batch_rows=shape.rows,
            length_buckets=(shape.length,),
        )
        random = np.random.default_rng(0)
        size = (shape.rows, shape.length)
        self.tokens = random.integers(0, shape.vocab_size, size, np.int32)
        self.advantages = random.standard_normal(shape.rows).astype(np.float32)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shape.params()))

    def cross_entropy(self) -> Step:
        """Our supervised update."""
        learner = SupervisedLearner(
            self._model, make_optimizer(OPTIMIZER, 1), self._train, *self._shardings()
        )
        rows = sft_rows([(tokens, np.ones(len(tokens), bool)) for tokens in self.tokens])
        return self._step(learner, rows, "sft")

    def policy(self) -> Step:
        """Our policy update: old log-probabilities, then ELPO's surrogate."""
        param_shardings, batch_sharding = self._shardings()
        learner = Learner(
            self._model,
            make_optimizer(OPTIMIZER, 1),
            self._train,
            LOSS,
            param_shardings=param_shardings,
            batch_sharding=batch_sharding,
        )
        mask = np.ones(self._shape.length, np.float32)
        mask[0] = 0
        nothing = np.zeros_like(mask)
        rows = [
            Trajectory(i * TREES // len(self.tokens), tokens, mask, mask * weight, nothing, nothing)
            for i, (tokens, weight) in enumerate(zip(self.tokens, self.advantages, strict=True))
        ]
        return self._step(learner, rows, "policy")

    def _shardings(self):
        return param_shardings(self._model, self._mesh), batch_sharding(self._mesh)

    def _step(self, learner, rows, prefix: str) -> Step:
        state = learner.init(self._shape.params())

        def step() -> tuple[float, float]:
            nonlocal state
            state, metrics = learner.update(state, rows)
            jax.block_until_ready(state)
            return metrics[f"{prefix}/loss"], metrics[f"{prefix}/grad_norm"]

        return step


def updates(shape: Shape, repetitions: int, with_peer: bool) -> list[Row]:
    """Two rows: a cross-entropy update and a policy update.

    Raises:
      RuntimeError: the peer's loss or gradient isn't ours.
    """
    work = Work(shape)
    ours = {"cross-entropy": work.cross_entropy, "policy": work.policy}
    return [
        _row(
            kind,
            work,
            shape,
            repetitions,
            make(),
            _peer_step(work, shape, kind) if with_peer else None,
        )
        for kind, make in ours.items()
    ]


def _peer_step(work: Work, shape: Shape, kind: str) -> Step:
    from benchmarks import peers

    device = peers.torch_device()
    assert device is not None
    model = peers.make_model(shape.policy, shape.vocab_size, shape.params(), device)
    if peers.count_parameters(model) != work.parameters:
        raise RuntimeError(
            f"peer: expected {work.parameters} parameters, got {peers.count_parameters(model)}"
        )
    training = peers.Training(model, OPTIMIZER)
    if kind == "cross-entropy":
        return lambda: training.cross_entropy_step(work.tokens)
    return lambda: training.policy_step(work.tokens, work.advantages, LOSS)


def check_first(ours: tuple[float, float], theirs: tuple[float, float]) -> float:
    """How far the first loss and gradient norm are apart, relatively; an error if too far."""
    apart = np.abs(np.subtract(ours, theirs)) / np.abs(ours)
    if not apart.max() <= TOLERANCE:
        raise RuntimeError(
            f"peer: expected our loss and gradient norm {ours} to {TOLERANCE:g}, got {theirs}"
        )
    return float(apart.max())


def _row(
    kind: str, work: Work, shape: Shape, repetitions: int, ours: Step, theirs: Step | None
) -> Row:
    name, unit = f"update, {kind}, {shape.name}, {shape.rows}x{shape.length}", "tokens/s"
    amount = work.tokens.size
    note = f"{work.parameters / 1e6:.2f}M parameters"
    first = ours()  # also the warm-up
    if theirs is None:
        (seconds,) = interleaved([ours], repetitions)
        return Row(name, unit, rates(amount, seconds), note=note)
    note += f", first loss and gradient norm equal to {check_first(first, theirs()):.0e}"
    seconds, peers_seconds = interleaved([ours, theirs], repetitions)
    peer = rates(amount, peers_seconds)
    return Row(name, unit, rates(amount, seconds), "eager PyTorch", peer, note)
