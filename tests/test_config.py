"""Config, its validation and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elpo_jax import cli, config, validation
from elpo_jax.config import Config
from elpo_jax.errors import UsageError, suggestion

EXPERIMENT = """
from elpo_jax.config import default_config
from elpo_jax.errors import unknown_name

def get_config(variant=""):
    config = default_config()
    config.seed = 7
    config.train.length_buckets = [128, 512]
    if variant == "unknown_key":
        config.optimizer.learning_rte = 1.0
    elif variant == "unknown_section":
        config.optimzer.learning_rate = 1.0
    elif variant == "types":
        config.seed = True
        config.loss.eps_low = "0.2"
        config.optimizer = {"momentum": 0.9}
    elif variant == "crash":
        1 / 0
    elif variant == "list":
        return [config]
    elif variant:
        raise ValueError(unknown_name("variant", variant, ["crash", "types"]))
    return config
"""
OPTIONS = [cli.Option("workdir", "the run's folder"), cli.Option("note", "a note", "none")]
KNOWN = {"algorithm": ("elpo", "grpo")}


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "exp.py"
    path.write_text(EXPERIMENT)
    return str(path)


def parse(*arguments):
    return cli.parse(["prog", *arguments], OPTIONS, KNOWN)


def problems_of(call, *arguments):
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    return list(caught.value.problems)


def test_json_round_trip_keeps_every_value():
    changed = config.from_dict(
        {"seed": 3, "loss": {"eps_low": 0.1}, "train": {"length_buckets": [8, 500]}}
    )
    text = json.dumps(config.to_dict(changed))
    assert config.from_dict(json.loads(text)) == changed
    assert config.to_dict(changed) == json.loads(text)
    assert changed.train.length_buckets == (8, 500)


def test_missing_keys_keep_the_defaults_of_their_place():
    """The cold start's optimiser has defaults of its own."""
    partial = config.from_dict({"sft": {"optimizer": {"learning_rate": 1}}})
    assert partial.sft.optimizer.b2 == 0.95
    assert partial.optimizer.b2 == 0.999
    assert partial.sft.optimizer.learning_rate == 1.0
    assert type(partial.sft.optimizer.learning_rate) is float


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"seed": True}, "seed: expected an integer, got True"),
        ({"seed": 1.0}, "seed: expected an integer, got 1.0"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"rollout": {"beta": True}}, "rollout.beta: expected a finite number, got True"),
        ({"rollout": {"beta": float("nan")}}, "rollout.beta: expected a finite number, got nan"),
        (
            {"rollout": {"widen_unprobed": 1}},
            "rollout.widen_unprobed: expected true or false, got 1",
        ),
        ({"loss": {"eps_low": "x"}}, "loss.eps_low: expected a finite number or none, got 'x'"),
        ({"suite": {"name": 3}}, "suite.name: expected a string, got 3"),
        (
            {"train": {"length_buckets": [1, 2.5]}},
            "train.length_buckets: expected a list, each an integer, got [1, 2.5]",
        ),
        ({"train": 3}, "train: expected a section, got 3"),
        ({"trian": {}}, "trian: no such key; did you mean train?"),
        (
            {"optimizer": {"learning_rte": 1.0}},
            "optimizer.learning_rte: no such key; did you mean optimizer.learning_rate?",
        ),
        ({"lr": 3e-4}, "lr: no such key; did you mean optimizer.learning_rate?"),
        (
            {"optimizer": {"wd": 0}},
            "optimizer.wd: no such key; did you mean optimizer.weight_decay?",
        ),
        (
            {"sft": {"optimizer": {"lr": 0}}},
            "sft.optimizer.lr: no such key; did you mean sft.optimizer.learning_rate?",
        ),
        ({"eval": {"tp": 1}}, "eval.tp: no such key; did you mean eval.top_p?"),
        ({"zzzz": 1}, "zzzz: no such key; the nearest is optimizer.b2"),
    ],
)
def test_wrong_types_and_keys_are_named(tree, problem):
    assert problems_of(config.from_dict, tree) == [problem]


def test_all_wrong_types_are_reported_together():
    lines = problems_of(config.from_dict, {"seed": "a", "sampler": {"lanes": 1.5, "lines": 1}})
    assert [line.split(":")[0] for line in lines] == ["seed", "sampler.lines", "sampler.lanes"]


def test_default_config_is_the_dataclasses_and_locked():
    tree = config.default_config()
    assert config.from_dict(tree) == Config()
    with pytest.raises(AttributeError, match="learning_rte"):
        tree.optimizer.learning_rte = 1.0


def test_digest_and_differences():
    other = config.from_dict({"seed": 1, "loss": {"eps_elc": 0.1}})
    assert config.differences(Config(), other) == {"seed": (0, 1), "loss.eps_elc": (None, 0.1)}
    assert config.differences(other, other) == {}
    assert config.digest(Config()) != config.digest(other)
    assert len(config.digest(other)) == 16


def test_defaults_are_valid():
    validation.validate(Config(), {"suite.name": ["science"], **KNOWN})


def test_every_number_has_a_range_and_every_rule_a_key():
    """A new field can't be forgotten, nor a rule outlive its field."""
    free = {"algorithm", "suite.name", "sft.cache_dir"}
    plain = {
        key
        for key, kind in config.field_types().items()
        if kind not in (bool, bool | None) and key not in free
    }
    assert set(validation.RANGES) | set(validation.NAMES) == plain


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("seed", -1, "seed: expected an integer from 0 to 2**32 - 1, got -1"),
        ("algorithm", "gprq", "algorithm: expected one of 'elpo', 'grpo', got 'gprq'"),
        ("reward.terms", ("zero_one", "one"), "reward.terms: expected one of"),
        (
            "reward",
            {"terms": ("plus_minus_one", "overlong"), "overlong_buffer": 4096},
            "reward.overlong_buffer: expected at most episode.max_length=384 where",
        ),
        ("reward.terms", (), "reward.terms: expected at least one, got ()"),
        ("episode.calls_in_turn", "last", "episode.calls_in_turn: expected one of 'all', 'first'"),
        (
            "data.train",
            "/nowhere.jsonl",
            "data.train: expected a file, or empty, got '/nowhere.jsonl'",
        ),
        (
            "data.format",
            "gsm",
            "data.format: expected one of 'agentrl', 'aime', 'auto', 'gpqa', 'gsm8k', "
            "'livecodebench', 'math500', 'questions', got 'gsm'",
        ),
        ("rollout.search", "confrm", "did you mean confirm?"),
        ("policy.head_dim", 33, "policy.head_dim: expected an even number, 2 or more, got 33"),
        ("policy.num_heads", 3, "policy.num_heads: expected a multiple of policy.num_kv_heads=2"),
        ("policy.tokenizer", "/nowhere.model", "policy.tokenizer: expected a file, embedded:"),
        ("sampler.top_p", 0.0, "sampler.top_p: expected a number above 0 and up to 1, got 0.0"),
        ("sampler.temperature", 0.0, "sampler.temperature: expected more than 0, got 0.0"),
        ("sampler.prefill_chunks", (64, 16), "sampler.prefill_chunks: expected lengths"),
        ("sampler.prefill_chunks", (), "sampler.prefill_chunks: expected lengths"),
        ("rollout.budget", 0, "rollout.budget: expected 1 or more, got 0"),
        (
            "rollout.min_suffixes",
            4,
            "rollout.min_suffixes: expected at most rollout.max_suffixes=3",
        ),
        ("train.batch_prompts", 100, "expected a multiple of train.mini_batch_prompts=16, got 100"),
        (
            "train.length_buckets",
            (128, 256),
            "expected a last length of at least episode.max_length",
        ),
        ("episode.max_turn_tokens", 999, "expected at most episode.max_length=384, got 999"),
        (
            "sandbox.tests_seconds",
            61.0,
            "expected at most half of episode.verify_seconds=120.0, got",
        ),
        ("episode.max_observation_chars", 1, "expected 2 or more, got 1"),
        ("sampler.fork_rows", 512, "sampler.fork_rows: expected at most sampler.rows="),
        ("credit.lambda_tree", 1.5, "credit.lambda_tree: expected a number from 0 to 1, got 1.5"),
        ("optimizer.b1", 1.0, "optimizer.b1: expected a number from 0 and below 1, got 1.0"),
        ("sft.optimizer.clip_norm", 0.0, "sft.optimizer.clip_norm: expected more than 0, got 0.0"),
    ],
)
def test_wrong_values_are_named(key, value, problem):
    tree = config.to_dict(Config())
    cli._set(tree, key, value)
    (line,) = problems_of(validation.validate, config.from_dict(tree), KNOWN)
    assert problem in line
    assert line.startswith(key)


def test_wrong_types_and_wrong_values_are_reported_together():
    tree = {"seed": 1.5, "sede": 1, "algorithm": "grop", "sampler": {"rows": "x", "fork_rows": 512}}
    got, problems = config.read(tree)
    lines = problems_of(validation.validate, got, KNOWN, problems)
    keys = [line.split(":")[0] for line in lines]
    assert keys == ["sede", "seed", "algorithm", "sampler.rows"], "no word on rows and fork_rows"


def test_a_warm_up_must_end_before_the_schedule():
    tree = {"sft": {"steps": 10, "optimizer": {"warmup_steps": 10}}}
    (line,) = problems_of(validation.validate, config.from_dict(tree))
    assert line == "sft.optimizer.warmup_steps: expected fewer than the 10 updates, got 10"


def test_what_a_cold_start_on_a_file_does_not_read_is_refused(tmp_path):
    file = tmp_path / "sft.jsonl"
    file.touch()

    def problems(**sft):
        tree = {"sft": {"data": str(file)} | sft}
        return problems_of(validation.validate, config.from_dict(tree))

    validation.validate(config.from_dict({"sft": {"data": str(file), "steps": 1}}))
    assert problems(steps=1, detours=0.3) == ["sft.detours: expected 0 beside sft.data, got 0.3"]
    assert problems() == [f"sft.data: expected empty with sft.steps=0, got {str(file)!r}"]
    assert problems(data="nowhere") == ["sft.data: expected a file, or empty, got 'nowhere'"]


def test_all_wrong_values_are_reported_in_the_order_of_the_config():
    tree = {"train": {"steps": -1}, "policy": {"num_heads": 0}, "seed": -1, "eval": {"tasks": 0}}
    lines = problems_of(validation.validate, config.from_dict(tree))
    keys = [line.split(":")[0] for line in lines]
    assert keys == ["seed", "policy.num_heads", "train.steps", "eval.tasks"]


def test_the_command_line_overrides_the_experiment(experiment):
    got, options = parse(
        "--config", experiment, "--workdir=runs/x", "--config.loss.eps_low=0.1",
        "--config.loss.eps_high", "None", "--config.train.length_buckets=(64, 400)",
        "--config.rollout.widen_unprobed", "--config.optimizer.learning_rate=1",
        "--config.algorithm=grpo",
    )  # fmt: skip
    assert options == {"workdir": "runs/x", "note": "none"}
    assert got == config.from_dict(
        {
            "seed": 7,
            "algorithm": "grpo",
            "loss": {"eps_low": 0.1},
            "rollout": {"widen_unprobed": True},
            "optimizer": {"learning_rate": 1.0},
            "train": {"length_buckets": (64, 400)},
        }
    )
    assert not parse("--config", experiment, "--workdir=x", "--noconfig.rollout.widen_unprobed")[
        0
    ].rollout.widen_unprobed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config.seed=abc"], "seed: expected an integer, got 'abc'"),
        (["--config.loss.eps_low=many"], "loss.eps_low: expected a finite number or none"),
        (["--config.rollout.beta=inf"], "rollout.beta: expected a finite number, got inf"),
        (["--config.rollout.widen_unprobed=maybe"], "expected true or false, got 'maybe'"),
        (["--config.train.length_buckets=(1,x)"], "expected a list, each an integer"),
        (["--config.rollout.budget=0"], "rollout.budget: expected 1 or more, got 0"),
        (["--config.algorithm=epo"], "algorithm: expected one of 'elpo', 'grpo', got 'epo'"),
        (
            ["--config.optimizer.learning_rte=1"],
            "optimizer.learning_rte: no such key; did you mean optimizer.learning_rate?",
        ),
        (["--config.checkpoint=5"], "checkpoint: is a section; set one of checkpoint.every"),
        (["--wrkdir=y"], "--wrkdir: no such flag; did you mean --workdir?"),
        (["stray"], "stray: expected a flag, got a plain argument"),
        (["--config.seed"], "Missing value for flag --config.seed"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(experiment, arguments, problem):
    (line,) = problems_of(parse, "--config", experiment, "--workdir", "x", *arguments)
    assert problem in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("unknown_key", ["exp.py:10: learning_rte: no such key; did you mean optimizer.learning"]),
        ("unknown_section", ["exp.py:12: optimzer: no such key; did you mean optimizer?"]),
        ("crash", ["exp.py:18: ZeroDivisionError: division by zero"]),
        ("list", ["get_config: expected a ConfigDict, got list"]),
        ("typs", ["variant: expected one of 'crash', 'types', got 'typs'; did you mean types?"]),
        ("types", ["seed: expected an integer, got True", "loss.eps_low:", "optimizer.momentum:"]),
    ],
)
def test_mistakes_in_the_experiment_file_are_named(experiment, variant, expected):
    lines = problems_of(parse, "--config", f"{experiment}:{variant}", "--workdir", "x")
    assert len(lines) == len(expected)
    for part in expected:
        assert any(part in line and "\n" not in line for line in lines)


def test_missing_flags_and_files(experiment):
    lines = problems_of(parse)
    assert [line.split(":")[0] for line in lines] == ["--config", "--workdir"]
    folder = Path(experiment).parent
    (line,) = problems_of(parse, "--config", str(folder / "exq.py"), "--workdir", "x")
    assert line == f"--config: no such file: {folder}/exq.py; did you mean {experiment}?"
    Path(experiment).write_text("def get_config(:\n")
    (line,) = problems_of(parse, "--config", experiment, "--workdir", "x")
    assert line.startswith(f"{experiment}:1: SyntaxError")
    Path(experiment).write_text("get = 1\n")
    (line,) = problems_of(parse, "--config", experiment, "--workdir", "x")
    assert line == f"{experiment}: expected a function get_config(variant), found none"


def test_help_lists_flags_and_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--workdir  the run's folder" in shown
    assert "--config.sft.optimizer.b2=0.95" in shown


def test_a_process_ends_with_one_line_and_status_2(experiment):
    main = (
        "from elpo_jax import cli\n"
        "cli.run(lambda argv: print(cli.parse(argv, [cli.Option('workdir', 'x')])[0].seed))\n"
    )

    def call(*arguments):
        command = [sys.executable, "-W", "error", "-c", main, "--workdir=x", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bad = call("--config", experiment, "--config.seed=abc")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: seed: expected an integer, got 'abc'\n"
    good = call("--config", experiment, "--config.seed", "5")
    assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")


def test_suggestions():
    known = ["optimizer.learning_rate", "sft.optimizer.learning_rate", "seed"]
    assert suggestion("sed", known) == "; did you mean seed?"
    assert suggestion("learn_rate", known) == "; did you mean optimizer.learning_rate?"
    assert suggestion("qqqq", known) == ""


KEYS = (
    st.sampled_from([part for key in config.field_types() for part in key.split(".")]) | st.text()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_gives_a_config_or_clear_lines(tree):
    problems = []
    try:
        got = config.from_dict(tree)
        validation.validate(got)
    except UsageError as error:
        problems = error.problems
    else:
        assert config.from_dict(config.to_dict(got)) == got
    assert not [line for line in problems if "\n" in line]
