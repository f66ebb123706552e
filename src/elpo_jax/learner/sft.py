"""The cold start: cross-entropy on demonstrations, through the same programs as policy updates."""

from collections.abc import Mapping, Sequence

import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding

from elpo_jax.config import TrainConfig
from elpo_jax.learner.base import TOKEN_MEAN, MicroBatch
from elpo_jax.learner.batch import Row, make_micro_batches, place_rows, token_weights
from elpo_jax.learner.loss import cross_entropy_loss
from elpo_jax.learner.optimizer import Optimizer
from elpo_jax.learner.run import (
    SUPERVISED,
    Metrics,
    NonFiniteUpdateError,
    compiled_update,
    mean_applied,
    run_update,
    warm_up_update,
)
from elpo_jax.learner.update import Applied, Params, Shardings, TrainState, make_update


def sft_rows(demonstrations: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    """Rows of demonstrations.

    Args:
      demonstrations: for each the tokens int [T] of the whole conversation, and bool [T], true at
        the assistant's own tokens (text, calls and end of turn), which are what is learnt.

    Raises:
      ValueError: when shapes differ, or a demonstration has nothing to learn after its first token.
    """
    rows = []
    for index, (tokens, is_policy) in enumerate(demonstrations):
        tokens, mask = np.asarray(tokens, np.int32), np.array(is_policy, np.float32)
        if tokens.ndim != 1 or tokens.shape != mask.shape:
            raise ValueError(
                f"demonstration {index}: expected tokens [T] and is_policy [T], "
                f"got {tokens.shape} and {mask.shape}"
            )
        mask[:1] = 0  # nothing predicts the first token
        if not mask.any():
            raise ValueError(
                f"demonstration {index}: expected an assistant token after the first of its "
                f"{len(tokens)} tokens, got none"
            )
        unused = np.zeros(len(tokens), np.float32)
        rows.append(Row(index, tokens, mask, unused, unused, unused))
    return rows


class SupervisedLearner:
    """Updates with the mean cross-entropy over a batch's policy tokens.

    Args:
      model, optimizer, param_shardings, batch_sharding: see `learner.update.make_update`.
      train: length buckets, micro-batch rows and the logits' chunk.

    Attributes:
      programs: the compiled update.
      temperature, bounds: its last two arguments.
      optimizer: as given.
    """

    temperature = np.float32(1.0)
    bounds = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train: TrainConfig,
        param_shardings: Shardings | None = None,
        batch_sharding: NamedSharding | None = None,
    ):
        self.optimizer = optimizer
        self._train = train
        self.programs = make_update(
            model,
            cross_entropy_loss,
            optimizer,
            train.logprob_chunk,
            param_shardings,
            batch_sharding,
        )

    def shapes(self) -> TrainState:
        """What a state is restored to: `jax.ShapeDtypeStruct`s, with their shardings."""
        return self.programs.shapes()

    def init(self, params: Params) -> TrainState:
        """A state with these parameters, which are donated."""
        return self.programs.init(params)

    def warm_up(self, state: TrainState) -> TrainState:
        """Compiles every program this learner will run. Returns the state, unchanged."""
        return warm_up_update(self.programs, state, self._train, self.temperature, self.bounds)

    def compiled_programs(self) -> dict[str, int]:
        """How often each program has been compiled so far; at most once for each length bucket."""
        return compiled_update(self.programs)

    def update(self, state: TrainState, rows: Sequence[Row]) -> tuple[TrainState, Metrics]:
        """One update on a batch of `sft_rows`; the state is donated.

        Raises:
          ValueError: without any row, or on a row longer than the last bucket.
          NonFiniteUpdateError: a FloatingPointError that names the update and holds its state.
        """
        if not rows:
            raise ValueError("rows: expected at least one demonstration, got none")
        micro_batches = make_micro_batches(
            rows,
            token_weights(rows, TOKEN_MEAN),
            [row.sampler_log_probs for row in rows],
            self._train.length_buckets,
            self._train.micro_batch_rows,
        )
        try:
            state, statistics, applied = self.run(state, micro_batches)
        except NonFiniteUpdateError as error:
            buckets, micro_rows = self._train.length_buckets, self._train.micro_batch_rows
            placements = place_rows([len(row.tokens) for row in rows], buckets, micro_rows)
            error.kind = SUPERVISED
            error.rows = [list(placement.rows) for placement in placements]
            raise
        tokens = float(sum(s["tokens"] for s in statistics))
        return state, {"sft/tokens": tokens} | mean_applied([applied], "sft")

    def run(
        self, state: TrainState, micro_batches: Sequence[MicroBatch]
    ) -> tuple[TrainState, list[Mapping[str, float]], Applied]:
        """One update; see `learner.run.run_update`."""
        return run_update(self.programs, state, micro_batches, self.temperature, self.bounds)
