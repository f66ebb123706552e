"""The host scheduler: many growing trees at once on the sampler's lanes.

A rollout moves through these places, and `_Session.loop` moves all of them on, round by round:

    waiting ──> lane: prefill ──> decode ──> turn over ──> tools run ──> prefill ──> ... ──> done
       ▲  (fork of the prompt's or the parent's row)         │  (or the verifier, then done)
       └────── parked: its KV kept, the lane given away ─────┘

Nothing that a rollout samples depends on the round it happens in (see `sampler.device`), and a
controller gets its wave only when all of it is done (see `rollout.growth`). So neither batch mates
nor tool delays can change a tree.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np

from elpo_jax.config import EpisodeConfig, SamplerConfig
from elpo_jax.rollout.controller import Controller
from elpo_jax.rollout.episode import NO_ANSWER, Environment, Outcome, Turn
from elpo_jax.rollout.growth import Growth, Request
from elpo_jax.rollout.tree import ROOT, Tree
from elpo_jax.sampler.engine import (
    Chunk,
    Decoding,
    Engine,
    NonFiniteSampleError,
    split_segment,
)
from elpo_jax.sampler.jobs import Job, Run, Summary
from elpo_jax.sampler.tool_workers import Limit, ToolWorkers
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tools.base import Observation, ToolFailure, ToolTimeout

Params = Any
T = TypeVar("T")

# How long a round waits for tools when rollouts could decode: most tools answer within it.
TOOL_GRACE_SECONDS = 0.002
# How long it waits when none could: interrupts and time-outs are seen in between.
TOOL_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SamplingSettings:
    """Arguments of every draw."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Scheduler:
    """Grows trees.

    Args:
      engine: device programs and caches.
      environment: turns, tools and verdicts.
      sampler: lanes and tool workers.
      episode: retries and drops.
      stop_tokens: each ends a turn.
    """

    def __init__(
        self,
        engine: Engine,
        environment: Environment,
        sampler: SamplerConfig,
        episode: EpisodeConfig,
        stop_tokens: Sequence[int],
    ):
        self.engine = engine
        self.environment = environment
        self.sampler = sampler
        self.episode = episode
        self.stop_tokens = stop_tokens
        self._workers = ToolWorkers(sampler.tool_workers)

    def run(
        self,
        params: Params,
        step_key: jax.Array,
        tasks: Sequence[tuple[int, Task]],
        strategy: Callable[[Tree], Controller],
        settings: SamplingSettings,
        on_round: Callable[[], None] = lambda: None,
    ) -> tuple[list[Tree], Summary]:
        """Grows one tree a task.

        Args:
          params: the policy's parameters.
          step_key: key of the run's seed, purpose and step.
          tasks: (draw, task) pairs; the draw is the task's part of every sampling key.
          strategy: makes the controller of a tree.
          settings: temperature and truncation.
          on_round: called between rounds.

        Returns:
          The grown trees in the order of `tasks`, less those whose tools broke too often, and a
          summary.

        Raises:
          NonFiniteSampleError: a FloatingPointError with the tokens that led to it.
          ToolFault: too many calls of tools or verifiers hang.
        """
        session = _Session(self, self._workers, params, step_key, settings)
        try:
            for draw, task in tasks:
                tree = Tree(task, self.environment.prompt_ids(task))
                session.add(Growth(draw, tree, strategy(tree), self.episode.max_drops))
            session.loop(on_round)
        finally:
            self._workers.rest()
            session.release_everything()
        grown = [job.growth for job in session.jobs if not job.growth.is_abandoned]
        session.summary.dropped_rollouts = sum(job.growth.drops for job in session.jobs)
        session.summary.dropped_tasks = len(session.jobs) - len(grown)
        return [growth.tree for growth in grown], session.summary


def _with_retries(work: Callable[[], T], retries: int) -> T:
    """What `work` returns; if it breaks it is tried again before that is passed on."""
    for _ in range(retries):
        try:
            return work()
        except ToolFailure:
            continue
    return work()


class _Session:
    """The state of one `Scheduler.run`."""

    def __init__(
        self,
        scheduler: Scheduler,
        workers: ToolWorkers,
        params: Params,
        step_key: jax.Array,
        settings: SamplingSettings,
    ):
        self.scheduler = scheduler
        self.engine = scheduler.engine
        self.environment = scheduler.environment
        self.workers = workers
        self.params = params
        self.step_key = step_key
        self.settings = settings
        self.jobs: list[Job] = []
        self.waiting: deque[Run] = deque()
        self.on_lane: dict[int, Run] = {}
        self.free_lanes = list(range(scheduler.sampler.lanes))[::-1]
        # Work on other threads, and what is done with its result.
        self.pending: dict[Future[Any], tuple[Run, Callable[[Any], None]]] = {}
        self.summary = Summary()

    def add(self, growth: Growth) -> None:
        job = Job(growth)
        self.jobs.append(job)
        self._follow(job, growth.start())

    def loop(self, on_round: Callable[[], None]) -> None:
        while any(not job.growth.is_over for job in self.jobs):
            on_round()
            self._admit()
            self._prefill()
            self._decode()
            self._collect()

    def release_everything(self) -> None:
        """Gives back all kept rows, also after an interruption."""
        for job in self.jobs:
            self._release(job)
        for run in [*self.waiting, *(run for run, _ in self.pending.values())]:
            if run.is_parked and run.source is not None:
                self.engine.release(run.source)
                run.source = None

    # Requests.

    def _follow(self, job: Job, requests: list[Request]) -> None:
        """Queues a job's next requests and releases the rows that it no longer needs."""
        if job.growth.is_over:
            self._release(job)
            return
        if requests and job.wave is not job.growth.wave:
            job.wave = job.growth.wave
            for ordinal in [o for o in job.kept if o not in job.wave.keep]:
                self.engine.release(job.kept.pop(ordinal))
        self.waiting.extend(self._start(job, request) for request in requests)

    def _start(self, job: Job, request: Request) -> Run:
        tree = job.growth.tree
        if request.parent == ROOT:
            progress = self.environment.begin(tree.task, len(tree.prompt))
            return Run(job, request, progress, 0, tree.prompt)
        node = tree.nodes[request.parent]
        if node.ordinal not in job.kept:
            raise ValueError(
                f"controller: expected to branch from a rollout that it retained and keeps "
                f"({sorted(job.kept)}), got node {node.id} of rollout {node.ordinal}"
            )
        progress = self.environment.resume(tree, node.id)
        pending = node.step.tokens[-1:]
        return Run(job, request, progress, progress.length - 1, pending, job.kept[node.ordinal])

    def _release(self, job: Job) -> None:
        for row in job.rows():
            self.engine.release(row)
        job.kept.clear()
        job.prompt_row = None

    # Lanes.

    def _admit(self) -> None:
        """Gives waiting rollouts the free lanes, then those of busy rollouts."""
        held_back: list[Run] = []
        forked: list[Run] = []
        idle = [run for run in self.on_lane.values() if run.is_busy]
        while self.waiting and (self.free_lanes or idle):
            run = self.waiting.popleft()
            if not self._can_start(run):
                held_back.append(run)
                continue
            if not self.free_lanes:
                self._park(idle.pop(0))
            run.lane = self.free_lanes.pop()
            self.on_lane[run.lane] = run
            if run.source is None:
                run.job.prompt_under_way = True
            else:
                forked.append(run)
        self.waiting.extendleft(reversed(held_back))
        self._fork(forked)
        for run in self.on_lane.values():
            if not run.is_busy and not run.left:
                run.left = self.environment.turn_budget(run.progress)

    def _can_start(self, run: Run) -> bool:
        """Of a task's fresh rollouts one brings the prompt, the others wait for its row."""
        job = run.job
        if run.source is None and job.prompt_row is not None:
            prompt = job.growth.tree.prompt
            run.source, run.cached, run.segment = job.prompt_row, len(prompt) - 1, prompt[-1:]
        return run.source is not None or not job.prompt_under_way

    def _fork(self, runs: list[Run]) -> None:
        pairs = [(run.source, run.lane) for run in runs]
        rows = [row for row, _ in pairs if row is not None]
        self.engine.fork(rows, [lane for _, lane in pairs if lane is not None])
        for run, row in zip(runs, rows, strict=True):
            if run.is_parked:
                self.engine.release(row)
            else:
                self.summary.forks += 1
                self.summary.saved_tokens += run.cached
            run.source, run.is_parked = None, False

    def _park(self, run: Run) -> None:
        assert run.lane is not None
        (run.source,) = self.engine.keep([run.lane])
        run.is_parked = True
        self._leave_lane(run)
        self.summary.parked += 1

    def _leave_lane(self, run: Run) -> None:
        if run.lane is not None:
            del self.on_lane[run.lane]
            self.free_lanes.append(run.lane)
            run.lane = None

    # Device work.

    def _prefill(self) -> None:
        """Brings all segments into the lanes' caches, but for their pending tokens."""
        todo = [run for run in self.on_lane.values() if not run.is_busy and len(run.segment) > 1]
        chunks = [self._cut(run) for run in todo]
        # A lane's chunks attend to each other: one a lane and call, first to last.
        for depth in range(max(map(len, chunks), default=0)):
            self.engine.prefill(self.params, [cut[depth] for cut in chunks if depth < len(cut)])
        for run in todo:
            run.cached += len(run.segment) - 1
            run.segment = run.segment[-1:]
        fresh = [run for run in todo if run.is_first_turn]
        rows = self.engine.keep([run.lane for run in fresh if run.lane is not None])
        for run, row in zip(fresh, rows, strict=True):
            run.job.prompt_row = row

    def _cut(self, run: Run) -> list[Chunk]:
        assert run.lane is not None
        chunks, start = [], 0
        for size in split_segment(len(run.segment) - 1, self.scheduler.sampler.prefill_chunks):
            tokens = run.segment[start : start + size]
            chunks.append(Chunk(run.lane, run.cached + start, tokens))
            start += size
        return chunks

    def _decode(self) -> None:
        active = {lane: run for lane, run in self.on_lane.items() if not run.is_busy}
        if not active:
            return
        work = [
            Decoding(
                lane=lane,
                pending=int(run.segment[-1]),
                position=run.cached,
                left=run.left,
                identity=(run.job.growth.draw, run.request.ordinal),
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                top_k=self.settings.top_k,
            )
            for lane, run in active.items()
        ]
        # Back to the host once half of the turns are over: tools can run, others take the lanes.
        exit_below = max(1, len(active) // 2)
        try:
            drawn = self.engine.decode(
                self.params, work, self.step_key, self.scheduler.stop_tokens, exit_below
            )
        except NonFiniteSampleError as error:
            error.rows = {
                (
                    active[lane].job.growth.tree.task.id,
                    active[lane].request.ordinal,
                ): np.concatenate([active[lane].known_tokens(), tokens])
                for lane, tokens in error.lanes.items()
            }
            raise
        for lane, run in active.items():
            count = int(drawn.counts[lane])
            if not count:
                continue
            run.tokens.extend(drawn.tokens[lane, :count].tolist())
            run.log_probs.extend(drawn.log_probs[lane, :count].tolist())
            run.entropies.extend(drawn.entropies[lane, :count].tolist())
            run.cached += count
            run.left -= count
            run.segment = np.array(run.tokens[-1:], np.int32)
            if drawn.stopped[lane] or not run.left:
                self._end_turn(run, bool(drawn.stopped[lane]))

    # Turns.

    def _end_turn(self, run: Run, stopped: bool) -> None:
        turn = Turn(
            np.array(run.tokens, np.int32),
            np.array(run.log_probs, np.float32),
            np.array(run.entropies, np.float32),
            stopped,
        )
        run.tokens, run.log_probs, run.entropies, run.left = [], [], [], 0
        calls = self.environment.finish_turn(run.progress, turn)
        if isinstance(calls, Outcome):
            self._apply(run, calls)
            return

        def observed(result: tuple[Any, Sequence[Observation]]) -> None:
            self._apply(run, self.environment.observe(run.progress, turn, calls, *result))

        seconds = self.scheduler.episode.tool_seconds * calls.count
        limit = Limit("episode.tool_seconds", seconds)
        self._submit(run, calls.run, str(calls), limit, observed)

    def _submit(
        self,
        run: Run,
        work: Callable[[], T],
        what: str,
        limit: Limit,
        take: Callable[[T], None],
    ) -> None:
        """Has work for a rollout done on another thread; `take` gets what it returns."""
        run.is_busy = True
        retried = partial(_with_retries, work, self.scheduler.episode.tool_retries)
        self.pending[self.workers.submit(retried, what, limit)] = run, take

    def _collect(self) -> None:
        if not self.pending:
            return
        can_decode = any(not run.is_busy for run in self.on_lane.values())
        grace = TOOL_GRACE_SECONDS if can_decode else TOOL_POLL_SECONDS
        wait(self.pending, timeout=grace, return_when=FIRST_COMPLETED)
        self.workers.expire()
        for future in [f for f in self.pending if f.done()]:
            run, take = self.pending.pop(future)
            run.is_busy = False
            try:
                result = future.result()
            except ToolFailure as failure:
                self._drop(run, failure)
            else:
                take(result)

    def _drop(self, run: Run, failure: ToolFailure) -> None:
        self.summary.last_failure = str(failure)
        self.summary.tool_timeouts += isinstance(failure, ToolTimeout)
        self._leave_lane(run)
        if run.is_parked and run.source is not None:
            self.engine.release(run.source)
        self._follow(run.job, run.job.growth.drop(run.request))

    def _apply(self, run: Run, outcome: Outcome) -> None:
        run.steps.append(outcome.step)
        run.progress = outcome.progress
        if outcome.end == "answer":
            task = run.job.growth.tree.task
            verify = partial(self.environment.verify, task, outcome.step)
            limit = Limit("episode.verify_seconds", self.scheduler.episode.verify_seconds)
            what = f"verifier on an answer to {task.id}"
            self._submit(run, verify, what, limit, partial(self._finish, run, "answer"))
        elif outcome.end is not None:
            self._finish(run, outcome.end, NO_ANSWER)
        else:
            answered = outcome.step.tokens[~outcome.step.is_policy]
            run.segment = np.concatenate([run.segment, answered]).astype(np.int32)
            if run.is_parked:
                self.waiting.append(run)

    def _finish(self, run: Run, end: str, verdict: Verdict) -> None:
        growth, request = run.job.growth, run.request
        rollout = self.environment.conclude(
            growth.tree.task,
            request.ordinal,
            request.parent,
            tuple(run.steps),
            run.progress,
            end,
            verdict,
        )
        if growth.wave.retain(rollout):
            row = run.source if run.is_parked else None
            if row is None:
                assert run.lane is not None
                (row,) = self.engine.keep([run.lane])
            run.job.kept[request.ordinal] = row
        elif run.is_parked and run.source is not None:
            self.engine.release(run.source)
        run.source, run.is_parked = None, False
        self._leave_lane(run)
        self._follow(run.job, growth.finish(rollout))
