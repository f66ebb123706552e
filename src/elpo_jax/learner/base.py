"""What the learner's host and device halves share; imports neither of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any  # np.ndarray where the host fills it, jax.Array inside compiled code

SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"
TOKEN_MEAN = "token-mean"
SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"
SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"
AGGREGATIONS = (SEQ_MEAN_TOKEN_MEAN, TOKEN_MEAN, SEQ_MEAN_TOKEN_SUM, SEQ_MEAN_TOKEN_SUM_NORM)


@dataclass(frozen=True)
class LossSettings:
    """The surrogate of an algorithm's row (ELPO Eq. 11 and 12, defaults of Table 2).

    Attributes:
      eps_low: clip below at 1 - eps_low.
      eps_high: clip above at 1 + eps_high.
      eps_elc: added to eps_low on the error suffix; 0 turns ELC off.
      aggregation: one of AGGREGATIONS; how tokens become one loss (`learner.batch.token_weights`).
      log_ratio_clamp: bound of |log ratio| before exp, in nats.
    """

    eps_low: float = 0.2
    eps_high: float = 0.315
    eps_elc: float = 0.115
    aggregation: str = SEQ_MEAN_TOKEN_MEAN
    log_ratio_clamp: float = 20.0

    def __post_init__(self) -> None:
        for name in ("eps_low", "eps_high", "eps_elc"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"LossSettings.{name}: expected a finite number >= 0, got {value}")
        if not 0.0 < self.log_ratio_clamp <= 80.0:  # exp(80) is still a float32
            raise ValueError(
                f"LossSettings.log_ratio_clamp: expected within (0, 80], got {self.log_ratio_clamp}"
            )
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"LossSettings.aggregation: expected one of {', '.join(AGGREGATIONS)}, "
                f"got {self.aggregation!r}"
            )


class MicroBatch(NamedTuple):
    """Rows of one forward-backward pass, one trajectory each, right-padded with zeros.

    Rows that only fill the shape are all zeros. Weights, advantages and elc are 0 wherever mask is.
    """

    tokens: Array  # int32 [B, T]
    mask: Array  # float32 [B, T], 1 at tokens that the policy wrote
    weights: Array  # float32 [B, T], the token's share in the loss of its update
    advantages: Array  # float32 [B, T]
    elc: Array  # float32 [B, T], 1 from the critical step on (ELPO 4.3)
    old_log_probs: Array  # float32 [B, T], of the policy that the rollout batch began with
