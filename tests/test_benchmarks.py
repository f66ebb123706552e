"""The benchmarks' code on tiny shapes: that it runs, measures equal work and says so. No speeds."""

import configparser
import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as entry
from benchmarks import forks, generate, machine, overlap, record, startup, update
from benchmarks.compare import comparison
from benchmarks.compare import main as compare
from benchmarks.record import Row
from benchmarks.shapes import Shape
from benchmarks.timing import interleaved
from elpo_jax.config import PolicyConfig
from elpo_jax.rollout.tree import ROOT
from elpo_jax.sampler.engine import Engine

REPOSITORY = Path(__file__).parent.parent
POLICY = PolicyConfig(d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
TINY = Shape("tiny", POLICY, vocab_size=64, prompt=12, new=20, rows=8, length=32)


def test_contenders_run_in_turn():
    calls = []
    seconds = interleaved([lambda: calls.append("ours"), lambda: calls.append("peer")], 3)
    assert calls == ["ours", "peer"] * 3
    assert [len(times) for times in seconds] == [3, 3]


def test_generation_draws_every_token_of_every_slot():
    sampler = generate.Sampler(TINY, slots=3)
    row = generate.generation(sampler, repetitions=2, with_peer=False)
    assert row.name == "generate, tiny, 3 slots"
    assert len(row.ours) == 2
    assert all(math.isfinite(rate) and rate > 0 for rate in row.ours)
    greedy = sampler(0.0)
    assert greedy.shape == (3, TINY.new)
    np.testing.assert_array_equal(greedy, sampler(0.0))
    assert (sampler(0.9) != greedy).any()


def test_slow_tools_run_side_by_side_or_one_after_the_other():
    beside, together = overlap.overlap(TINY, repetitions=1, seconds=0.05)
    assert (len(beside.ours), len(beside.peer)) == (1, 1)
    assert together.peer[0] >= overlap.ROLLOUTS * 0.05
    assert together.ours[0] >= 0.05


class Peer:
    """Its logits all but tie between tokens 3 and 4, and between no others."""

    def last_logits(self, tokens):
        return np.array([0.0, 1.0, 2.0, 5.0, 5.0001])


def test_greedy_outputs_may_part_at_a_tie_only():
    prompts = np.zeros((2, 4), int)
    ours, tied = np.array([[1, 3, 1], [2, 2, 2]]), np.array([[1, 4, 0], [2, 2, 2]])
    assert "1 of 2" in generate.check_greedy(ours, tied, prompts, Peer())
    with pytest.raises(RuntimeError, match="token 2 in row 1, by 1 "):
        generate.check_greedy(ours, np.array([[1, 3, 1], [2, 2, 1]]), prompts, Peer())


def test_both_kinds_of_update_are_measured():
    rows = update.updates(TINY, repetitions=2, with_peer=False)
    names = ["update, cross-entropy, tiny, 8x32", "update, policy, tiny, 8x32"]
    assert [row.name for row in rows] == names
    assert all(math.isfinite(rate) and rate > 0 for row in rows for rate in row.ours)


def test_a_peer_with_another_loss_or_gradient_is_an_error():
    assert update.check_first((2.0, 10.0), (2.0, 10.001)) == pytest.approx(1e-4)
    for theirs in ((2.01, 10.0), (2.0, 11.0), (math.nan, 10.0)):
        with pytest.raises(RuntimeError, match="peer: expected our loss and gradient norm"):
            update.check_first((2.0, 10.0), theirs)


@pytest.fixture(scope="module")
def searches():
    """The same search on an engine that forks and on one that doesn't."""
    workload = forks.long_prefixes(TINY, trees=2, prompt=20, turns=4, turn=5, answer=3)
    return forks.Search(workload, Engine), forks.Search(workload, forks.RefillingEngine)


def test_without_forks_the_trees_are_the_same_and_every_prefix_is_prefilled(searches):
    trees, _, done = searches[1].grow()
    expected = 0
    for tree in trees:
        starts = {node.ordinal: node for node in reversed(tree.nodes)}
        for leaf in tree.leaves:
            parent = starts[leaf.ordinal].parent
            shared = [] if parent == ROOT else tree.path(parent)
            # The prefix less the token that decode feeds; then each answer of 3 tokens, with the
            # token before it and less the one that decode feeds.
            expected += len(tree.prompt) - 1
            expected += sum(len(tree.nodes[node].step.tokens) for node in shared)
            new = tree.path(leaf.node)[len(shared) :]
            expected += 3 * sum(tree.nodes[node].step.is_open for node in new)
    assert done["prefill_tokens"] == expected
    for tree, forked in zip(trees, searches[0].grow()[0], strict=True):
        assert len(tree.localizations) > 0
        for node, same in zip(tree.nodes, forked.nodes, strict=True):
            np.testing.assert_array_equal(node.step.tokens, same.step.tokens)


def test_searches_are_compared_on_equal_work_only(searches):
    forking, refilling = searches
    row = forks.measured("BEL", forking, refilling, repetitions=1)
    assert row.ratios[0] > 0
    assert "prefilled instead of" in row.note
    with pytest.raises(RuntimeError, match="tokens to be prefilled again, got 0"):
        forks.measured("BEL", forking, forking, repetitions=1)


def test_a_conversation_becomes_a_script():
    is_policy = np.array([False, False, True, True, True, False, True, False, False, True])
    script = forks.as_script(np.arange(10), is_policy)
    assert script.prompt.tolist() == [0, 1]
    assert script.turns == (3, 1, 1)
    assert [answer.tolist() for answer in script.answers] == [[5], [7, 8]]
    assert script.length == 10


SMALL = (
    "--config.policy.d_model=16",
    "--config.policy.mlp_dim=16",
    "--config.policy.num_layers=1",
    "--config.policy.scan_unroll=1",
    "--config.train.length_buckets=256",
    "--config.train.batch_prompts=1",
    "--config.train.mini_batch_prompts=1",
    "--config.rollout.budget=2",
    "--config.episode.max_turn_tokens=4",
    "--config.sampler.lanes=2",
)


def test_startup_reports_its_phases_and_no_late_compilation(capsys):
    startup.main(startup.EXPERIMENT, SMALL)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(printed["phases"]) == ["imports", "building", "warm-up", "first step"]
    assert all(seconds >= 0 for seconds in printed["phases"].values())
    assert printed["late_programs"] == 0
    assert printed["compilations"] >= printed["programs"] > 0


@pytest.mark.slow
def test_startup_is_that_of_a_fresh_process():
    seconds, programs = startup.startup(1, flags=SMALL)
    assert seconds.ours[0] > 0
    assert seconds.peer[0] > 0
    assert programs.ours[0] > 0


RATE = Row("generate", "tokens/s", (100.0, 110.0, 90.0), "transformers", (50.0, 44.0, 45.0), "same")
SECONDS = Row("start-up", "s", (2.0, 4.0), "cached", (1.0, 1.0))


def test_ratios_say_how_many_times_better_ours_is():
    assert RATE.ratios == (2.0, 2.5, 2.0)
    assert SECONDS.ratios == (0.5, 0.25)
    assert replace(RATE, peer=()).ratios == ()


def test_the_table_shows_medians_and_spreads():
    lines = record.table([RATE, SECONDS]).splitlines()
    assert lines[2] == (
        "| generate | tokens/s | 100 (90-110) | transformers | 45 (44-50) | 2 (2-2.5) | same |"
    )
    assert lines[3] == "| start-up | s | 3 (2-4) | cached | 1 (1-1) | 0.375 (0.25-0.5) |  |"


def test_a_run_comes_back_from_the_history_as_it_was(tmp_path):
    history = tmp_path / "history.jsonl"
    described = machine.describe([])
    record.append(history, described, [RATE])
    record.append(history, described, [RATE, SECONDS])
    assert record.load(history) == [(described, [RATE]), (described, [RATE, SECONDS])]
    history.write_text(history.read_text() + '{"machine": {}, "rows": [{"name": "x"}]}\n')
    with pytest.raises(ValueError, match=r"history.jsonl:3: expected a run"):
        record.load(history)


def test_the_history_that_is_kept_can_be_read():
    assert all(rows for _, rows in record.load(record.HISTORY))


def test_a_run_names_its_machine_and_commit():
    described = machine.describe([])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    assert described["commit"].rstrip("+") == (commit or "unknown")
    for key in ("date", "cpu", "cores", "memory", "system", "jax", "devices", "environment"):
        assert described[key], key


def test_a_comparison_shows_what_changed_beyond_the_spread():
    before = {"commit": "a", "cpu": "fast", "load": "1"}, [RATE, SECONDS]
    faster = replace(RATE, ours=(200.0, 220.0, 180.0))
    after = {"commit": "b", "cpu": "fast", "load": "2"}, [faster, replace(RATE, name="fresh")]
    text = comparison(before, after)
    assert "- commit: a → b" in text
    assert "machines differ" not in text
    assert "| generate | tokens/s | 100 | 200 | +100.0% beyond the spread | 2 | 4 |" in text
    assert "| fresh | tokens/s | new | 100 | | | 2 |" in text
    assert "| start-up | | | not measured | | | |" in text
    close = comparison(before, (before[0], [replace(RATE, ours=(105.0, 115.0, 95.0))]))
    assert "| +5.0% |" in close
    other = comparison(before, ({"commit": "a", "cpu": "slow", "load": "1"}, [RATE]))
    assert "machines differ" in other


def test_one_run_cannot_be_compared(tmp_path, capsys):
    history = tmp_path / "history.jsonl"
    record.append(history, {}, [RATE])
    with pytest.raises(SystemExit, match="expected two runs to compare, got 1"):
        compare([str(history)])
    record.append(history, {}, [RATE])
    compare([str(history)])
    assert "+0.0%" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="No such file"):
        compare([str(tmp_path / "missing")])


def test_a_whole_run_is_recorded_and_a_part_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "HISTORY", tmp_path / "history.jsonl")
    monkeypatch.setattr(record, "TABLE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    monkeypatch.setattr(entry, "entries", lambda name, *_: [lambda: [replace(RATE, name=name)]])
    entry.main(["--only", "update"])
    assert not record.HISTORY.exists()
    entry.main([])
    ((described, rows),) = record.load(record.HISTORY)
    assert [row.name for row in rows] == list(entry.NAMES)
    assert described["commit"] == "unknown", "that folder is no repository"
    assert record.TABLE.read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        entry.main(["--repetitions", "0"])
    assert "--repetitions: expected at least 1, got 0" in capsys.readouterr().err


def test_only_the_benchmarks_environment_has_torch():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    assert "torch" in settings["options.extras_require"]["bench"]
    for text in (
        settings["options"]["install_requires"],
        settings["options.extras_require"]["test"],
    ):
        assert "torch" not in text
