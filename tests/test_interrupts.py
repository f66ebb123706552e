"""Ctrl-C and SIGTERM in runs of their own: what is said, what is saved, how soon it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import processes
import pytest
from processes import TINY, assert_same, checkpoints, finish, has_begun, outcome, wait_for

STOPPING = "SIGINT: stopping as soon as nothing is lost; again: at once\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Compiled programs and cold starts."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def start(shared):
    def start(workdir, prelude="", **changes):
        settings = TINY | {"sft.cache_dir": shared / "cold"} | changes
        return processes.start(settings, workdir, shared / "compiled", prelude)

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(workdir))
    return outcome(workdir)


@pytest.mark.slow
def test_ctrl_c_in_every_phase(undisturbed, start, tmp_path):
    """One line, 130, and the next start goes on with what there is."""
    workdir = tmp_path / "run"
    for phase, signals, said in (
        ("cold start 7", 1, r": stopped, saved update \d+ of the cold start; the same command"),
        ("compilation 1", 2, r"^error: interrupted$"),
        ("evaluation 1", 1, r": stopped, saved step 0; the same command goes on$"),
        ("evaluation 1", 1, r": stopped, saved step 2; the same command goes on$"),
    ):
        process = start(workdir, **{"sft.cache_dir": tmp_path / "cold"})
        wait_for(partial(has_begun, workdir, phase), process, phase)
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        output = finish(process, status=130)
        assert "SIGINT: stopping as soon as nothing is lost; again: at once\n" in output
        assert re.search(said, output, re.MULTILINE), output
        assert "Traceback" not in output
    output = finish(start(workdir, **{"sft.cache_dir": tmp_path / "cold"}))
    assert "going on after step 2" in output
    assert_same(undisturbed, outcome(workdir))
    assert not (workdir / "cold_start").exists()


# What takes for ever: a save whose digests aren't there yet, and compiled code that runs.
SLOW_SAVE = """
import time
from elpo_jax.checkpoint import Checkpoints

Checkpoints._write_digests = lambda self: time.sleep(3600)
"""
SLOW_CODE = """
import os
import numpy as np
from elpo_jax.trainer import Trainer

def warm_up(self, state):
    with open(os.environ["PHASES"], "a") as file:
        print("compiled code 1", file=file)
    np.linalg.svd(np.random.default_rng(0).normal(size=(6000, 6000)))

Trainer.warm_up = warm_up
"""


def test_a_second_ctrl_c_ends_it_at_once(undisturbed, start, tmp_path):
    workdir = tmp_path / "run"
    for what, prelude, has_come in (
        ("compiled code", SLOW_CODE, partial(has_begun, workdir, "compiled code 1")),
        ("a save", SLOW_SAVE, partial(processes.is_writing, workdir)),
    ):
        with start(workdir, prelude) as process:
            wait_for(has_come, process, what)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert STOPPING in iter(process.stdout.readline, "")
            time.sleep(0.5)
            assert process.poll() is None, what
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 130
            assert process.stdout.read() == "error: interrupted\n"
    assert not any(name.isdecimal() for name in checkpoints(workdir))
    finish(start(workdir))
    assert_same(undisturbed, outcome(workdir))


HEARING = """
import time
from elpo_jax.interrupt import Interrupted, Interrupts

with Interrupts() as interrupts:
    print("ready", flush=True)
    try:
        while True:
            interrupts.check()
            time.sleep(0.01)
    except Interrupted:
        time.sleep(0.5)
        print("saved")
"""


def test_a_signal_that_comes_twice_at_once_is_one_request():
    """As `timeout` sends it: to the process, then to its group."""
    with subprocess.Popen(
        [sys.executable, "-c", HEARING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)  # else the system may make one of them
        assert process.communicate(timeout=30)[0] == "saved\n"


def test_a_reader_that_ends_by_the_same_ctrl_c_costs_nothing(undisturbed, start, tmp_path):
    """As `| tee log` does."""
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(lambda: processes.rows(workdir) >= 2, process, "step 1")
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert max(map(int, filter(str.isdecimal, checkpoints(workdir)))) >= 1
    finish(start(workdir))
    assert_same(undisturbed, outcome(workdir))


# A `sitecustomize`, which the interpreter imports first. It sets the handler of a program at a
# terminal, since what a shell starts in the background ignores Ctrl-C, these tests perhaps.
INTERRUPTING = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "jaxlib":
            print("now", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_while_all_is_imported_shows_nothing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    environment = processes.environment("unused")
    paths = [str(tmp_path), environment["PYTHONPATH"]]
    process = subprocess.Popen(
        [sys.executable, "-m", "elpo_jax.train", "--help"],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finish(process, status=-signal.SIGINT) == "now\n"
