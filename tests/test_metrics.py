"""The table of metrics, and the log that survives kills."""

import ast
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from elpo_jax import metrics
from elpo_jax.metrics import MetricsWriter


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "metrics.jsonl", tmp_path / "tensorboard"


def shown(events):
    """(step, name, value) of everything in the TensorBoard folder.

    A record is its length (8 bytes), a checksum (4), an Event, and its checksum (4).
    """
    points = set()
    for path in events.iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            points |= {(event.step, v.tag, v.simple_value) for v in event.summary.value}
            data = data[16 + length :]
    return points


def test_rows_are_on_disk_as_soon_as_they_are_written(paths):
    with MetricsWriter(*paths, last_step=None) as writer:
        row = writer.write(0, {"reward/mean": np.float32(0.5), "sampler/forks": 3})
        assert row == {"step": 0, "reward/mean": 0.5, "sampler/forks": 3}
        assert paths[0].read_text() == '{"step": 0, "reward/mean": 0.5, "sampler/forks": 3}\n'
        writer.write(1, {"reward/mean": np.array(0.25)})
        assert metrics.read(paths[0])[1] == {"step": 1, "reward/mean": 0.25}
    assert shown(paths[1]) == {
        (0, "reward/mean", 0.5),
        (0, "sampler/forks", 3.0),
        (1, "reward/mean", 0.25),
    }


def test_a_restart_cuts_what_came_after_the_checkpoint(paths):
    with MetricsWriter(*paths, last_step=None) as writer:
        for step in range(5):
            writer.write(step, {"reward/mean": step / 8})
    with MetricsWriter(*paths, last_step=2) as writer:
        assert [row["step"] for row in metrics.read(paths[0])] == [0, 1, 2]
        writer.write(3, {"reward/mean": 9})
    assert [row["reward/mean"] for row in metrics.read(paths[0])] == [0.0, 0.125, 0.25, 9]
    assert shown(paths[1]) == {
        (0, "reward/mean", 0.0),
        (1, "reward/mean", 0.125),
        (2, "reward/mean", 0.25),
        (3, "reward/mean", 9.0),
    }
    MetricsWriter(*paths, last_step=None).close()
    assert metrics.read(paths[0]) == []
    assert shown(paths[1]) == set()


@pytest.mark.parametrize("torn", ['{"step": 2, "rew', '{"step": 2}', "\0\0"])
def test_a_torn_last_line_is_cut(paths, torn):
    """A row counts once its line break is there."""
    paths[0].write_text('{"step": 1}\n' + torn)
    assert metrics.read(paths[0]) == [{"step": 1}]
    with MetricsWriter(*paths, last_step=5) as writer:
        writer.write(2, {"success/mean": 1})
    assert paths[0].read_text() == '{"step": 1}\n{"step": 2, "success/mean": 1}\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"step": 0}\nnonsense\n{"step": 1}\n',
            r"metrics.jsonl:2: expected an object with a step",
        ),
        ('{"step": 1.5}\n', "metrics.jsonl:1"),
        ("[1]\n", "metrics.jsonl:1"),
        *(
            (f'{{"step": 0, "reward/mean": {value}}}\n', "metrics.jsonl:1: expected finite numbers")
            for value in ("NaN", "-Infinity", "1e999", f"1{400 * '0'}", "true", "null", '"1"', "[]")
        ),
        ('{"step": 1}\n{"step": 1}\n', "metrics.jsonl:2: expected a step after 1, got 1"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(paths, text, problem):
    paths[0].write_text(text)
    with pytest.raises(ValueError, match=problem):
        MetricsWriter(*paths, last_step=10)
    assert paths[0].read_text() == text


def test_damage_behind_the_checkpoint_is_cut_with_the_rest(paths):
    paths[0].write_text('{"step": 0}\n{"step": 1}\nnonsense\n{"step": 3}\n')
    MetricsWriter(*paths, last_step=1).close()
    assert paths[0].read_text() == '{"step": 0}\n{"step": 1}\n'
    paths[0].write_text("nonsense\n")
    MetricsWriter(*paths, last_step=None).close()
    assert paths[0].read_text() == ""


TOO_LARGE = """
import resource, sys
from pathlib import Path
from elpo_jax.cli import run
from elpo_jax.metrics import MetricsWriter

def main(argv):
    folder = Path(argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    with MetricsWriter(folder / "metrics.jsonl", folder / "events", None) as writer:
        for step in range(1000):
            writer.write(step, {name: 1 / 7 for name in argv[2:]})

run(main)
"""


def test_a_row_that_finds_no_room_leaves_the_rows_before_it(paths):
    """RLIMIT_FSIZE stands in for a full disk: the write after the limit comes back short."""
    names = [metric.name for metric in metrics.TABLE if "<" not in metric.name]
    command = [sys.executable, "-c", TOO_LARGE, str(paths[0].parent), *names]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode == 3
    assert failed.stderr == f"error: {paths[0]}: File too large\n"
    text = paths[0].read_text()
    assert text.endswith("}\n")
    assert [row["step"] for row in metrics.read(paths[0])] == list(range(text.count("\n")))


def test_a_full_disk_under_tensorboard_ends_the_run_too(paths):
    """Its own writer would block for ever: a thread of its own dies, and its queue fills up."""
    command = [sys.executable, "-c", TOO_LARGE, str(paths[0].parent), "reward/mean"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode == 3
    assert failed.stderr == f"error: {paths[0].parent / 'events'}: File too large\n"


@pytest.mark.parametrize(
    ("step", "values", "problem"),
    [
        (1, {"policy/loss": math.nan}, "policy/loss at step 1: expected a finite number, got nan"),
        (1, {"policy/loss": np.float32("inf")}, "expected a finite number, got inf"),
        (1, {"policy/loss": True}, "expected a finite number, got True"),
        (1, {"policy/loss": "1"}, "expected a finite number, got '1'"),
        (1, {"policy/los": 1.0}, "policy/los: no such metric; did you mean policy/loss?"),
        (1, {"eval/success/": 1.0}, "no such metric"),
        (0, {"policy/loss": 1.0}, "step: expected more than 0, got 0"),
    ],
)
def test_bad_values_are_refused_and_nothing_is_written(paths, step, values, problem):
    with MetricsWriter(*paths, last_step=None) as writer:
        writer.write(0, {})
        with pytest.raises(ValueError, match=re.escape(problem)):
            writer.write(step, {"reward/mean": 1.0} | values)
    assert metrics.read(paths[0]) == [{"step": 0}]


def test_names_are_unique_and_families_match():
    names = [metric.name for metric in metrics.TABLE]
    assert len(names) == len(set(names))
    assert metrics.lookup("eval/success").name == "eval/success"
    assert metrics.lookup("eval/success/two_hops").name == "eval/success/<kind>"


def test_every_name_in_the_code_is_in_the_table():
    """Otherwise a run would only find out when it writes the row."""
    groups = {metric.name.partition("/")[0] for metric in metrics.TABLE}
    for path in sorted(Path(metrics.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(rf"({'|'.join(groups)})/[a-z_/]+", text):
                metrics.lookup(f"{text}x" if text.endswith(("/", "_")) else text)  # f-strings


def test_deterministic_leaves_out_the_clock():
    row = {"step": 3, "reward/mean": 1.0, "time/step": 2.0, "sampler/tokens_per_s": 9.0}
    assert metrics.deterministic(row) == {"step": 3, "reward/mean": 1.0}


def test_markdown_has_a_line_for_every_metric():
    text = metrics.markdown()
    assert all(f"| `{metric.name}` |" in text for metric in metrics.TABLE)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_against_published_values(successes, trials, low, high):
    """81 of 263: Newcombe 1998, table I, method 3. The rest: 0 of n is z²/(n + z²), by hand."""
    assert metrics.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts):
    successes, trials = counts
    low, high = metrics.wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    other = metrics.wilson(trials - successes, trials)
    assert other == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("counts", [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="expected successes among trials"):
        metrics.wilson(*counts)


def test_json_numbers_come_back_exactly(paths):
    value = 0.1 + 0.2
    with MetricsWriter(*paths, last_step=None) as writer:
        writer.write(0, {"policy/entropy": value})
    assert json.loads(paths[0].read_text())["policy/entropy"] == value


def test_the_interval_of_a_difference_is_newcombes():
    """His example (1998, Table II, a): 56 of 70 against 48 of 80."""
    low, high = metrics.difference_interval((48, 80), (56, 70))
    assert low == pytest.approx(0.0524, abs=5e-5)
    assert high == pytest.approx(0.3339, abs=5e-5)


def test_held_out_counts_are_read_off_a_row():
    row = {"step": 0, "eval/success/one": 1 / 3, "eval/trials/one": 21, "eval/success": 0.5}
    row |= {"eval/success_by_calls/2": 0.25, "eval/trials_by_calls/2": 8.0}
    assert metrics.held_out_counts(row) == {"one": (7, 21)}
    by_calls = metrics.held_out_counts(row, "eval/success_by_calls/", "eval/trials_by_calls/")
    assert by_calls == {"2": (2, 8)}
