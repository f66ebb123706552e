"""Rotary positions (https://arxiv.org/abs/2104.09864), stretched to longer contexts in some ways.

A kind only changes the frequencies, and YaRN the length of what is rotated as well, so all of them
are numbers that are known before anything is compiled.
"""

import math
from dataclasses import dataclass

import numpy as np

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """What a checkpoint says of its positions; fields that its kind doesn't use stay as they are.

    Attributes:
      theta: base of the frequencies.
      kind: one of KINDS.
      factor: how many times the original context the stretched one is.
      original_length: tokens of the original context ('llama3', 'yarn').
      low_freq_factor, high_freq_factor: in rotations over the original context, below which a
        frequency is divided by `factor`, and above which it is kept ('llama3').
      beta_slow, beta_fast: the same for 'yarn' (https://arxiv.org/abs/2309.00071, 3.2).
      attention_factor: of 'yarn', what queries and keys are multiplied by.
      truncate: 'yarn' rounds the bounds of the ramp outward to whole dimensions.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    attention_factor: float = 1.0
    truncate: bool = True

    def frequencies(self, size: int) -> np.ndarray:
        """Radians a position for each pair of a head of `size` numbers: float32 [size / 2].

        Rounded to float32 at every step, as the numbers were that checkpoints have been trained
        with: one bit of a frequency is a thousandth of a radian after twenty thousand positions.
        """
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        periods = (self.theta ** exponents.astype(np.float64)).astype(np.float32)
        plain = 1 / periods
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            kept = self._llama3_kept(plain)
            return (1 - kept) * plain / np.float32(self.factor) + kept * plain
        if self.kind == "yarn":
            kept = self._yarn_kept(size)
            return (1 - kept) * (1 / (np.float32(self.factor) * periods)) + kept * plain
        return plain

    def _llama3_kept(self, plain: np.ndarray) -> np.ndarray:
        """The share of each frequency that isn't divided: 0 for the slow ones, 1 for the fast."""
        rotations = np.float32(self.original_length) / (np.float32(2 * math.pi) / plain)
        width = np.float32(self.high_freq_factor - self.low_freq_factor)
        return np.clip((rotations - np.float32(self.low_freq_factor)) / width, 0, 1)

    def _yarn_kept(self, size: int) -> np.ndarray:
        def dimension(rotations: float) -> float:
            """The pair that turns so often over the original context."""
            turns = self.original_length / (rotations * 2 * math.pi)
            return size * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        width = high - low or 0.001
        ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(width)
        return 1 - np.clip(ramp, 0, 1)


def yarn_attention_factor(factor: float) -> float:
    """YaRN's usual factor of queries and keys (https://arxiv.org/abs/2309.00071, Eq. 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
