"""The report of folders that are unfinished, broken, or of earlier versions."""

import json
import math
import re
from types import SimpleNamespace

import pytest
from runs import document, make_run, read_page, searched_tree, write_rows, write_trees

from elpo_jax import training
from elpo_jax.config import Config
from elpo_jax.errors import UsageError
from elpo_jax.report import verdict
from elpo_jax.report.report import write_report
from elpo_jax.report.run import read_run, tree_files
from elpo_jax.workdir import WorkDir


def test_runs_of_before_unaided_success_was_counted(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows = [row | {"success/root": 0.9} for row in rows]
    for row in rows:
        row.pop("success/unaided", None)
        row.pop("rollout/tasks", None)
    write_rows(folder, rows)
    checks = verdict.judge(read_run(folder)).checks
    assert "Training against held-out" not in {check.name for check in checks}
    text = read_page(write_report(folder)).text
    assert "success/root of another version 0.9" in text


def test_what_broke_stands_near_the_top(tmp_path):
    folder = make_run(tmp_path / "a run")
    for name in ("step_000012", "cold_start", "evaluation_000000", "warm_up_000003"):
        (folder.faults / name).mkdir(parents=True)
    (folder.faults / "checkpoint_000008_2").mkdir()
    fault = {"message": "the gradient is\nNaN <b>", "tasks": ["a", "b", "c", "d", "e"]}
    (folder.faults / "step_000012" / "fault.json").write_text(json.dumps(fault))
    (folder.faults / "warm_up_000003" / "fault.json").write_text("[]")
    head = read_page(write_report(folder)).text.partition("What changed with it")[0]
    for text in (
        "Stopped during step 12: the gradient is NaN <b>; tasks: a, b, c and 2 more.",
        f"Where it arises: python -m elpo_jax.replay --dump '{folder.faults}/step_000012'",
        "A checkpoint was damaged, put aside and not used: checkpoint_000008_2.",
        "Stopped during cold start; its dump was never finished.",
        "Stopped during evaluation 0; its dump was never finished.",
        "Stopped during warm up 3; its dump can't be read: TypeError",
    ):
        assert text in head, text
    assert "Something broke" not in read_page(write_report(make_run(tmp_path / "well"))).text


def test_notes_on_the_data_are_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "Nothing was noted." in read_page(write_report(folder)).text
    folder.notes.write_text('["data.train: q.jsonl:7: expected <JSON>"]')
    assert "data.train: q.jsonl:7: expected <JSON>" in read_page(write_report(folder)).text
    for broken in ("[", "3"):
        folder.notes.write_text(broken)
        assert "notes.json can't be read: " in read_page(write_report(folder)).text


def test_training_leaves_its_notes_for_the_report(tmp_path, monkeypatch):
    """They are written before anything compiles; until a checkpoint is saved, anew each time."""

    class Stop(Exception):
        pass

    def stop(*arguments):
        raise Stop

    monkeypatch.setattr(training, "Trainer", stop)
    components = SimpleNamespace(
        config=Config(),
        notes=["data.eval: bad rows: 3"],
        conversations=None,
        start_sandboxes=list,
    )
    display = SimpleNamespace(note=lambda line: None)
    folder = WorkDir(tmp_path / "run")
    for notes in (components.notes, ["data.eval: bad rows: 2"], []):
        components.notes = notes
        with pytest.raises(Stop):
            training.train(components, folder, display, None)
        there = json.loads(folder.notes.read_text()) if folder.notes.exists() else []
        assert there == notes


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json: expected the config of a run, found none"):
        write_report(WorkDir(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(UsageError, match="expected a run's files"):
        write_report(WorkDir(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="expected an object, got list"):
        write_report(WorkDir(tmp_path))


def test_a_run_that_has_only_begun(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = folder.metrics.read_text().splitlines(keepends=True)
    for file in tree_files(folder):
        file.path.unlink()
    folder.metrics.unlink()
    text = read_page(write_report(folder)).text
    assert "Too early to say" in text
    assert "No row of metrics yet; 4 steps are planned." in text

    folder.metrics.write_text(rows[0])  # the cold start's evaluation
    text = read_page(write_report(folder)).text
    assert "this run has one: held-out success 20.0% (4 of 20" in text
    assert not list((folder.path / "plots").glob("policy.png"))

    folder.metrics.write_text(rows[1])  # a step without an evaluation
    assert "Too early to say" in read_page(write_report(folder)).text

    row = {name: x for name, x in json.loads(rows[-1]).items() if not name.startswith("eval/")}
    folder.metrics.write_text(json.dumps(row) + "\n")  # the last step, and none was evaluated
    assert "Not measured" in read_page(write_report(folder)).text


def test_torn_missing_and_odd_values(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows[1] |= {"policy/entropy": math.nan, "reward/mean": math.inf, "time/update": "<b>2</b>"}
    del rows[2]["policy/entropy"]
    write_rows(folder, rows)
    with folder.metrics.open("a") as file:
        file.write('{"step": 5, "reward/m')
    text = folder.report.read_text() if write_report(folder) else ""
    assert not re.search(r"\bnan\b|\binf\b|NaN|Infinity", text)
    assert read_run(folder).series("policy/entropy") == [(3, 0.3), (4, 0.3)]
    assert "4 of 4 steps are done" in text


def test_a_broken_line_of_metrics_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    folder.metrics.write_text("{}\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl:1: expected an object with a step"):
        write_report(folder)


def test_runs_of_before_trials_were_counted(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if "trials" not in k} for row in rows]
    write_rows(folder, rows)
    for file in tree_files(folder):
        trees = json.loads(file.path.read_text())
        for tree in trees:
            del tree["task"]["calls"]
        write_trees(file.path, trees)
    text = read_page(write_report(folder)).text
    assert "80.0% (16 of 20" in text
    assert "This run's rows don't say how many tasks of each type were tried." in text


def test_files_of_trees_that_cant_be_read_are_named(tmp_path):
    folder = make_run(tmp_path / "run", steps=6)
    tree = document(searched_tree())
    tree["nodes"][2]["parent"] = 40
    contents = ["[{torn", "{}", '[{"format": "other"}]', "[3]", json.dumps([tree])]
    for step, content in enumerate(contents, 1):
        folder.step_trees(step).write_text(content)
    page = read_page(write_report(folder))
    assert "Not everything could be read" in page.text
    for step in range(1, 6):
        assert f"trees/step_{step:06d}.json" in page.text
        assert not (folder.trees / f"step_{step:06d}.html").exists()
    assert (folder.trees / "step_000006.html").exists()


def test_a_folder_that_cant_be_written_is_one_line(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder.report / "in the way").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"report\.html: expected to write it, got"):
        write_report(folder)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("eval/trials/atoms", 20, "expected eval/success/atoms beside it, got none"),
        ("eval/trials_by_calls/9", 20, "expected eval/success_by_calls/9 beside it, got none"),
        ("eval/success", 1.2, "expected a share from 0 to 1, got 1.2"),
        ("eval/success/mass", -0.1, "expected a share from 0 to 1, got -0.1"),
        ("success/unaided", 2, "expected a share from 0 to 1, got 2"),
        ("eval/trials/mass", -3, "expected a count, got -3"),
        ("eval/tasks", -1, "expected a count, got -1"),
    ],
)
def test_rows_that_cant_be_are_named_by_line(tmp_path, name, value, problem):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows[-1][name] = value
    write_rows(folder, rows)
    with pytest.raises(UsageError) as caught:
        write_report(folder)
    mend = "mend the line, or delete it"
    assert str(caught.value) == f"{folder.metrics}:5: {name}: {problem}; {mend}"


def test_files_that_are_nested_too_deeply_are_named(tmp_path):
    folder = make_run(tmp_path / "run")
    deep = "[" * 100_000 + "]" * 100_000
    folder.step_trees(2).write_text(deep)
    assert "trees/step_000002.json: RecursionError" in read_page(write_report(folder)).text
    folder.metrics.write_text(f'{{"step": {deep}}}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl:1: expected an object with a step"):
        write_report(folder)
    folder.config.write_text(deep)
    with pytest.raises(UsageError, match="expected a run's files, got"):
        write_report(folder)


@pytest.mark.parametrize("key", ["batch_prompts", "mini_batch_prompts", "epochs"])
@pytest.mark.parametrize("value", ["x", -1, None, [1]])
def test_odd_settings_are_shown_and_not_counted_with(tmp_path, key, value):
    folder = make_run(tmp_path / "run")
    config = json.loads(folder.config.read_text())
    config["train"][key] = value
    folder.config.write_text(json.dumps(config))
    assert "Training worked" in read_page(write_report(folder)).text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UsageError(["a: expected b\nc"]), "a: expected b c"),
        (KeyError("eval/success"), "KeyError('eval/success')"),
        (RecursionError("too deep"), "RecursionError('too deep')"),
    ],
)
def test_a_finished_run_stands_whatever_its_report_meets(tmp_path, monkeypatch, error, told):
    def fail(folder):
        raise error

    notes = []
    monkeypatch.setattr(training, "write_report", fail)
    run = SimpleNamespace(folder=WorkDir(tmp_path), display=SimpleNamespace(note=notes.append))
    training._Run._report(run)
    again = f"once that is mended: python -m elpo_jax.report --workdir {tmp_path}"
    assert notes == [f"no report: {told}; {again}"]
