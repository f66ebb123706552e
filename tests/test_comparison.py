"""Comparisons of runs: curves, intervals over seeds, the table and the picture."""

import json
import math

import pytest

from elpo_jax.compare import _write, main
from elpo_jax.comparison import Point, compare, curve, estimate, markdown
from elpo_jax.comparison_plot import plot
from elpo_jax.config import Config
from elpo_jax.errors import UsageError


def rows(*successes):
    """A run of 16 rollouts a step, evaluated at every step."""
    first, *rest = successes
    costs = {
        "rollout/total": 16.0,
        "sampler/decode_tokens": 100,
        "time/rollout": 2.0,
        "time/update": 1.0,
        "time/eval": 9.0,
        "time/step": 12.5,
    }
    return [
        {"step": 0, "eval/success": first, "eval/tasks": 256.0},
        *({"step": i, "eval/success": x, **costs} for i, x in enumerate(rest, 1)),
    ]


RUNS = {
    "elpo": {0: rows(0.10, 0.20, 0.40), 1: rows(0.20, 0.30, 0.60), 2: rows(0.30, 0.40, 0.50)},
    "grpo": {0: rows(0.10, 0.10, 0.30), 1: rows(0.20, 0.20, 0.40), 2: rows(0.30, 0.40, 0.50)},
}


def test_a_curve_sums_what_was_spent_before_each_evaluation():
    points = curve(rows(0.1, 0.2, 0.4))
    assert points[0] == Point(0, 0, 0, 0, 0.1)
    assert points[2] == Point(2, 32, 200, 6, 0.4)
    skipped = rows(0.1, 0.2, 0.4)
    del skipped[1]["eval/success"]
    assert curve(skipped) == [points[0], points[2]]
    with pytest.raises(ValueError, match="eval/success"):
        curve([{"step": 0}])


def test_intervals_are_students():
    # t(0.975, 2) = 4.30265; 0.4, 0.6, 0.5: deviation 0.1, so 0.5 ± 4.30265 * 0.1 / sqrt(3).
    found = estimate([0.4, 0.6, 0.5])
    assert found.mean == pytest.approx(0.5)
    assert found.spread == pytest.approx(0.1)
    assert found.low == pytest.approx(0.5 - 0.248414, abs=1e-5)
    assert found.high == pytest.approx(0.5 + 0.248414, abs=1e-5)
    alone = estimate([0.4])
    assert alone.mean == 0.4
    assert math.isnan(alone.spread)


def test_algorithms_are_paired_by_seed():
    found = compare(RUNS)
    assert found["algorithms"]["elpo"]["gain"]["mean"] == pytest.approx(0.3)
    assert found["algorithms"]["grpo"]["after"]["mean"] == pytest.approx(0.4)
    assert found["algorithms"]["elpo"]["rollouts"] == 32
    difference = found["differences"]["elpo - grpo"]  # of 0.1, 0.2 and 0
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["spread"] == pytest.approx(0.1)
    json.dumps(found, allow_nan=False)


def test_the_table_says_what_was_found(tmp_path):
    table = markdown(compare(RUNS), 256)
    row = "| elpo | 3 | 20.0 ± 10.0 [0.0, 44.8] | 50.0 ± 10.0 [25.2, 74.8] |"
    assert row in table
    assert "elpo - grpo, paired by seed: +10.0 ± 10.0 [-14.8, 34.8] points" in table
    one = {name: {0: by_seed[0]} for name, by_seed in RUNS.items()}
    alone = markdown(compare(one), 256)
    assert "| elpo | 1 | 10.0 | 40.0 | +30.0 | 32 | 200 | 6 |" in alone
    assert "256 tasks; of one seed, so without an interval." in alone
    assert "Student's t" in table
    assert "Student's t" not in alone
    json.dumps(compare(one), allow_nan=False)
    plot(compare(one), "one seed", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_began_with_different_policies_are_told():
    """A cold start is its seed's, unless its code or data changed between two runs."""
    assert "Warning" not in markdown(compare(RUNS), 256)
    words = "Warning: the runs of seeds 1, 2 began with different policies"
    after_another = {
        0: RUNS["grpo"][0],
        1: rows(0.21, 0.20, 0.40),
        2: [RUNS["grpo"][2][0] | {"sft/loss": 1.0}, *RUNS["grpo"][2][1:]],
    }
    found = compare({"elpo": RUNS["elpo"], "grpo": after_another})
    assert found["unequal_starts"] == [1, 2]
    assert words in markdown(found, 256)
    without_first = {name: {0: by_seed[0][1:]} for name, by_seed in RUNS.items()}
    assert compare(without_first)["unequal_starts"] == []


def test_a_run_that_lacks_a_row_is_named():
    uneven = {**RUNS, "grpo": {**RUNS["grpo"], 1: [RUNS["grpo"][1][0], RUNS["grpo"][1][2]]}}
    words = (
        r"grpo/1/metrics.jsonl: .* differs at step 1; put the row back, or remove the folder grpo/1"
    )
    with pytest.raises(UsageError, match=words):
        compare(uneven)
    first = [{"step": 1, "eval/success": 0.5}]
    with pytest.raises(UsageError, match="differs at step 0"):
        compare({"elpo": {0: first}, "grpo": {0: rows(0.1, 0.5)}})


def test_the_table_counts_the_tasks_that_were_evaluated(tmp_path):
    """A file may have fewer than `eval.tasks`; and the first row may be gone from every run."""
    first, second = rows(0.10, 0.40)
    for number, kept in enumerate(
        ([first | {"eval/tasks": 7.0}, second], [second | {"eval/tasks": 7.0}])
    ):
        folder = tmp_path / str(number)
        (folder / "elpo" / "0").mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        (folder / "elpo" / "0" / "metrics.jsonl").write_text(lines)
        _write(folder, Config(), ["elpo"], [0])
        assert "success in %, 7 tasks;" in (folder / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("algorithms", "elpo,gprpo", "got 'gprpo'; did you mean grpo"),
        ("algorithms", "elpo,elpo", "different items"),
        ("algorithms", ",", "different items"),
        ("seeds", "0,x", "got 'x'"),
        ("seeds", "-1", "got '-1'"),
        ("seeds", "0,4294967296", r"from 0 to 2\*\*32 - 1, got '4294967296'"),
        ("seeds", "01,1", "expected different numbers, got '01,1'"),
        ("config.seed", "7", "config.seed: expected none here, use --seeds"),
        ("config.algorithm", "grpo", "config.algorithm: expected none here, use --algorithms"),
    ],
)
def test_bad_lists_are_one_line(tmp_path, flag, value, words):
    argv = ["compare", "--config", "experiments/sci.py", "--workdir", str(tmp_path / "new")]
    with pytest.raises(UsageError, match=words) as caught:
        main([*argv, f"--{flag}={value}"])
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "new").exists()
