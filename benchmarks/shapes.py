"""What is timed: policies of the Qwen3 shape, and how much work each gets."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elpo_jax.config import PolicyConfig
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import AXES, init_params, param_shardings
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER, SentencePieceTokenizer

Params = Any


def one_device() -> Mesh:
    """A mesh of the first device: what peers run on too."""
    return Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)


@dataclass(frozen=True)
class Shape:
    """A policy and its workloads.

    Attributes:
      name: as the table shows it.
      policy: the decoder.
      vocab_size: its vocabulary.
      prompt: tokens of a prompt, in generation.
      new: tokens drawn after it.
      rows: trajectories of an update.
      length: tokens of each.
    """

    name: str
    policy: PolicyConfig
    vocab_size: int
    prompt: int
    new: int
    rows: int
    length: int

    @property
    def model(self) -> Decoder:
        return make_decoder(self.policy, self.vocab_size)

    def params(self) -> Params:
        """The parameters that every contender begins with; a copy of its own."""
        shardings = param_shardings(self.model, one_device())
        return jax.device_put(_fresh_params(self.model), shardings)


@cache
def _fresh_params(model: Decoder) -> Params:
    return jax.device_get(init_params(model, jax.random.key(0), one_device()))


def embedded() -> Shape:
    """The default policy with the tokenizer that ships with the package."""
    vocab_size = SentencePieceTokenizer(EMBEDDED_TOKENIZER).vocab_size
    return Shape("embedded", PolicyConfig(scan_unroll=4), vocab_size, 64, 128, 16, 256)


A = Shape(
    name="A",
    policy=PolicyConfig(
        d_model=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=768,
        scan_unroll=4,
    ),
    vocab_size=512,
    prompt=128,
    new=256,
    rows=16,
    length=512,
)
B = Shape(
    name="B",
    policy=PolicyConfig(
        d_model=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        mlp_dim=1536,
        scan_unroll=8,
    ),
    vocab_size=32_000,
    prompt=128,
    new=256,
    rows=16,
    length=512,
)
