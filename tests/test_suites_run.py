"""Whole runs on question files, and on a suite that only the registry knows."""

import contextlib
import io
import json
import re
import signal
import threading

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from elpo_jax import tasks
from elpo_jax.cli import parse
from elpo_jax.cold_start import cache_folder, demonstrations, notes
from elpo_jax.components import build
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.evaluate import main as evaluate
from elpo_jax.interrupt import Interrupted
from elpo_jax.metrics import deterministic, read
from elpo_jax.progress import Display
from elpo_jax.tasks import problems
from elpo_jax.tasks.base import Verdict
from elpo_jax.tasks.problems import Problem, ProblemSuite, calculate, split_of
from elpo_jax.tools.calculator import Calculator
from elpo_jax.train import main as train_main
from elpo_jax.training import train
from elpo_jax.workdir import WorkDir

STEPS = 4
# The smallest policy and programs that go through everything.
TINY = {
    "policy.d_model": 32,
    "policy.num_layers": 1,
    "policy.head_dim": 8,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 32,
    "policy.scan_unroll": 1,
    "sampler.lanes": 8,
    "sampler.rows": 8,
    "sampler.prefill_rows": 4,
    "sampler.prefill_chunks": "64",
    "sampler.fork_rows": 4,
    "episode.max_length": 256,
    "episode.max_turn_tokens": 24,
    "rollout.budget": 4,
    "sft.steps": 3,
    "sft.batch": 4,
    "sft.optimizer.warmup_steps": 0,
    "sft.optimizer.learning_rate": 3e-3,
    "optimizer.learning_rate": 3e-4,
    "optimizer.schedule": "constant",
    "train.steps": STEPS,
    "train.batch_prompts": 2,
    "train.mini_batch_prompts": 2,
    "train.micro_batch_rows": 8,
    "train.length_buckets": "256",
    "train.save_trees": 2,
    "eval.tasks": 8,
    "eval.every": 0,
    "checkpoint.every": 1,
}


def flags(experiment, **settings):
    return ["prog", "--config", experiment, *(f"--config.{k}={v}" for k, v in settings.items())]


class Interrupts:
    """Asks the run to end once the metrics have so many rows."""

    def __init__(self, metrics=None, rows=0):
        self.metrics, self.rows = metrics, rows

    def check(self):
        if self.metrics and self.metrics.exists() and len(read(self.metrics)) >= self.rows:
            raise Interrupted(signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory):
    """Kept on the disk, since the runs below compile the same ones."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()  # it looks at the settings once
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# --- Question files ------------------------------------------------------------------------------


def gsm8k_row(a, b):
    """A row in GSM8K's manner."""
    answer = f"There are {a}*{b}=<<{a}*{b}={a * b}>>{a * b} pens.\n#### {a * b}"
    return json.dumps({"question": f"{a} cans of {b} pens. How many pens?", "answer": answer})


TRAIN_ROWS = [
    *(gsm8k_row(a, 7) for a in range(2, 7)),
    '{"question": "How many?"}',
    json.dumps({"question": "pens " * 100, "answer": "#### 1"}),
    json.dumps({"question": "7 cans of 8 pens. How many pens?", "answer": "#### 56"}),
]
HELD_OUT_ROWS = [
    *(gsm8k_row(a, 9) for a in range(2, 5)),
    json.dumps({"question": "A can of 5 pens. How many pens?", "answer": "#### 5"}),
]


class World:
    """Two question files and a cache, and runs on them, whose rewards tell failures apart too."""

    def __init__(self, folder):
        self.train, self.held_out = folder / "train.jsonl", folder / "held_out.jsonl"
        self.train.write_text("\n".join(TRAIN_ROWS))
        self.held_out.write_text("\n".join(HELD_OUT_ROWS))
        rewards = {"reward.terms": "demyagent,overlong", "reward.overlong_buffer": 256}
        data = {"data.train": self.train, "data.eval": self.held_out}
        self.settings = TINY | data | rewards | {"sft.cache_dir": folder / "cache"}

    def run(self, path, interrupts=None, **changes):
        """What a run says."""
        config, _ = parse(flags("experiments/math.py", **self.settings | changes), [])
        output = io.StringIO()
        with Display(Console(file=output, width=200)) as display:
            try:
                train(build(config), WorkDir(path), display, interrupts or Interrupts())
            except Interrupted:
                assert interrupts
        return output.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """(folder, output) of a run on the files."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    return path, world.run(path)


def asked(path):
    """The questions of each step's trees."""
    files = sorted((path / "trees").glob("step_*.json"))
    return [[tree["task"]["question"] for tree in json.loads(f.read_text())] for f in files]


def test_a_run_on_files_goes_from_reading_to_evaluation(world, undisturbed):
    path, output = undisturbed
    for line in (
        f"{world.train}:6: answer: expected this field, got 'question'",
        f"data.train: {world.train}: questions: 7, bad rows: 1",
        f"data.eval: {world.held_out}: questions: 4, bad rows: 0",
        "data.train: left out, too long for episode.max_length=256: 1",
        "data.eval: fewer than eval.tasks=8: 4",
    ):
        assert line in output.splitlines()
    rows = read(path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert rows[0]["sft/loss"] > 0
    assert [row["eval/tasks"] for row in rows if "eval/tasks" in row] == [4, 4]
    assert rows[-1]["eval/trials/gsm8k"] == 4
    assert rows[-1]["eval/trials_by_calls/1"] == 3  # one has no worked solution
    assert "gsm8k" in (path / "report.html").read_text()
    assert max(row["policy/grad_norm"] for row in rows[1:]) > 0


def test_an_epoch_has_every_question_that_fits_once(undisturbed):
    questions = [question for step in asked(undisturbed[0]) for question in step]
    assert len(questions) == 2 * STEPS  # an epoch has 6
    expected = [json.loads(TRAIN_ROWS[i])["question"] for i in (0, 1, 2, 3, 4, 7)]
    assert sorted(questions[:6]) == sorted(expected)
    assert questions[:6] != expected


def test_an_interrupted_run_goes_on_with_the_same_questions_of_the_same_files(
    world, undisturbed, tmp_path
):
    path = tmp_path / "run"
    metrics = path / "metrics.jsonl"
    assert "saved step 2" in world.run(path, Interrupts(metrics, rows=3))
    before = metrics.read_bytes()
    for key, file in (("data.train", world.train), ("data.eval", world.held_out)):
        content = file.read_text()
        file.write_text(content + "\n" + gsm8k_row(9, 9))
        with pytest.raises(UsageError) as caught:
            world.run(path)
        file.write_text(content)
        (line,) = caught.value.problems
        assert line.startswith(f"{key}: {file} is not the file that the run in {path} began with;")
    assert metrics.read_bytes() == before
    assert "going on after step 2" in world.run(path)
    assert asked(path) == asked(undisturbed[0])
    expected = read(undisturbed[0] / "metrics.jsonl")
    assert list(map(deterministic, read(metrics))) == list(map(deterministic, expected))


def test_a_checkpoint_is_evaluated_on_the_file(world, undisturbed, tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    argv = flags("experiments/math.py", **world.settings)
    evaluate([*argv, "--checkpoint", str(undisturbed[0]), "--output", str(output)])
    found = json.loads(output.read_text())
    assert (found["tasks"], found["step"]) == (4, STEPS)
    assert found["sandbox_tier"] is None
    assert found["kinds"]["gsm8k"]["trials"] == 4
    assert "data.eval: fewer than eval.tasks=8: 4" in capsys.readouterr().out


def test_the_cold_start_needs_worked_solutions(world, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "#### 1"}))
    with pytest.raises(UsageError) as caught:
        world.run(tmp_path / "run", **{"data.train": file})
    (line,) = caught.value.problems
    assert line.startswith("sft.steps: expected 0, since no question of data.train has a worked")


# --- Conversations and prompts from files --------------------------------------------------------


def conversation(a):
    function = {"name": "calculator", "arguments": {"expression": f"{a}*7"}}
    return {
        "messages": [
            {"role": "system", "content": "Use the tools."},
            {"role": "user", "content": f"{a} cans of 7 pens. How many pens?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": str(7 * a)},
            {"role": "assistant", "content": f"\\boxed{{{7 * a}}}"},
        ],
        "tools": [{"type": "function", "function": dict(Calculator().schema)}],
    }


def agentrl_row(a, b):
    return {
        "data_source": "somebody/pens",
        "prompt": [{"role": "user", "content": f"{a} cans of {b} pens. How many pens?"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(a * b), "style": "rule"},
    }


CONVERSATIONS = 5
UPDATES = 6  # of 4: nearly five epochs


class Files(World):
    """A file of conversations and two of prompts."""

    def __init__(self, folder):
        self.sft, self.train = folder / "sft.jsonl", folder / "train.json"
        self.held_out = folder / "eval.jsonl"
        rows = [
            *map(conversation, range(2, 2 + CONVERSATIONS)),
            {"messages": []},
            conversation(10**60),
        ]
        self.sft.write_text("\n".join(map(json.dumps, rows)))
        prompts = [agentrl_row(a, 7) for a in (2, 3, 4, 5, 2)]
        self.train.write_text(json.dumps(prompts))
        self.held_out.write_text("\n".join(json.dumps(agentrl_row(a, 9)) for a in (2, 3)))
        self.settings = TINY | {
            "data.train": self.train,
            "data.eval": self.held_out,
            "data.format": "agentrl",
            "sft.data": self.sft,
            "sft.detours": 0.0,
            "sft.steps": UPDATES,
            "sft.cache_dir": folder / "cache",
            "train.steps": 2,
        }

    def components(self, **changes):
        config, _ = parse(flags("experiments/math.py", **self.settings | changes), [])
        return build(config)


class After:
    """Asks the run to end at the n-th time that it looks."""

    def __init__(self, times):
        self.left = times

    def check(self):
        self.left -= 1
        if not self.left:
            raise Interrupted(signal.SIGTERM)


@pytest.fixture(scope="module")
def from_files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def learnt_from_files(from_files, tmp_path_factory):
    """(folder, output) of a run on the files."""
    path = tmp_path_factory.mktemp("learnt") / "run"
    return path, from_files.run(path)


def test_a_run_learns_from_conversations_and_then_from_prompts(from_files, learnt_from_files):
    path, output = learnt_from_files
    told = [
        f"data.train: {from_files.train}: questions: 4, bad rows: 0, "
        "rows that repeat a question: 1",
        f"data.eval: {from_files.held_out}: questions: 2, bad rows: 0",
        "data.eval: fewer than eval.tasks=8: 2",
        f"{from_files.sft}:6: messages: expected at least one, got none",
        f"{from_files.sft}:7: messages: expected at most the 256 tokens of the last of "
        "train.length_buckets, got 350",
        f"sft.data: {from_files.sft}: conversations: {CONVERSATIONS}, bad rows: 2",
        f"sft.data: sft.steps={UPDATES} of sft.batch=4 are 4.80 epochs",
    ]
    assert json.loads((path / "notes.json").read_text()) == told
    assert output.splitlines()[: len(told)] == told
    rows = read(path / "metrics.jsonl")
    assert rows[0]["sft/loss"] > 0
    assert rows[-1]["eval/trials/pens"] == 2
    assert {question for step in asked(path) for question in step} <= {
        f"{a} cans of 7 pens. How many pens?" for a in (2, 3, 4, 5)
    }


def test_a_cold_start_on_a_file_goes_on_in_a_later_epoch_as_if_undisturbed(
    from_files, learnt_from_files, tmp_path
):
    path, cache = tmp_path / "run", tmp_path / "cache"
    output = from_files.run(path, After(3), **{"sft.cache_dir": cache})
    assert "saved update 3 of the cold start" in output
    assert not cache.exists()
    settings = {"sft.cache_dir": cache, "sft.data": from_files.sft}
    from_files.run(path, **settings)
    assert len(list((cache / "cold_start").iterdir())) == 1
    ours, theirs = (read(each / "metrics.jsonl") for each in (path, learnt_from_files[0]))
    assert list(map(deterministic, ours)) == list(map(deterministic, theirs))


def test_each_epoch_has_every_conversation_once_in_an_order_of_the_seed(from_files):
    def epochs(seed):
        of_number = demonstrations(from_files.components(seed=seed))
        names = [of_number(number)[0].tobytes() for number in range(3 * CONVERSATIONS)]
        return [names[i : i + CONVERSATIONS] for i in range(0, len(names), CONVERSATIONS)]

    found = epochs(0)
    assert len({frozenset(epoch) for epoch in found}) == 1
    assert len(set(found[0])) == CONVERSATIONS
    assert len(set(map(tuple, found))) > 1
    assert found == epochs(0)
    assert found != epochs(1)


def test_the_cold_starts_name_is_that_of_the_files_content(from_files, tmp_path):
    content = from_files.sft.read_text()
    moved, changed = tmp_path / "moved.jsonl", tmp_path / "changed.jsonl"
    moved.write_text(content)
    changed.write_text(content + "\n" + json.dumps(conversation(9)))
    known, same, other, without = (
        cache_folder(from_files.components(**changes)).name
        for changes in (
            {},
            {"sft.data": moved, "data.train": "", "data.eval": ""},
            {"sft.data": changed},
            {"sft.data": "", "data.train": "", "data.eval": ""},
        )
    )
    assert known == same
    assert len({known, other, without}) == 3


def test_tools_that_the_suite_does_not_have_are_told(from_files, tmp_path):
    row = conversation(2)
    row["tools"][0]["function"]["name"] = "code_interpreter"
    file = tmp_path / "sft.jsonl"
    file.write_text(json.dumps(row))
    *_, warning = notes(from_files.components(**{"sft.data": file}))
    assert warning == (
        "warning: sft.data: its tools are code_interpreter, those of suite math are calculator"
    )


def test_a_run_without_a_usable_conversation_ends_before_it_begins(from_files, tmp_path):
    file = tmp_path / "sft.jsonl"
    file.write_text("no")
    with pytest.raises(UsageError, match="that can be learnt from, got none"):
        from_files.run(tmp_path / "run", **{"sft.data": file})
    assert not (tmp_path / "run" / "config.json").exists()


# --- A further suite -----------------------------------------------------------------------------


class DoublingSuite(ProblemSuite):
    """All that a suite needs."""

    name = "doubling"
    system_prompt = "Use the tools."

    def __init__(self):
        super().__init__([Calculator()])

    def problem(self, split, index):
        rng = self.rng(split, index)
        while True:
            number = str(rng.integers(10, 10_000))
            if split_of(number) == split:
                break

        def solve():
            return (yield from calculate(f"2*{number}"))

        return Problem("double", number, f"Double {number}.", {"value": 2 * int(number)}, solve)

    def detour(self, problem, call):
        return None

    def verify(self, task, response):
        return Verdict(response == f"\\boxed{{{task.answer['value']}}}", response)


def test_a_tool_that_breaks_under_the_suites_own_solver_is_told_in_a_line(monkeypatch):
    suite = DoublingSuite()
    for error, words in ((ValueError("no\npower"), "ValueError: no power"), (SystemExit(3), "3")):

        def broken(self, state, arguments, error=error):
            raise error

        monkeypatch.setattr(Calculator, "call", broken)
        with pytest.raises(RunFault, match=words) as caught:
            suite.task("train", 0)
        (line,) = caught.value.problems
        assert line.startswith("suite doubling: under its own solver: tool 'calculator' raised ")

    def interrupted(self, state, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Calculator, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite.task("train", 0)


def test_a_tool_that_hangs_under_the_suites_own_solver_is_interrupted_and_told(monkeypatch):
    def sleeps(self, state, arguments):
        threading.Event().wait()

    def spins_and_swallows(self, state, arguments):
        with contextlib.suppress(Exception):
            while True:
                pass
        while True:
            pass

    monkeypatch.setattr(problems, "MAX_CALL_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    for hang in (sleeps, spins_and_swallows):
        monkeypatch.setattr(Calculator, "call", hang)
        with pytest.raises(RunFault) as caught:
            DoublingSuite().task("train", 0)
        assert caught.value.problems == (
            "suite doubling: under its own solver: tool 'calculator': no answer in 0.2 s",
        )
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before


def test_a_suite_is_one_file_one_experiment_and_a_line_of_the_registry(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(tasks.SUITES, "doubling", lambda *_: DoublingSuite())
    experiment = tmp_path / "doubling.py"
    experiment.write_text(
        "from elpo_jax.config import default_config\n\n\n"
        "def get_config(variant=''):\n"
        "    config = default_config()\n"
        "    config.suite.name = 'doubling'\n"
        "    return config\n"
    )
    settings = TINY | {"train.steps": 1, "sft.cache_dir": tmp_path / "cache"}
    train_main([*flags(str(experiment), **settings), "--workdir", str(tmp_path / "run")])
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert [row["eval/tasks"] for row in rows] == [8, 8]
    assert "eval/success/double" in rows[1]
    (questions,) = asked(tmp_path / "run")
    assert all(re.fullmatch(r"Double \d+\.", question) for question in questions)
    assert "double" in capsys.readouterr().out
