"""What the scheduler keeps of its work: trees that grow, rollouts on their way."""

from dataclasses import dataclass, field

import numpy as np

from elpo_jax.rollout.controller import Wave
from elpo_jax.rollout.episode import Progress
from elpo_jax.rollout.growth import Growth, Request
from elpo_jax.rollout.tree import ROOT, Step
from elpo_jax.sampler.engine import KeptRow


@dataclass
class Summary:
    """What a `run` did, besides its trees."""

    forks: int = 0  # rollouts that began from a row of the prompt or of their parent
    saved_tokens: int = 0  # prefix tokens that forks spared a prefill
    parked: int = 0  # rollouts moved off their lane while a tool ran
    dropped_rollouts: int = 0
    dropped_tasks: int = 0
    tool_timeouts: int = 0  # of the dropped rollouts
    last_failure: str = ""  # of a tool or the verifier, in words


@dataclass(eq=False)
class Job:
    """A growing tree and its kept KV rows: the prompt's, and retained rollouts' by ordinal."""

    growth: Growth
    wave: Wave | None = None  # the one that `kept` was last cleared for
    prompt_row: KeptRow | None = None
    prompt_under_way: bool = False
    kept: dict[int, KeptRow] = field(default_factory=dict)

    def rows(self) -> list[KeptRow]:
        return [*self.kept.values(), *([self.prompt_row] if self.prompt_row else [])]


@dataclass(eq=False)
class Run:
    """A rollout on its way.

    `cached` counts the tokens in its KV, `segment` holds the known tokens after those; the last of
    them is the pending one, which decode feeds.
    """

    job: Job
    request: Request
    progress: Progress
    cached: int
    segment: np.ndarray
    source: KeptRow | None = None  # what to fork from when it gets a lane
    is_parked: bool = False  # `source` is this rollout's own row
    lane: int | None = None
    steps: list[Step] = field(default_factory=list)
    left: int = 0  # tokens that the turn may still have
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    is_busy: bool = False  # its tools or its verifier are at work

    @property
    def is_first_turn(self) -> bool:
        return self.request.parent == ROOT and not self.steps

    def known_tokens(self) -> np.ndarray:
        """int32 [T], from the prompt to the last token drawn."""
        tree = self.job.growth.tree
        steps = [*(tree.nodes[node].step for node in tree.path(self.request.parent)), *self.steps]
        parts = [tree.prompt, *(step.tokens for step in steps), np.array(self.tokens, np.int32)]
        return np.concatenate(parts)
