"""The report: what it says of a run, finished, begun or broken."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from runs import (
    document,
    evaluation,
    make_run,
    read_page,
    searched_tree,
    step_row,
    write_rows,
)
from worlds import answer_step, call_step, empty_tree, rollout

from elpo_jax.metrics import TABLE, difference_interval
from elpo_jax.report import verdict
from elpo_jax.report.documents import criticals, does, episodes
from elpo_jax.report.failures import lost_at, moves, sort_failures
from elpo_jax.report.report import spread, write_report
from elpo_jax.report.run import read_run
from elpo_jax.rollout.tree import ROOT as TREE_ROOT

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


# The verdict


def test_the_report_opens_with_the_verdict(finished):
    text = read_page(finished.report).text
    assert "Training worked" in text
    assert "Where critical steps lie, all saved trees" in text
    # Wilson's intervals of 16 and 4 of 20, Newcombe's of the difference.
    assert "80.0% (16 of 20, 95% interval 58.4 to 91.9)" in text
    assert "20.0% (4 of 20, 95% interval 8.1 to 41.6)" in text
    assert "+60.0 points (95% interval +29.4 to +76.9)" in text
    assert "4 of 4 steps are done" in text


@pytest.mark.parametrize(
    ("before", "after", "outcome"), [(4, 16, "better"), (16, 4, "worse"), (9, 11, "unclear")]
)
def test_outcomes(tmp_path, before, after, outcome):
    run = read_run(make_run(tmp_path / "run", before, after))
    assert verdict.judge(run).outcome == outcome


def test_the_change_is_split_into_answering_and_being_right(finished):
    """0.2 = 0.5 · 0.4 and 0.8 = 1 · 0.8: Δa (r₁+r₂)/2 = 0.3, Δr (a₁+a₂)/2 = 0.3."""
    text = read_page(finished.report).text
    assert "Episodes that end with an answer: 50.0% before, 100.0% now (+30.0 points" in text
    assert "Answers that are right: 40.0% before, 80.0% now (+30.0 points)" in text


def test_checks_look_where_something_is_off(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows[-1] |= {"policy/entropy": 0.03, "policy/sampler_kl": 0.5, "policy/trained_rows_frac": 0.1}
    rows[-1] |= {"policy/kl_old": 0.2, "policy/grad_norm": 50.0, "episode/drops": 3}
    write_rows(folder, rows)
    looks = {c.name for c in verdict.judge(read_run(folder)).checks if c.state == "look"}
    assert looks >= {
        "Entropy",
        "Sampler and learner agree",
        "Learning signal",
        "Size of steps",
        "Gradients",
        "Infrastructure",
    }
    healthy = verdict.judge(read_run(make_run(tmp_path / "healthy"))).checks
    assert not [c for c in healthy if c.state == "look"]


@pytest.mark.parametrize(("tasks", "state"), [(16, "ok"), (400, "look")])
def test_training_against_held_out_is_judged_by_the_interval(tmp_path, tasks, state):
    """100 % of the last step's training tasks, 80 % of 20 held-out ones: +20 points."""
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows[-1]["rollout/tasks"] = tasks
    write_rows(folder, rows)
    (check,) = [c for c in verdict.judge(read_run(folder)).checks if "held-out" in c.name]
    assert check.state == state
    assert f"100.0% success unaided on {tasks} training tasks lately, 80.0% on 20" in check.text
    assert "difference +20.0 points, 95% interval" in check.text


# Gains of (before, after) solved, of 40 each.
ALIKE = [(10, 20), (10, 22), (11, 20), (9, 21)]


def gains(tmp_path, counts):
    row = {"eval/success": 0.5, "eval/tasks": 40.0 * len(counts)}
    rows = [{"step": step} | row for step in (0, 1)]
    for number, pair in enumerate(counts):
        for each, successes in zip(rows, pair, strict=True):
            each[f"eval/success/{number}"] = successes / 40
            each[f"eval/trials/{number}"] = 40
    folder = make_run(tmp_path / "run")
    write_rows(folder, rows)
    found = verdict.judge(read_run(folder)).reasons
    (sentence,) = [each for each in found if each.startswith("By question type")]
    return sentence


def test_groups_that_differ_by_chance_arent_named(tmp_path):
    assert gains(tmp_path, ALIKE) == (
        "By question type (n = 40 each), gains differ by no more than chance explains."
    )


def test_groups_that_gained_more_or_less_are_named(tmp_path):
    assert gains(tmp_path, [*ALIKE, (2, 38), (20, 16)]) == (
        "By question type, more was gained on 4 (+90.0, n = 40) and less was gained on 5 "
        "(\N{MINUS SIGN}10.0, n = 40) than on the others together (points of success)."
    )


def test_the_interval_against_the_others_by_hand():
    """Newcombe's intervals of both gains are joined as he joins Wilson's of two proportions."""
    pair = verdict.Pair("a", verdict.Share(10, 40), verdict.Share(30, 40))
    other = verdict.Pair("b", verdict.Share(20, 80), verdict.Share(30, 80))
    low, high = verdict._against_others(pair, [pair, other], 1.96)
    l1, u1 = difference_interval((10, 40), (30, 40))
    l2, u2 = difference_interval((20, 80), (30, 80))
    assert low == pytest.approx(0.375 - ((0.5 - l1) ** 2 + (u2 - 0.125) ** 2) ** 0.5)
    assert high == pytest.approx(0.375 + ((u1 - 0.5) ** 2 + (0.125 - l2) ** 2) ** 0.5)


def test_phases_and_spared_tokens(finished):
    """4 steps of 3 + 2 + 1 s, an evaluation of 2 s before them and one in the last."""
    assert verdict.phases(read_run(finished)) == {
        "rollout": 12.0,
        "update": 8.0,
        "evaluation": 4.0,
        "other": 2.0,
    }
    text = read_page(finished.report).text
    assert "spared 1,200 of 1,600 tokens of prefill (75%)" in text


# What is wrong now


def test_failures_are_sorted():
    now = evaluation(lambda kind, number, sample: kind == "mass" and sample == 0)
    found = sort_failures([e for i, d in enumerate(now) for e in episodes(i, d)])
    assert (found.trials, found.failures, found.modes) == (4, 3, ("unread",))
    assert [(row.kind, row.failures, row.trials) for row in found.kinds] == [
        ("ratio", 2, 2),
        ("mass", 1, 2),
    ]
    assert [(group.name, group.size) for group in found.errors] == [("none", 3)]
    assert [trait[:3] for trait in found.traits] == [
        ("answered another number than the last tool output", 0, 1),  # 1, and the tool says 42
        ("repeated a call word for word", 3, 1),
    ]
    assert not found.telling
    assert found.rest[1:] == (0, 0, None)
    assert [e.kind for e in found.examples] == ["ratio", "mass", "ratio"]


def test_failures_without_a_trait_that_is_told_are_counted():
    tree = empty_tree()
    tree.add(rollout(0, TREE_ROOT, [call_step(), answer_step()], True))
    for ordinal in (1, 2, 3):  # too many calls, which only those do that the cap ends
        tree.add(rollout(ordinal, TREE_ROOT, [call_step()] * 3, False, end="calls"))
    found = sort_failures([*episodes(0, document(tree, credit=False))])
    told = [trait.name for trait in found.traits]
    assert "made more calls than the solver" not in told
    assert found.rest[1:3] == (3, 0), told


def test_episodes_say_how_they_failed():
    tree = document(searched_tree())
    found = list(episodes(0, tree))
    assert [e.mode for e in found] == ["unread", "", "unread", "length"]
    called = ("lookup", None)
    assert [e.calls for e in found] == [
        (called, called),
        (called,),
        (called, called),
        (("lookup", "tool_error"),),
    ]
    assert [e.error for e in found] == [None, None, None, "tool_error"]
    assert [e.leaf for e in found] == [2, 3, 4, 6]
    assert does(tree["nodes"][2], "answer") == "answer"
    assert does(tree["nodes"][2], "length") == "cut turn"
    (critical,) = criticals(0, tree)
    assert (critical.position, critical.does, critical.node) == (2 / 3, "lookup", 1)
    (group,) = lost_at([("step_000001", critical)])
    assert (group.does, group.size) == ("lookup", 1)


def test_moves_between_evaluations():
    def of(success):
        return [e for i, d in enumerate(evaluation(success)) for e in episodes(i, d)]

    found = moves(of(lambda k, n, s: n == 0), of(lambda k, n, s: s == 0))
    assert [(e.task, e.ordinal) for e in found.gained] == [("held_out/1", 0)]
    assert [(e.task, e.ordinal) for e in found.lost] == [("held_out/0", 1)]
    assert (found.kept, found.failing) == (1, 1)
    assert moves([], of(lambda k, n, s: True)) is None


def test_the_report_says_what_is_wrong(finished):
    page = read_page(finished.report)
    assert "2 of the 4 episodes saved of the evaluation after step 4 failed." in page.text
    assert "Against step 0: 1 newly solved, 1 lost" in page.text
    links = {value for name, value in page.attributes if name == "href"}
    assert "trees/eval_000004.html#t0n5" in links  # the second sample of the first task
    assert any(link.startswith("trees/index.html#source=Evaluation") for link in links)


# Completeness


def test_every_metric_stands_in_the_report(finished):
    text = read_page(finished.report).text
    for metric in TABLE:
        shown = metric.name.partition("<")[0]
        assert shown in text, metric.name
        assert " ".join(metric.description.split()) in text, metric.name


def test_the_config_is_shown(finished):
    text = read_page(finished.report).text
    assert "train.steps 4 100" in text  # changed, with its default
    assert "rollout.budget 16" in text


def test_plots_are_pictures(finished):
    plots = {file.name: file.read_bytes() for file in (finished.path / "plots").iterdir()}
    assert set(plots) == {
        f"{name}.png"
        for name in (
            *("localisation", "policy", "reward", "success", "success_by_calls"),
            *("success_by_kind", "throughput"),
        )
    }
    for name, data in plots.items():
        assert data.startswith(b"\x89PNG"), name
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600, name
        assert height > 200, name
        assert len(data) < 300_000, name


def test_only_the_report_is_written(tmp_path):
    folder = make_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    write_report(folder)
    first = {path: path.read_bytes() for path in folder.trees.glob("*.html")}
    write_report(folder)
    assert {path: path.read_bytes() for path in before} == before
    assert {
        path: path.read_bytes() for path in first
    } == first  # trees' pages depend on nothing else


def test_few_pages_are_spread_over_the_run_and_old_ones_removed(tmp_path):
    folder = make_run(tmp_path / "run")
    page = read_page(write_report(folder, pages=2)).text
    names = {file.name for file in folder.trees.glob("*.html")}
    evaluations = {"eval_000000.html", "eval_000004.html", "index.html"}
    assert names == evaluations | {"step_000001.html", "step_000004.html"}
    assert "Where critical steps lie, the saved trees of the 2 steps that have a page" in page
    assert (
        "resolved searches of the last quarter of the steps, in the saved trees of the 2 steps"
        in page
    )
    assert "2 more steps have no page" in read_page(folder.trees / "index.html").text

    folder.step_trees(4).unlink()
    write_report(folder, pages=1)
    names = {file.name for file in folder.trees.glob("*.html")}
    assert names == evaluations | {"step_000003.html"}
    assert "Training step 4" not in read_page(folder.trees / "index.html").text
    assert [spread(range(10), count) for count in (0, 1, 3)] == [[], [9], [0, 4, 9]]


# The command


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "elpo_jax.report", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


def test_the_command(tmp_path):
    folder = make_run(tmp_path / "run")
    done = command("--workdir", str(folder.path), "--pages", "1")
    assert (done.returncode, done.stdout.strip()) == (0, str(folder.report)), done.stderr
    assert not (folder.trees / "step_000001.html").exists()
    assert command("--help").stdout.startswith("usage: python -m elpo_jax.report --workdir WORKDIR")


@pytest.mark.parametrize(
    ("arguments", "words_"),
    [
        ([], "--workdir: missing; expected the folder of the run"),
        (["--workdir", "x", "--pages", "few"], "--pages: expected a number, got 'few'"),
        (["--workdri", "x"], "--workdri: no such flag; did you mean --workdir?"),
    ],
)
def test_mistakes_are_one_line(arguments, words_):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {words_}"


def test_it_imports_no_jax():
    script = "import elpo_jax.report.__main__, sys; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_long_runs_smooth_their_curves(tmp_path):
    folder = make_run(tmp_path / "run")
    write_rows(folder, [{"step": step} | step_row(step, 60) for step in range(1, 61)])
    write_report(folder)
    assert 'class="raw c2"' in folder.report.read_text()
