"""What a run shows."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from elpo_jax import progress
from elpo_jax.progress import Display


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain():
    out = io.StringIO()
    return out, Console(file=out, width=100)


def test_without_a_terminal_each_step_is_a_line():
    out, console = plain()
    clock = Clock()
    with Display(console, clock) as display:
        display.start("train", 4)
        clock.now += 30  # the first step compiles
        display.step(1, {"success/unaided": 0.25, "eval/success": 0.5})
        clock.now += 10
        display.step(2, {"reward/mean": -0.5, "sampler/tokens_per_s": 1234.5})
        display.note("saved [bold]")
        clock.now += 10
        display.step(4, {})
    assert out.getvalue().splitlines() == [
        "train 1/4  success 25.0%  eval 50.0%  left 01:30",
        "train 2/4  success 25.0%  reward -0.50  tokens/s 1,234  eval 50.0%  left 00:20",
        "saved [bold]",
        "train 4/4  success 25.0%  reward -0.50  tokens/s 1,234  eval 50.0%",
    ]


def test_print_every_thins_lines_but_keeps_the_last():
    out, console = plain()
    with Display(console, Clock()) as display:
        display.start("sft", 7, print_every=3)
        for step in range(1, 8):
            display.step(step, {"sft/loss": 1 / step})
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["3/7", "6/7", "7/7"]


def test_a_new_phase_forgets_all_but_the_held_out_success():
    out, console = plain()
    with Display(console, Clock()) as display:
        display.start("sft", 1)
        display.step(1, {"sft/loss": 2.0, "eval/success": 0.5})
        display.start("train", 1)
        display.step(1, {})
    assert out.getvalue().splitlines() == [
        "sft 1/1  loss 2.000  eval 50.0%",
        "train 1/1  eval 50.0%",
    ]


def test_a_restarted_run_doesnt_count_earlier_steps_as_fast():
    out, console = plain()
    clock = Clock()
    with Display(console, clock) as display:
        display.start("train", 100, done=90)
        clock.now += 5
        display.step(91, {})
    assert out.getvalue() == "train 91/100  left 00:45\n"


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=100), Clock()) as display:
        display.start("train", 2)
        display.step(1, {"success/unaided": 0.5})
        display.note("hello")
    assert "1/2" in out.getvalue()
    assert "success 50.0%" in out.getvalue()
    assert "hello" in out.getvalue()


def test_summary_shows_counts_shares_and_intervals():
    out, console = plain()
    table = progress.summary({"one": (0, 10), "two": (5, 10)}, {"one": (5, 10), "two": (10, 10)})
    console.print(table)
    text = out.getvalue()
    assert "0/10  0.0% (0.0-27.8)" in text
    assert "5/10  50.0% (23.7-76.3)" in text
    assert "+50.0" in text
    (total,) = [line for line in text.splitlines() if " all " in line]
    assert "5/20  25.0%" in total
    assert "15/20  75.0%" in total


def test_summary_of_kinds_without_tasks():
    out, console = plain()
    console.print(progress.summary({"one": (0, 0)}, {"one": (1, 2), "two": (2, 2)}))
    (line,) = [line for line in out.getvalue().splitlines() if " one " in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "one",
        "-",
        "1/2  50.0% (9.5-90.5)",
        "-",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.6, "01:00"), (3723, "1:02:03")])
def test_clock_time(seconds, text):
    assert progress.clock_time(seconds) == text


SHOWING = """
from elpo_jax.cli import run
from elpo_jax.progress import Display

def main(argv):
    with Display() as display:
        for step in range(3):
            display.note(f"step {step}")

run(main)
"""


def shown_to(stdout, stderr, program=SHOWING):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, check=False, timeout=60)


def test_an_output_without_room_ends_in_a_line():
    with open("/dev/full", "w") as full:
        ended = shown_to(full, subprocess.PIPE)
    assert ended.returncode == 3
    assert ended.stderr == "error: standard output: No space left on device\n"


def test_a_pipe_that_nobody_reads_ends_in_a_line():
    """As `| head -1` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = shown_to(writer, subprocess.PIPE)
        assert ended.returncode == 3
        assert ended.stderr == "error: standard output: Broken pipe\n"
        assert shown_to(writer, subprocess.STDOUT).returncode == 3  # the line has no reader either
        # A run that has been asked to end does so.
        ending = SHOWING.replace("Display()", "Display(is_ending=lambda: True)")
        ended = shown_to(writer, subprocess.PIPE, ending)
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        os.close(writer)
