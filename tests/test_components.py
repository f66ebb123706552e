"""Settings that don't fit the suite or their files are refused before anything compiles."""

import re
from pathlib import Path

import pytest

from elpo_jax.cli import load_experiment
from elpo_jax.cold_start import demonstrations
from elpo_jax.components import build
from elpo_jax.config import from_dict
from elpo_jax.errors import UsageError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def built(experiment="sci.py", **sections):
    tree = load_experiment(str(EXPERIMENTS / experiment)).to_dict()
    for section, values in sections.items():
        tree[section] |= values
    return build(from_dict(tree))


def problem(function, *arguments, **keywords):
    with pytest.raises(UsageError) as caught:
        function(*arguments, **keywords)
    (line,) = caught.value.problems
    return line


def test_an_episode_that_is_shorter_than_a_prompt():
    line = problem(built, episode={"max_length": 60})
    assert line.startswith("episode.max_length: expected more than ")
    assert line.endswith(", got 60")


def test_an_episode_that_is_shorter_than_a_demonstration():
    """The message names the longest of those looked at, so that one change is enough."""
    components = built(episode={"max_length": 200})
    line = problem(demonstrations, components)
    found = re.fullmatch(
        r"episode\.max_length: expected at least (\d+), the tokens of the longest of the first 512 "
        r"demonstrations, (\S+), got 200, which (\d+) don't fit",
        line,
    )
    assert int(found[3]) > 1
    needed = int(found[1])
    demonstrations(built(episode={"max_length": needed}, train={"length_buckets": (needed,)}))
    buckets = {"length_buckets": (needed - 1,)}
    components = built(episode={"max_length": needed - 1}, train=buckets)
    assert f", {found[2]}, got {needed - 1}" in problem(demonstrations, components)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"# elpo", "expected a readable SentencePiece model"), (b"", "expected")],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content, words):
    file = tmp_path / "README.md"
    file.write_bytes(content)
    line = problem(built, policy={"tokenizer": str(file)})
    assert line.startswith(f"policy.tokenizer: {file}: {words}")


@pytest.mark.parametrize("experiment", ["sci.py", "sci.py:long", "math.py"])
def test_the_experiments_leave_room_for_their_solvers(experiment):
    components = built(experiment)
    assert components.notes == []
    demonstrations(components)


def test_calls_that_the_caps_forbid_are_told():
    (note,) = built(suite={"length": "long"}, episode={"max_length": 384}).notes
    assert note.startswith("warning: ")
    assert "held-out tasks take the suite's solver more calls than episode.max_calls=6" in note
