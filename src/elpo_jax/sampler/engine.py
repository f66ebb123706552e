"""The host's handle on the device programs: batches work into their fixed shapes and counts it.

Two caches live on the device: *lanes*, which decode, and *rows*, which are kept for later forks.
Kept rows that don't fit are swapped to host memory, least recently used first, and come back bit
for bit.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elpo_jax.config import STOP_TOKENS, SamplerConfig
from elpo_jax.policy.model import Decoder
from elpo_jax.sampler import device

Params = Any


@dataclass(frozen=True)
class Chunk:
    """Tokens for a lane's cache from `offset` on; at most a chunk's length of them."""

    lane: int
    offset: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Decoding:
    """What one lane is to decode."""

    lane: int
    pending: int
    position: int
    left: int
    identity: tuple[int, int]
    temperature: float
    top_p: float
    top_k: int


@dataclass(eq=False)
class KeptRow:
    """A cache row kept for forks: on the device (`row`) or swapped to the host (`content`)."""

    row: int | None = None
    content: Any = None


@dataclass
class Counters:
    """Work done since the engine was made."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0
    forks: int = 0
    swaps_out: int = 0
    swaps_in: int = 0


def split_segment(length: int, chunks: Sequence[int]) -> list[int]:
    """How a segment is cut: by its length alone, so the cut can't depend on the schedule.

    Whole chunks of the largest size, then the smallest size that holds the rest.

    Args:
      length: tokens of the segment.
      chunks: chunk lengths, ascending.

    Returns:
      The number of real tokens in each piece.
    """
    largest = chunks[-1]
    pieces = [largest] * (length // largest)
    if length % largest:
        pieces.append(length % largest)
    return pieces


class NonFiniteSampleError(FloatingPointError):
    """A log-probability or entropy was NaN or infinite.

    Attributes:
      lanes: those concerned, each with the tokens of this call up to the first broken one.
      rows: their tokens from the prompt on, by (task id, rollout ordinal); the scheduler's to fill.
    """

    def __init__(self, message: str, lanes: dict[int, np.ndarray]):
        super().__init__(message)
        self.lanes = lanes
        self.rows: dict[tuple[str, int], np.ndarray] = {}


class Engine:
    """Programs, caches and counters for one policy.

    Args:
      model: the policy.
      config: the sampler's shapes.
      max_length: tokens a row has room for.
      mesh: where the caches live, see `sampler.device.cache_sharding`.
    """

    def __init__(self, model: Decoder, config: SamplerConfig, max_length: int, mesh: Mesh):
        self.config = config
        self.max_length = max_length
        self.counters = Counters()
        self._programs = device.compile_programs(model, config.decode_block, mesh)
        self._lanes = self._cache(model, config.lanes, mesh)
        self._rows = self._cache(model, config.rows, mesh)
        self._free_rows = list(range(config.rows))[::-1]
        self._resident: OrderedDict[int, KeptRow] = OrderedDict()  # by row, least recent first

    def _cache(self, model: Decoder, rows: int, mesh: Mesh) -> device.KVCache:
        init = jax.jit(
            lambda: device.init_cache(model, rows, self.max_length),
            out_shardings=device.cache_sharding(mesh),
        )
        return init()

    @property
    def compiles(self) -> int:
        """Programs compiled so far; constant after `warm_up`."""
        return sum(program._cache_size() for program in self._programs)

    def prefill(self, params: Params, chunks: Sequence[Chunk]) -> None:
        """Brings tokens into lanes' caches. Chunks of one call must be of different lanes."""
        for size in self.config.prefill_chunks:
            smaller = [s for s in self.config.prefill_chunks if s < size]
            fitting = [c for c in chunks if max([0, *smaller]) < len(c.tokens) <= size]
            for start in range(0, len(fitting), self.config.prefill_rows):
                self._prefill_call(params, size, fitting[start : start + self.config.prefill_rows])

    def _prefill_call(self, params: Params, size: int, chunks: Sequence[Chunk]) -> None:
        count = self.config.prefill_rows
        tokens = np.zeros((count, size), np.int32)
        rows = np.arange(self.config.lanes, self.config.lanes + count, dtype=np.int32)
        offsets, lengths = np.zeros(count, np.int32), np.zeros(count, np.int32)
        for i, chunk in enumerate(chunks):
            tokens[i, : len(chunk.tokens)] = chunk.tokens
            rows[i], offsets[i], lengths[i] = chunk.lane, chunk.offset, len(chunk.tokens)
        self._lanes = self._programs.prefill(params, self._lanes, tokens, rows, offsets, lengths)
        self.counters.prefill_tokens += int(lengths.sum())

    def decode(
        self,
        params: Params,
        work: Sequence[Decoding],
        step_key: jax.Array,
        stop_tokens: Sequence[int],
        exit_below: int,
    ) -> device.Drawn:
        """Decodes one block in the given lanes; returns numpy arrays indexed by lane.

        Args:
          params: the policy's.
          work: a lane each.
          step_key, exit_below: see `sampler.device.decode`.
          stop_tokens: each ends a turn; at most `config.STOP_TOKENS`.

        Raises:
          NonFiniteSampleError: a FloatingPointError that says in which lanes.
        """
        count = self.config.lanes
        lanes = device.Lanes(
            pending=np.zeros(count, np.int32),
            position=np.zeros(count, np.int32),
            left=np.zeros(count, np.int32),
            identity=np.zeros((count, 2), np.int32),
            temperature=np.ones(count, np.float32),
            top_p=np.ones(count, np.float32),
            top_k=np.zeros(count, np.int32),
        )
        for item in work:
            for name, array in lanes._asdict().items():
                array[item.lane] = getattr(item, name)
        stops = np.full(STOP_TOKENS, -1, np.int32)
        stops[: len(stop_tokens)] = stop_tokens
        self._lanes, drawn = self._programs.decode(
            params, self._lanes, lanes, step_key, stops, np.int32(exit_below)
        )
        drawn = jax.device_get(drawn)
        self.counters.decode_tokens += int(drawn.counts.sum())
        self.counters.decode_steps += int(drawn.steps)
        finite = np.isfinite(drawn.log_probs) & np.isfinite(drawn.entropies)
        if not finite.all():
            draws = {w.lane: w.identity[0] for w in work if not finite[w.lane].all()}
            raise NonFiniteSampleError(
                f"sampler: expected finite log-probabilities and entropies, got NaN or infinity in "
                f"task draws {sorted(set(draws.values()))}; the policy's parameters or activations "
                "are broken",
                {lane: drawn.tokens[lane, : finite[lane].argmin() + 1] for lane in draws},
            )
        return drawn

    def keep(self, lanes: Sequence[int]) -> list[KeptRow]:
        """Copies lanes to kept rows."""
        kept = [KeptRow() for _ in lanes]
        size = self.config.fork_rows
        for start in range(0, len(lanes), size):
            batch = kept[start : start + size]
            rows = [self._claim_row(row, pinned=batch) for row in batch]
            self._rows = self._fork(self._rows, self._lanes, rows, lanes[start : start + size])
        return kept

    def fork(self, kept: Sequence[KeptRow], lanes: Sequence[int]) -> None:
        """Copies kept rows to lanes."""
        size = self.config.fork_rows
        for start in range(0, len(kept), size):
            batch = kept[start : start + size]
            rows = []
            for row in batch:
                self._bring_back(row, pinned=batch)
                rows.append(row.row)
            self._lanes = self._fork(self._lanes, self._rows, lanes[start : start + size], rows)
        self.counters.forks += len(kept)

    def release(self, kept: KeptRow) -> None:
        """Gives a kept row up."""
        if kept.row is not None:
            del self._resident[kept.row]
            self._free_rows.append(kept.row)
        kept.row = kept.content = None

    def _fork(
        self, target: device.KVCache, source: device.KVCache, to: Sequence[Any], of: Sequence[Any]
    ) -> device.KVCache:
        pad = self.config.fork_rows - len(to)
        out_of_range = max(self.config.lanes, self.config.rows)
        to_rows = np.array([*to, *[out_of_range] * pad], np.int32)
        from_rows = np.array([*of, *[0] * pad], np.int32)
        return self._programs.fork(target, source, to_rows, from_rows)

    def _claim_row(self, kept: KeptRow, pinned: Sequence[KeptRow]) -> int:
        if not self._free_rows:
            victim = next(row for row in self._resident.values() if row not in pinned)
            self._swap_out(victim)
        kept.row = self._free_rows.pop()
        self._resident[kept.row] = kept
        return kept.row

    def _swap_out(self, kept: KeptRow) -> None:
        assert kept.row is not None
        kept.content = jax.device_get(self._programs.read_row(self._rows, np.int32(kept.row)))
        del self._resident[kept.row]
        self._free_rows.append(kept.row)
        kept.row = None
        self.counters.swaps_out += 1

    def _bring_back(self, kept: KeptRow, pinned: Sequence[KeptRow]) -> None:
        if kept.row is not None:
            self._resident.move_to_end(kept.row)
            return
        content, kept.content = kept.content, None
        row = self._claim_row(kept, pinned)
        self._rows = self._programs.write_row(self._rows, np.int32(row), content)
        self.counters.swaps_in += 1

    def warm_up(self, params: Params) -> None:
        """Compiles every program, so that none compiles later. Counters are left at zero."""
        for size in self.config.prefill_chunks:
            self.prefill(params, [Chunk(0, 0, np.zeros(size, np.int32))])
        self.decode(params, [Decoding(0, 0, 0, 1, (0, 0), 1.0, 1.0, 0)], jax.random.key(0), (), 1)
        (kept,) = self.keep([0])
        self._swap_out(kept)
        self.fork([kept], [0])
        self.release(kept)
        jax.block_until_ready((self._lanes, self._rows))
        self.counters = Counters()
