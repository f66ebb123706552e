"""The comparison command with its runs: killed, taken up again, and given other things."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from processes import ROOT, TINY, environment, finish, rows, wait_for

from elpo_jax.compare import main
from elpo_jax.errors import UsageError
from elpo_jax.interrupt import Interrupted

SETTINGS = TINY | {
    "sft.steps": 0,
    "train.steps": 2,
    "eval.every": 1,
    "episode.max_length": 256,
    "train.length_buckets": "256",
}


class Comparison:
    """ELPO and GRPO with one seed, on two files of questions."""

    def __init__(self, folder):
        self.compiled = folder / "compiled"
        self.held_out = folder / "held_out.jsonl"
        train = folder / "train.jsonl"
        for file, pens in ((train, 7), (self.held_out, 9)):
            lines = [
                json.dumps({"question": f"{a} cans of {pens} pens?", "answer": f"#### {a * pens}"})
                for a in range(2, 6)
            ]
            file.write_text("\n".join(lines))
        self.settings = SETTINGS | {"data.train": train, "data.eval": self.held_out}

    def arguments(self, workdir, seeds="0", **changes):
        settings = (self.settings | changes).items()
        return [
            *("--config", str(ROOT / "experiments/math.py"), "--workdir", str(workdir)),
            *("--seeds", seeds, *(f"--config.{key}={value}" for key, value in settings)),
        ]

    def start(self, workdir):
        return subprocess.Popen(
            [sys.executable, "-m", "elpo_jax.compare", *self.arguments(workdir)],
            cwd=ROOT,
            env=environment(self.compiled),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def problems(self, *arguments, **changes):
        """What the command refuses to go on for."""
        with pytest.raises(UsageError) as caught:
            main(["compare", *self.arguments(*arguments, **changes)])
        return caught.value.problems


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def undisturbed(comparison, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "runs"
    finish(comparison.start(workdir))
    return workdir


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def found(workdir):
    """What came out, but for how long it took."""
    text = (workdir / "comparison.json").read_text()
    return json.loads(text, object_hook=lambda each: without(each, "seconds"))


def test_every_algorithm_is_evaluated_at_the_same_budget(undisturbed):
    algorithms = found(undisturbed)["algorithms"]
    assert list(algorithms) == ["elpo", "grpo"]
    for algorithm in algorithms.values():
        curve = algorithm["curves"]["0"]
        assert [point["step"] for point in curve] == [0, 1, 2]
        assert [point["rollouts"] for point in curve] == [0, 8, 16]  # 2 tasks of 4 rollouts a step
        assert 0 == curve[0]["tokens"] < curve[1]["tokens"] < curve[2]["tokens"]
    assert "Held-out success in %, 4 tasks" in (undisturbed / "comparison.md").read_text()
    assert (undisturbed / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_comes_to_the_same(comparison, undisturbed, tmp_path):
    workdir = tmp_path / "runs"
    second = workdir / "grpo" / "0"
    process = comparison.start(workdir)
    wait_for(lambda: rows(second) == 2, process, "step 1 of the second run")
    process.kill()
    process.communicate()
    assert not (workdir / "comparison.json").exists()
    first = (workdir / "elpo" / "0" / "metrics.jsonl").read_bytes()
    output = finish(comparison.start(workdir))
    assert (workdir / "elpo" / "0" / "metrics.jsonl").read_bytes() == first
    assert found(workdir) == found(undisturbed)
    assert (workdir / "comparison.md").read_text() in output


@pytest.fixture
def interrupted_at_seed_1(monkeypatch):
    def train(parts, *_):
        if parts.config.seed == 1:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("elpo_jax.compare.train", train)


@pytest.mark.usefixtures("interrupted_at_seed_1")
def test_the_table_is_there_after_every_seed(comparison, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "runs")
    for file in workdir.glob("comparison.*"):
        file.unlink()

    with pytest.raises(SystemExit):
        main(["compare", *comparison.arguments(workdir, "0,1")])
    assert found(workdir) == found(undisturbed)
    assert (workdir / "comparison.png").exists()


@pytest.mark.usefixtures("interrupted_at_seed_1")
def test_a_finished_comparison_keeps_its_table_while_it_is_looked_through(
    comparison, undisturbed, tmp_path
):
    workdir = shutil.copytree(undisturbed, tmp_path / "runs")
    for name in ("elpo", "grpo"):
        run = shutil.copytree(workdir / name / "0", workdir / name / "1")
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"seed": 1}))
    (workdir / "comparison.md").write_text("of both seeds")

    with pytest.raises(SystemExit):
        main(["compare", *comparison.arguments(workdir, "0,1")])
    assert (workdir / "comparison.md").read_text() == "of both seeds"


def test_other_settings_are_refused_before_anything_is_trained(comparison, undisturbed):
    """Whichever run comes first: a new seed's might take hours."""
    changes = {"train.steps": 3}
    lines = comparison.problems(undisturbed, "1,0", **changes)
    assert [line.partition("; ")[0] for line in lines] == [
        f"{undisturbed}/elpo/0/config.json: train.steps: the run there has 2, got 3"
    ]
    assert not (undisturbed / "elpo" / "1").exists()


def test_runs_on_another_file_are_not_compared(comparison, undisturbed):
    """Runs that are done aren't taken up, but what they were judged by has to be there."""
    before = comparison.held_out.read_text()
    comparison.held_out.write_text(before + '\n{"question": "How many?", "answer": "#### 1"}')
    try:
        (line,) = comparison.problems(undisturbed)
    finally:
        comparison.held_out.write_text(before)
    run = undisturbed / "elpo" / "0"
    assert line.startswith(
        f"data.eval: {comparison.held_out} is not the file that the run in {run} began with"
    )
