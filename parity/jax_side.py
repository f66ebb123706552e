"""Our decoder and sampler of the cases, and what is asked of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from elpo_jax.config import MeshConfig, SamplerConfig
from elpo_jax.learner.logprobs import token_log_probs
from elpo_jax.policy.architecture import Compute
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import make_mesh
from elpo_jax.policy.weight_names import WEIGHTS
from elpo_jax.policy.weights import load_params
from elpo_jax.sampler.engine import Chunk, Decoding, Engine, split_segment
from parity.cases import Case

Params = Any
Rows = Sequence[np.ndarray]  # int [T] each, of any lengths

LANES = (3, 0, 4, 1)  # of the rows, so that a row's place isn't its number
SAMPLER = SamplerConfig(
    lanes=5, rows=1, decode_block=8, prefill_rows=2, prefill_chunks=(8,), fork_rows=1
)
MAX_LENGTH = 96  # tokens of a row, unless a test says otherwise


def make_decoder(case: Case, folder: Path, compute: Compute) -> Decoder:
    architecture = architecture_of(read_config(folder), case.usable_vocab)
    return Decoder(architecture, compute, make_mesh(MeshConfig()))


def import_params(model: Decoder, folder: Path) -> Params:
    return load_params(folder, model, make_mesh(MeshConfig()))


def _padded(rows: Rows, length: int) -> np.ndarray:
    """int32 [B, length], zeros after a row's end."""
    tokens = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens


@partial(jax.jit, static_argnums=0)
def _forward(model: Decoder, params: Params, tokens: np.ndarray) -> jax.Array:
    return model.apply({"params": params}, tokens)


def logits(
    model: Decoder, params: Params, rows: Rows, length: int = MAX_LENGTH
) -> list[np.ndarray]:
    """float32 [T, V] of each row, from one batch that is padded to `length` tokens."""
    found = np.asarray(_forward(model, params, _padded(rows, length)))
    return [of_row[: len(row)] for of_row, row in zip(found, rows, strict=True)]


def gradients(model: Decoder, params: Params, rows: Rows, masks: Rows) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of the tokens in the mask, by the checkpoint's names."""
    tokens, counted = (_padded(x, max(map(len, rows))) for x in (rows, masks))
    weights = counted / counted[:, 1:].sum()

    def loss(params: Params) -> jax.Array:
        def logits_of(hidden: jax.Array) -> jax.Array:
            return model.apply({"params": params}, hidden, method="logits")

        hidden = model.apply({"params": params}, tokens, method="hidden")
        log_probs = token_log_probs(logits_of, hidden, tokens, 1.0, chunk=8)
        return -jnp.sum(weights * log_probs)

    return by_their_names(jax.jit(jax.grad(loss))(params))


def by_their_names(params: Params) -> dict[str, np.ndarray]:
    """A tree of the parameters' shapes as a checkpoint's tensors."""
    tensors = {}
    for path, x in traverse_util.flatten_dict(jax.device_get(params)).items():
        weight = WEIGHTS[path]
        for layer, of_layer in enumerate(x if weight.is_stacked else [x]):
            tensors[weight.of_layer(layer)] = weight.layout.to_theirs(of_layer)
    return tensors


class Drawn(NamedTuple):
    """What the sampler drew after a row, call by call."""

    row: np.ndarray  # int32 [T], with all that was drawn and brought in
    places: np.ndarray  # int32 [N], where in the row drawn tokens are
    log_probs: np.ndarray  # float32 [N]
    entropies: np.ndarray  # float32 [N]


class Sampler:
    """The engine, with rows of different lengths in its lanes.

    Args:
      model: the policy.
      params: its parameters.
      max_length: tokens of a row with all that is drawn and brought in.
    """

    def __init__(self, model: Decoder, params: Params, max_length: int = MAX_LENGTH):
        self._params = params
        self._engine = Engine(model, SAMPLER, max_length, make_mesh(MeshConfig()))

    def draw(self, rows: Rows, rounds: Sequence[Rows], new: int, temperature: float) -> list[Drawn]:
        """Draws after each row; then, for every round, brings in tokens and draws again.

        Args:
          rows: prompts.
          rounds: for each round the tokens that come after what each row drew.
          new: tokens to draw each time.
          temperature: 0 takes the most likely.
        """
        cached = [0] * len(rows)
        drawn = [Drawn(row, *(np.zeros(0, t) for t in (int, float, float))) for row in rows]
        self._bring(drawn, cached)
        drawn = self._decode(drawn, new, temperature)
        for tokens in rounds:
            cached = [len(one.row) - 1 for one in drawn]
            drawn = [
                one._replace(row=np.concatenate([one.row, more]))
                for one, more in zip(drawn, tokens, strict=True)
            ]
            self._bring(drawn, cached)
            drawn = self._decode(drawn, new, temperature)
        return drawn

    def _bring(self, drawn: Sequence[Drawn], cached: Sequence[int]) -> None:
        """Prefills what isn't in the cache, all but the pending token."""
        pieces: list[list[Chunk]] = []
        for lane, one, start in zip(LANES, drawn, cached, strict=False):
            end = start
            for i, size in enumerate(
                split_segment(len(one.row) - 1 - start, SAMPLER.prefill_chunks)
            ):
                pieces += [[]] if i == len(pieces) else []
                pieces[i].append(Chunk(lane, end, one.row[end : end + size]))
                end += size
        for chunks in pieces:
            self._engine.prefill(self._params, chunks)

    def _decode(self, drawn: Sequence[Drawn], new: int, temperature: float) -> list[Drawn]:
        drawn = list(drawn)
        for start in range(0, new, SAMPLER.decode_block):
            count = min(new - start, SAMPLER.decode_block)
            work = [
                Decoding(
                    lane, int(one.row[-1]), len(one.row) - 1, count, (0, i), temperature, 1.0, 0
                )
                for i, (lane, one) in enumerate(zip(LANES, drawn, strict=False))
            ]
            out = self._engine.decode(self._params, work, jax.random.key(0), (), 1)
            for i, lane in enumerate(LANES[: len(drawn)]):
                drawn[i] = _extended(drawn[i], out, lane, count)
        return drawn


def _extended(one: Drawn, out: Any, lane: int, count: int) -> Drawn:
    return Drawn(
        np.concatenate([one.row, out.tokens[lane, :count]]),
        np.concatenate([one.places, len(one.row) + np.arange(count)]),
        np.concatenate([one.log_probs, out.log_probs[lane, :count]]),
        np.concatenate([one.entropies, out.entropies[lane, :count]]),
    )
