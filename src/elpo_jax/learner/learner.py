"""The learner's host side: drives the compiled programs over one rollout batch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding

from elpo_jax.config import TrainConfig
from elpo_jax.learner.base import LossSettings, MicroBatch
from elpo_jax.learner.batch import (
    Row,
    make_micro_batches,
    place_rows,
    stack,
    token_weights,
)
from elpo_jax.learner.loss import policy_loss
from elpo_jax.learner.optimizer import Optimizer
from elpo_jax.learner.run import (
    Metrics,
    NonFiniteUpdateError,
    cache_size,
    compiled_update,
    mean_applied,
    run_update,
    warm_up_update,
)
from elpo_jax.learner.surrogate import ClipBounds
from elpo_jax.learner.update import (
    Applied,
    Params,
    Shardings,
    TrainState,
    make_log_probs,
    make_update,
)


class Learner:
    """Policy updates on batches of trajectories, with a fixed set of compiled programs.

    A rollout batch is cut into mini-batches of `train.mini_batch_prompts` trees, in their order,
    and each is one update; `train.epochs` passes are made. Old log-probabilities are computed once,
    for the whole batch, before the first update.

    Args:
      model: the decoder; see `learner.update.make_update`.
      optimizer: its schedule counts updates, of which a rollout batch makes several.
      train: batch sizes, length buckets and the logits' chunk.
      loss: the algorithm's surrogate.
      temperature: that of sampling; the policy that is trained is the one that was sampled from.
      response_limit: the longest response in tokens, for 'seq-mean-token-sum-norm'.
      param_shardings, batch_sharding: see `learner.update.make_update`.

    Attributes:
      programs: the compiled update.
      temperature, bounds: its last two arguments.
      optimizer: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train: TrainConfig,
        loss: LossSettings,
        temperature: float = 1.0,
        response_limit: int | None = None,
        param_shardings: Shardings | None = None,
        batch_sharding: NamedSharding | None = None,
    ):
        if not temperature > 0:
            raise ValueError(f"temperature: expected > 0, got {temperature}")
        if train.mini_batch_prompts < 1 or train.epochs < 1:
            raise ValueError(
                "train.mini_batch_prompts and train.epochs: expected >= 1, "
                f"got {train.mini_batch_prompts} and {train.epochs}"
            )
        # Without rows these only check the settings, before any rollout is spent on them.
        token_weights([], loss.aggregation, response_limit)
        place_rows([], train.length_buckets, train.micro_batch_rows)
        self.optimizer = optimizer
        self._train = train
        self._loss = loss
        self._response_limit = response_limit
        # NumPy scalars: Python's would trace as other (weak) types and compile the programs twice.
        self.temperature = np.float32(temperature)
        self.bounds = ClipBounds(
            eps_low=np.float32(loss.eps_low),
            eps_high=np.float32(loss.eps_high),
            eps_elc=np.float32(loss.eps_elc),
            log_ratio_clamp=np.float32(loss.log_ratio_clamp),
        )
        self._log_probs = make_log_probs(model, train.logprob_chunk, batch_sharding)
        self.programs = make_update(
            model, policy_loss, optimizer, train.logprob_chunk, param_shardings, batch_sharding
        )

    def shapes(self) -> TrainState:
        """What a state is restored to: `jax.ShapeDtypeStruct`s, with their shardings."""
        return self.programs.shapes()

    def init(self, params: Params) -> TrainState:
        """A state with these parameters, which are donated."""
        return self.programs.init(params)

    def warm_up(self, state: TrainState) -> TrainState:
        """Compiles every program this learner will run. Returns the state, unchanged."""
        for length in self._train.length_buckets:
            tokens = np.zeros((self._train.micro_batch_rows, length), np.int32)
            self._log_probs(state.params, tokens, self.temperature)
        return warm_up_update(self.programs, state, self._train, self.temperature, self.bounds)

    def compiled_programs(self) -> dict[str, int]:
        """How often each program has been compiled so far; at most once for each length bucket."""
        return {"log_probs": cache_size(self._log_probs)} | compiled_update(self.programs)

    def log_probs(
        self, params: Params, rows: Sequence[Row]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Log-probabilities and entropies (nats), float32 [T] for each row, under `params`."""
        micro_rows = self._train.micro_batch_rows
        lengths = [len(row.tokens) for row in rows]
        placements = place_rows(lengths, self._train.length_buckets, micro_rows)
        tokens = [row.tokens for row in rows]
        running = [  # all are dispatched before the first is waited for
            self._log_probs(
                params, stack(tokens, placement, micro_rows, np.int32), self.temperature
            )
            for placement in placements
        ]
        log_probs: list[np.ndarray] = [np.empty(0)] * len(rows)
        entropies: list[np.ndarray] = [np.empty(0)] * len(rows)
        for placement, results in zip(placements, running, strict=True):
            columns = [np.asarray(result) for result in results]
            for place, row in enumerate(placement.rows):
                log_probs[row], entropies[row] = (c[place, : lengths[row]] for c in columns)
        return log_probs, entropies

    def update(self, state: TrainState, rows: Sequence[Row]) -> tuple[TrainState, Metrics]:
        """Learns from one rollout batch.

        Rows whose advantages are all 0 have no gradient, so no forward-backward pass is spent on
        them; they still count in the means of the loss. The update metrics (clip fractions, kl_old)
        are means over the policy tokens of the other rows.

        Args:
          state: donated.
          rows: of `trajectory_rows`, all trees of the batch.

        Returns:
          The state after all updates, and metrics by the names of the metrics table.

        Raises:
          ValueError: without any row, or on a row longer than the last bucket.
          NonFiniteUpdateError: a FloatingPointError that names the update and holds its state.
        """
        if not rows:
            raise ValueError("rows: expected the trajectories of at least one tree, got none")
        old_log_probs, entropies = self.log_probs(state.params, rows)
        self._check_old(state, rows, old_log_probs)
        metrics = _rollout_metrics(rows, old_log_probs, entropies)
        statistics: list[Mapping[str, float]] = []
        applied: list[Applied] = []
        for epoch in range(self._train.epochs):
            for number, members in enumerate(self._mini_batches(rows)):
                micro_batches = self._micro_batches(
                    [rows[i] for i in members], [old_log_probs[i] for i in members]
                )
                try:
                    state, new_statistics, outcome = self.run(state, micro_batches)
                except NonFiniteUpdateError as error:
                    error.where = {"epoch": epoch, "mini_batch": number}
                    error.members = members
                    error.rows = self._placed(
                        [i for i in members if rows[i].advantages.any()], rows
                    )
                    raise
                statistics += new_statistics
                applied.append(outcome)
        return state, metrics | _update_metrics(statistics) | mean_applied(applied, "policy")

    def run(
        self, state: TrainState, micro_batches: Sequence[MicroBatch]
    ) -> tuple[TrainState, list[Mapping[str, float]], Applied]:
        """One update of the learner's own temperature and bounds; see `learner.run.run_update`."""
        return run_update(self.programs, state, micro_batches, self.temperature, self.bounds)

    def _check_old(
        self, state: TrainState, rows: Sequence[Row], old_log_probs: Sequence[np.ndarray]
    ) -> None:
        """Raises NonFiniteUpdateError, with all rows, unless the old log-probabilities are finite.

        Without this a batch that has no advantage, and so no loss, would pass.
        """
        if all(np.isfinite(each).all() for each in old_log_probs):
            return
        buckets, micro_rows = self._train.length_buckets, self._train.micro_batch_rows
        weights = token_weights(rows, self._loss.aggregation, self._response_limit)
        error = NonFiniteUpdateError(
            f"update {int(state.step)}: not finite: the log-probabilities before it; "
            "the parameters are unchanged",
            state,
            make_micro_batches(rows, weights, old_log_probs, buckets, micro_rows),
            {"broken": ["log-probabilities"]},
        )
        error.where = {"epoch": 0, "mini_batch": 0}
        error.members = list(range(len(rows)))
        error.rows = self._placed(range(len(rows)), rows)
        raise error

    def _placed(self, numbers: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
        """The row numbers of each micro-batch that these rows make."""
        lengths = [len(rows[i].tokens) for i in numbers]
        placements = place_rows(lengths, self._train.length_buckets, self._train.micro_batch_rows)
        return [[numbers[place] for place in placement.rows] for placement in placements]

    def _mini_batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Row numbers of each update: `mini_batch_prompts` trees, the last perhaps fewer."""
        trees: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            trees[row.tree].append(number)
        groups = list(trees.values())
        size = self._train.mini_batch_prompts
        return [
            [number for group in groups[start : start + size] for number in group]
            for start in range(0, len(groups), size)
        ]

    def _micro_batches(
        self, rows: Sequence[Row], old_log_probs: Sequence[np.ndarray]
    ) -> list[MicroBatch]:
        weights = token_weights(rows, self._loss.aggregation, self._response_limit)
        trained = [number for number, row in enumerate(rows) if row.advantages.any()]
        return make_micro_batches(
            [rows[i] for i in trained],
            [weights[i] for i in trained],
            [old_log_probs[i] for i in trained],
            self._train.length_buckets,
            self._train.micro_batch_rows,
        )


def _rollout_metrics(
    rows: Sequence[Row], old_log_probs: Sequence[np.ndarray], entropies: Sequence[np.ndarray]
) -> Metrics:
    """What the pass before the first update shows, over all policy tokens.

    With d = log π_old - log π_sampler, `sampler_kl` is the mean of exp(d) - 1 - d, which estimates
    KL(π_sampler || π_old): 0 when both compute the same policy. Beyond 20 nats d counts as 20, so
    that a sampler that is all wrong has a finite value too.
    """
    mask = np.concatenate([row.mask for row in rows]) > 0
    entropy = np.concatenate(entropies)[mask].astype(np.float64)
    sampled = np.concatenate([row.sampler_log_probs for row in rows])[mask].astype(np.float64)
    difference = np.concatenate(old_log_probs)[mask] - sampled
    clamped = np.clip(difference, -20.0, 20.0)
    return {
        "policy/entropy": float(entropy.mean()),
        "policy/sampler_kl": float(np.mean(np.expm1(clamped) - clamped)),
        "policy/sampler_max_diff": float(np.abs(difference).max()),
        "policy/trained_rows_frac": float(np.mean([row.advantages.any() for row in rows])),
    }


def _update_metrics(statistics: Sequence[Mapping[str, float]]) -> Metrics:
    """Means over policy tokens of `policy_loss`'s statistics; 0 over no token."""

    def total(name: str) -> float:
        return float(np.sum([s[name] for s in statistics], dtype=np.float64))

    def mean(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    tokens, elc_tokens = total("tokens"), total("elc_tokens")
    low_elc, low_plain = total("clipped_low_elc"), total("clipped_low_plain")
    high_elc, high_plain = total("clipped_high_elc"), total("clipped_high_plain")
    return {
        "policy/clip_frac_low": mean(low_elc + low_plain, tokens),
        "policy/clip_frac_low_elc": mean(low_elc, elc_tokens),
        "policy/clip_frac_low_plain": mean(low_plain, tokens - elc_tokens),
        "policy/clip_frac_high": mean(high_elc + high_plain, tokens),
        "policy/clip_frac_high_elc": mean(high_elc, elc_tokens),
        "policy/clip_frac_high_plain": mean(high_plain, tokens - elc_tokens),
        "policy/kl_old": mean(total("kl_old"), tokens),
        "policy/ratio_max": float(np.max([s["ratio_max"] for s in statistics], initial=0.0)),
    }
