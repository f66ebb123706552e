"""BEL searches with forked caches, beside the same searches with every prefix prefilled again.

Both contenders are the real strategy on the real scheduler; only the engine differs. Episodes are
scripted (see `benchmarks.episodes`), so both sample the same numbers of tokens from the same trees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import jax
import numpy as np

from benchmarks.episodes import NEVER, Script, ScriptedEnvironment, scripted_tasks
from benchmarks.record import Row, rates
from benchmarks.shapes import Shape, one_device
from benchmarks.timing import interleaved
from elpo_jax.cli import load_experiment
from elpo_jax.components import build
from elpo_jax.config import EpisodeConfig, RolloutConfig, SamplerConfig, from_dict
from elpo_jax.policy.model import Decoder
from elpo_jax.rollout.bel import bel
from elpo_jax.rollout.tree import ROOT, Tree
from elpo_jax.sampler.device import Drawn
from elpo_jax.sampler.engine import Chunk, Decoding, Engine, KeptRow, split_segment
from elpo_jax.sampler.jobs import Summary
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler
from elpo_jax.tasks.base import TRAIN

SUCCESS = 0.25  # share of rollouts that succeed
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "sci.py"


class RefillingEngine(Engine):
    """An engine without forks: a kept row is a list of tokens, which go through prefill again.

    As much is prefilled as the fork needs, which its next call says, and in one batch with other
    lanes.
    """

    def __init__(self, model: Decoder, config: SamplerConfig, max_length: int, mesh):
        super().__init__(model, config, max_length, mesh)
        self._known = np.zeros((config.lanes, max_length), np.int32)  # tokens at their positions
        self._stale: set[int] = set()  # lanes whose known tokens aren't in the cache

    def prefill(self, params, chunks: Sequence[Chunk]) -> None:
        self._refill(params, {chunk.lane: chunk.offset for chunk in chunks})
        super().prefill(params, chunks)
        for chunk in chunks:
            self._known[chunk.lane, chunk.offset : chunk.offset + len(chunk.tokens)] = chunk.tokens

    def decode(self, params, work: Sequence[Decoding], step_key, stop_tokens, exit_below) -> Drawn:
        self._refill(params, {item.lane: item.position for item in work})
        drawn = super().decode(params, work, step_key, stop_tokens, exit_below)
        for item in work:
            fed = [item.pending, *drawn.tokens[item.lane, : drawn.counts[item.lane]]]
            free = self._known[item.lane, item.position :][: len(fed)]
            free[:] = fed[: len(free)]
        return drawn

    def keep(self, lanes: Sequence[int]) -> list[KeptRow]:
        return [KeptRow(content=self._known[lane].copy()) for lane in lanes]

    def fork(self, kept: Sequence[KeptRow], lanes: Sequence[int]) -> None:
        for row, lane in zip(kept, lanes, strict=True):
            self._known[lane] = row.content
        self._stale.update(lanes)

    def _refill(self, params, lengths: Mapping[int, int]) -> None:
        """Prefills the stale ones of these lanes up to their lengths."""
        cuts = []
        for lane in self._stale & set(lengths):
            start, chunks = 0, []
            for size in split_segment(lengths[lane], self.config.prefill_chunks):
                chunks.append(Chunk(lane, start, self._known[lane, start : start + size]))
                start += size
            cuts.append(chunks)
        self._stale -= set(lengths)
        for depth in range(max(map(len, cuts), default=0)):
            super().prefill(params, [chunks[depth] for chunks in cuts if depth < len(chunks)])


@dataclass(frozen=True)
class Workload:
    """Trees to grow.

    Attributes:
      name: as the table shows it.
      shape: whose policy.
      sampler: lanes and rows.
      scripts: one a tree.
    """

    name: str
    shape: Shape
    sampler: SamplerConfig
    scripts: tuple[Script, ...]


def science(shape: Shape) -> Workload:
    """The episode lengths of the science suite's demonstrations, in batches of the experiment."""
    components = build(from_dict(load_experiment(str(EXPERIMENT))))
    scripts = []
    for index in range(components.config.train.batch_prompts):
        task = components.suite.task(TRAIN, index)
        prompt = components.environment.prompt(task)
        messages = [*prompt, *components.suite.demonstration(task)]
        scripts.append(as_script(*components.chat.demonstration(messages)))
    return Workload("science", shape, _roomy(len(scripts)), tuple(scripts))


def long_prefixes(
    shape: Shape, trees: int, prompt: int = 256, turns: int = 8, turn: int = 24, answer: int = 8
) -> Workload:
    """Episodes with a long prompt, as tool schemas make it: branches share hundreds of tokens.

    Args:
      shape: whose policy and vocabulary.
      trees: number of tasks.
      prompt, turns, turn, answer: tokens of a prompt, turns of an episode, tokens of a turn and of
        a tool's answer.
    """
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(0, shape.vocab_size, count, np.int32)

    scripts = [
        Script(tokens(prompt), (turn,) * turns, tuple(tokens(answer) for _ in range(turns - 1)))
        for _ in range(trees)
    ]
    return Workload("long", shape, _roomy(trees), tuple(scripts))


def _roomy(trees: int) -> SamplerConfig:
    """Lanes enough for every wave: nothing is parked, which would be forks of another kind."""
    rows = 4 * trees
    return SamplerConfig(
        lanes=RolloutConfig().max_failed * trees,
        rows=rows,
        fork_rows=min(SamplerConfig().fork_rows, rows),
    )


def as_script(ids: np.ndarray, is_policy: np.ndarray) -> Script:
    """The script of a conversation: prompt, turn, answer, turn, ..., turn."""
    parts, start = [], 0
    for _, members in groupby(is_policy.tolist()):
        count = len(list(members))
        parts.append(ids[start : start + count])
        start += count
    return Script(parts[0], tuple(map(len, parts[1::2])), tuple(parts[2::2]))


class Search:
    """A workload on one kind of engine."""

    def __init__(self, workload: Workload, engine: type[Engine]):
        self._params = workload.shape.params()
        length = max(script.length for script in workload.scripts)
        self._tasks, scripts = scripted_tasks(len(workload.scripts), workload.scripts.__getitem__)
        self._engine = engine(workload.shape.model, workload.sampler, length, one_device())
        environment = ScriptedEnvironment(scripts, SUCCESS)
        self._scheduler = Scheduler(
            self._engine, environment, workload.sampler, EpisodeConfig(), NEVER
        )

    def grow(self) -> tuple[list[Tree], Summary, dict[str, int]]:
        """The trees of all scripts, what growing them came to, and what the engine did."""
        before = replace(self._engine.counters)
        trees, summary = self._scheduler.run(
            self._params,
            jax.random.key(1),
            self._tasks,
            partial(bel, config=RolloutConfig()),
            SamplingSettings(),
        )
        after = vars(self._engine.counters)
        return trees, summary, {name: n - getattr(before, name) for name, n in after.items()}


def forks(workload: Workload, repetitions: int) -> Row:
    """One row: sampled tokens a second, prefills and forks included."""
    name = f"BEL, {workload.name}, {workload.shape.name}"
    return measured(name, Search(workload, Engine), Search(workload, RefillingEngine), repetitions)


def measured(name: str, forking: Search, refilling: Search, repetitions: int) -> Row:
    """Times two searches that have done the same work but for the prefixes.

    Raises:
      RuntimeError: they haven't, or a lane was given away for a tool.
    """
    trees, summary, done = forking.grow()  # also the warm-ups
    again, _, done_again = refilling.grow()
    if not all(
        np.array_equal(one.parents, other.parents) for one, other in zip(trees, again, strict=True)
    ):
        raise RuntimeError(f"{name}: expected the same trees from both engines, got different ones")
    if summary.parked:
        raise RuntimeError(f"{name}: expected no parked rollout, got {summary.parked}")
    repeated = done_again["prefill_tokens"] - done["prefill_tokens"]
    if repeated != summary.saved_tokens:
        raise RuntimeError(
            f"{name}: expected {summary.saved_tokens} tokens to be prefilled again, got {repeated}"
        )
    sampled = done["decode_tokens"]
    # Independent rollouts would be spared these as well; the rest is what branches share.
    prompts = sum(
        (sum(node.parent == ROOT for node in tree.nodes) - 1) * (len(tree.prompt) - 1)
        for tree in trees
    )
    note = (
        f"{sampled:,} tokens sampled, {done['prefill_tokens']:,} prefilled instead of "
        f"{done_again['prefill_tokens']:,}; of the {repeated:,} more, {prompts:,} are prompts"
    )
    seconds, seconds_again = interleaved([forking.grow, refilling.grow], repetitions)
    peer = rates(sampled, seconds_again)
    return Row(name, "tokens/s", rates(sampled, seconds), "prefill again", peer, note)
