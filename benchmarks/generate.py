"""Tokens a second of the sampler, beside transformers' `generate`.

Each of S slots has its own prompt and draws the same number of tokens. Time is that of the whole
job, prefill included, and for us of the scheduler too.
"""

from functools import partial

import jax
import numpy as np

from benchmarks.episodes import NEVER, Script, ScriptedEnvironment, scripted_tasks
from benchmarks.record import Row, rates
from benchmarks.shapes import Shape, one_device
from benchmarks.timing import interleaved
from elpo_jax.config import EpisodeConfig, RolloutConfig, SamplerConfig
from elpo_jax.rollout.independent import independent
from elpo_jax.sampler.engine import Engine
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler

TEMPERATURE = 0.9
# Greedy outputs of two float32 implementations part where two logits are closer than this.
TIE = 1e-3


class Sampler:
    """The scheduler on `slots` lanes, with one prompt for each."""

    def __init__(self, shape: Shape, slots: int):
        self.shape = shape
        self.params = shape.params()
        random = np.random.default_rng(0)
        self.prompts = random.integers(0, shape.vocab_size, (slots, shape.prompt), np.int32)
        self._tasks, scripts = scripted_tasks(
            slots, lambda i: Script(self.prompts[i], (shape.new,), ())
        )
        config = SamplerConfig(lanes=slots, rows=slots, prefill_rows=min(slots, 16))
        engine = Engine(shape.model, config, shape.prompt + shape.new, one_device())
        engine.warm_up(self.params)
        environment = ScriptedEnvironment(scripts, success=0.0)
        self._scheduler = Scheduler(engine, environment, config, EpisodeConfig(), NEVER)

    def __call__(self, temperature: float) -> np.ndarray:
        """int32 [S, N], what was drawn."""
        trees, _ = self._scheduler.run(
            self.params,
            jax.random.key(1),
            self._tasks,
            partial(independent, config=RolloutConfig(budget=1)),
            SamplingSettings(temperature),
        )
        return np.stack([tree.nodes[0].step.tokens for tree in trees])


def generation(sampler: Sampler, repetitions: int, with_peer: bool) -> Row:
    """One row.

    Raises:
      RuntimeError: the peer's greedy outputs differ from ours by more than rounding.
    """
    shape, slots = sampler.shape, len(sampler.prompts)
    name, unit = f"generate, {shape.name}, {slots} slots", "tokens/s"
    greedy = sampler(0.0)  # also the warm-up
    work = greedy.size
    if not with_peer:
        (ours,) = interleaved([lambda: sampler(TEMPERATURE)], repetitions)
        return Row(name, unit, rates(work, ours))

    from benchmarks import peers

    device = peers.torch_device()
    assert device is not None
    model = peers.make_model(shape.policy, shape.vocab_size, sampler.params, device)
    peer = peers.Generator(model)
    note = check_greedy(greedy, peer(sampler.prompts, shape.new, 0.0), sampler.prompts, peer)
    ours, theirs = interleaved(
        [
            lambda: sampler(TEMPERATURE),
            lambda: peer(sampler.prompts, shape.new, TEMPERATURE),
        ],
        repetitions,
    )
    return Row(name, unit, rates(work, ours), "transformers", rates(work, theirs), note)


def check_greedy(ours: np.ndarray, theirs: np.ndarray, prompts: np.ndarray, peer) -> str:
    """Checks greedy outputs int [S, N]: they part only where the peer's logits all but tie."""
    if ours.shape != theirs.shape:
        raise RuntimeError(f"peer: expected tokens of shape {ours.shape}, got {theirs.shape}")
    different = ours != theirs
    for row in np.flatnonzero(different.any(axis=1)):
        first = int(different[row].argmax())
        logits = peer.last_logits(np.concatenate([prompts[row], ours[row, :first]]))
        gap = float(abs(logits[ours[row, first]] - logits[theirs[row, first]]))
        if gap > TIE:
            raise RuntimeError(
                f"peer: expected our greedy outputs, got another token {first} in row {row}, by "
                f"{gap:.2g} in its logit"
            )
    same = int((~different.any(axis=1)).sum())
    return f"{same} of {len(ours)} greedy outputs equal, the rest part at a tie"
