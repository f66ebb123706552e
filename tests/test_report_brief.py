"""The report's opening lines, what episodes do otherwise than before, and their tools."""

from dataclasses import replace

import pytest
from runs import document, evaluation_row, make_run, read_page
from worlds import answer_step, call_step, empty_tree, rollout

from elpo_jax.report.brief import _ending
from elpo_jax.report.documents import episodes
from elpo_jax.report.habits import habits, tools
from elpo_jax.report.report import write_report
from elpo_jax.rollout.tree import ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


def test_habits_and_tools_before_and_now():
    def of(calls, error, count=40):
        found = []
        for number in range(count):
            tree = empty_tree()
            tree.task = replace(tree.task, id=f"held_out/{number}")
            steps = [call_step(error=error if number == 0 else None) for _ in range(calls)]
            tree.add(rollout(0, ROOT, [*steps, answer_step()], True))
            found += episodes(number, document(tree, credit=False))
        return found

    before, now = of(3, "tool_error"), of(2, None)
    assert now[0].solver_calls == 2
    first, *others = habits(before, now)
    assert (first.pair.group, first.counts) == ("made more calls than the solver", True)
    assert (first.pair.before, first.pair.after) == ((40, 40), (0, 40))
    assert [each.pair.group for each in others if each.counts] == []
    assert "saw a tool error" in [each.pair.group for each in others]  # 1 of 40 before, 0 now
    assert tools(before, now) == [("lookup", (120, 3, 40), (80, 0, 40), ())]
    assert tools([], before) == [("lookup", None, (120, 3, 40), (("tool error", 3),))]
    assert habits([], now) == []


def test_the_report_opens_with_why_and_what_is_wrong(finished, tmp_path):
    text = read_page(finished.report).text
    assert "Because more" in text  # of both alike
    assert "more answers are right, 40.0% before and 80.0% now (+30.0 points)" in text
    assert "more episodes end with an answer, 50.0% before and 100.0% now (+30.0 points)" in text
    assert "50.0% ended as “out of tokens” before, 0.0% now." in text
    assert "2 of 4 held-out episodes fail, most often: “no readable answer” (2 of 2)." in text
    assert (
        "2 of the 2 failures repeated a call word for word; 2 of the 2 solved episodes did too: it "
        "needn't be why." in text
    )
    same = write_report(make_run(tmp_path / "same", before=10, after=10))
    assert "ecause" not in read_page(same).text
    worse = write_report(make_run(tmp_path / "worse", before=16, after=2))
    assert "Mostly because fewer answers are right" in read_page(worse).text


def test_a_cap_is_told_where_it_goes_with_the_change_beyond_chance():
    def row(successes, calls, length):
        ends = {"eval/end_calls": calls / 60, "eval/end_length": length / 60}
        return evaluation_row(successes, 60) | ends

    assert (
        _ending(row(20, 30, 2), row(40, 3, 6)) == "50.0% ended as “out of calls” before, 5.0% now."
    )
    assert _ending(row(20, 2, 2), row(40, 6, 2)) == ""  # worse, and chance
    assert _ending(row(20, 2, 2), row(40, 40, 2)) == ""  # worse, although success is better
    assert _ending(row(20, 6, 2), row(40, 2, 2)) == ""  # chance
    assert (
        _ending(row(40, 2, 2), row(20, 40, 2)) == "3.3% ended as “out of calls” before, 66.7% now."
    )


def test_searches_without_budget_are_told_apart(finished):
    assert (
        "Of 8 such searches in all saved trees, 4 had budget for a probe and 4 were resolved."
        in read_page(finished.report).text
    )
