"""Threads for tool calls: one that hangs costs its thread, and not the run."""

import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from functools import partial

import pytest

from elpo_jax.errors import RunFault
from elpo_jax.sampler.tool_workers import Limit, ToolWorkers
from elpo_jax.tools.base import ToolFailure, ToolTimeout

LONG = Limit("episode.tool_seconds", 30)
SHORT = Limit("episode.tool_seconds", 0.2)


@pytest.fixture
def gate():
    """What hanging calls wait for; the test's end lets them go."""
    gate = threading.Event()
    yield gate
    gate.set()


def settle(workers, futures, seconds=30):
    """Waits for the futures as the scheduler does."""
    deadline = time.monotonic() + seconds
    while not all(future.done() for future in futures) and time.monotonic() < deadline:
        wait(futures, timeout=0.01)
        workers.expire()
    assert all(future.done() for future in futures)


def test_calls_run_side_by_side_and_their_errors_come_back():
    workers = ToolWorkers(2)
    meet = threading.Barrier(2)

    def fail():
        raise ToolFailure("broken")

    together = [workers.submit(meet.wait, "meet", LONG) for _ in range(2)]
    failed = workers.submit(fail, "fail", LONG)
    settle(workers, [*together, failed])
    assert sorted(future.result() for future in together) == [0, 1]
    assert isinstance(failed.exception(), ToolFailure)
    assert workers.hanging == 0
    workers.rest()


def test_a_call_that_hangs_is_given_up_and_its_thread_replaced(gate):
    workers = ToolWorkers(1)
    hung = workers.submit(gate.wait, "look_up({})", SHORT)
    behind = workers.submit(lambda: "answer", "add", SHORT)  # waits for the only thread
    settle(workers, [hung, behind])
    assert isinstance(hung.exception(), ToolTimeout)
    assert str(hung.exception()) == "look_up({}): no answer in 0.2 s"
    assert behind.result() == "answer"
    assert workers.hanging == 1
    gate.set()  # it ends after all: its answer is ignored, and so is its thread
    deadline = time.monotonic() + 10
    while workers.hanging and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers.hanging == 0
    workers.rest()


def test_waiting_in_the_queue_takes_none_of_a_calls_time():
    workers = ToolWorkers(1)
    futures = [
        workers.submit(partial(time.sleep, 0.3), "nap", Limit("episode.tool_seconds", 1))
        for _ in range(5)
    ]
    settle(workers, futures)
    assert [future.exception() for future in futures] == [None] * 5
    workers.rest()


def test_too_many_hanging_calls_are_an_error(gate):
    workers = ToolWorkers(2, max_hanging=2)
    futures = [workers.submit(gate.wait, f"call {i}", SHORT) for i in range(3)]
    with pytest.raises(RunFault) as caught:
        settle(workers, futures)
    (line,) = caught.value.problems
    assert line == (
        "tools: 3 calls run on after episode.tool_seconds=0.2 and hold a thread each, the last "
        "one call 2"
    )
    workers.rest()


def test_threads_end_when_there_is_nothing_to_do():
    before = set(threading.enumerate())
    workers = ToolWorkers(3)
    settle(workers, [workers.submit(lambda: None, "nothing", LONG) for _ in range(9)])
    workers.rest()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    again = workers.submit(lambda: "once more", "more", LONG)
    settle(workers, [again])
    assert again.result() == "once more"
    workers.rest()


HANGING = """
import threading
from elpo_jax.cli import run
from elpo_jax.sampler.tool_workers import Limit, ToolWorkers

def main(argv):
    workers = ToolWorkers(1, max_hanging=0)
    workers.submit(threading.Event().wait, "for_ever()", Limit("episode.tool_seconds", 0.05))
    while True:
        workers.expire()

run(main)
"""


def test_a_process_can_end_while_calls_hang():
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("error: tools: 1 calls run on after episode.tool_seconds=0.05")
