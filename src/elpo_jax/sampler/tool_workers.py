"""Threads that run tool calls and verifiers, and give up a call that doesn't end.

A thread can't be killed. One whose call runs over its time is *abandoned*: another takes its
place, whatever the call still comes to is ignored, and the thread ends when the call does. All are
daemons, so that no call keeps the process from ending.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from elpo_jax.errors import ToolFault
from elpo_jax.tools.base import ToolTimeout

MAX_HANGING = 32  # abandoned threads that may still be in their call


class Limit(NamedTuple):
    """A call's time in seconds, from when a thread takes it up, and the setting that says so."""

    key: str
    seconds: float


@dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    what: str
    limit: Limit
    future: Future[Any] = field(default_factory=Future)
    thread: threading.Thread | None = None
    started: float | None = None
    is_over: bool = False  # has ended, or was given up


class ToolWorkers:
    """A pool of threads.

    Args:
      count: calls that run at once.
      max_hanging: see `MAX_HANGING`.
    """

    def __init__(self, count: int, max_hanging: int = MAX_HANGING):
        self._count = count
        self._max_hanging = max_hanging
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._serving = 0  # threads that take jobs from the queue
        self._jobs: list[_Job] = []  # submitted and not over, as far as is known
        self._abandoned: list[threading.Thread] = []
        self._lock = threading.Lock()  # makes ending a job and giving it up exclude each other

    def submit(self, work: Callable[[], Any], what: str, limit: Limit) -> Future[Any]:
        """Queues a call. `what` names it in errors."""
        job = _Job(work, what, limit)
        self._jobs.append(job)
        self._queue.put(job)
        if self._serving < self._count:
            self._serving += 1
            self._start_thread()
        return job.future

    def expire(self) -> None:
        """Gives up the calls that have run over their time: their futures get a `ToolTimeout`.

        Raises:
          ToolFault: too many abandoned threads are still in their calls.
        """
        self._jobs = [job for job in self._jobs if not job.future.done()]
        now = time.monotonic()
        late = [job for job in self._jobs if job.started and now - job.started > job.limit.seconds]
        for job in late:
            self._give_up(job)
        if late and self.hanging > self._max_hanging:
            raise ToolFault(
                [
                    f"tools: {self.hanging} calls run on after {late[-1].limit.key}="
                    f"{late[-1].limit.seconds:g} and hold a thread each, the last one "
                    f"{late[-1].what}"
                ]
            )

    @property
    def hanging(self) -> int:
        """Abandoned threads that are still in their calls."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned)

    def rest(self) -> None:
        """Drops what is queued and lets the threads end, each after the call that it is in."""
        for job in self._jobs:
            job.future.cancel()
        self._jobs = []
        for _ in range(self._serving):
            self._queue.put(None)
        self._serving, self._queue = 0, queue.SimpleQueue()

    def _give_up(self, job: _Job) -> None:
        with self._lock:
            if job.is_over:
                return
            job.is_over = True
        assert job.thread is not None
        self._abandoned.append(job.thread)
        self._start_thread()
        job.future.set_exception(ToolTimeout(f"{job.what}: no answer in {job.limit.seconds:g} s"))

    def _start_thread(self) -> None:
        threading.Thread(target=self._serve, args=(self._queue,), name="tool", daemon=True).start()

    def _serve(self, jobs: "queue.SimpleQueue[_Job | None]") -> None:
        while (job := jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            job.thread, job.started = threading.current_thread(), time.monotonic()
            result = error = None
            try:
                result = job.work()
            except BaseException as raised:
                error = raised
            with self._lock:
                if job.is_over:
                    return  # another thread serves in this one's place
                job.is_over = True
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
