"""Pages of the report: nothing in them can be made to run; charts, layout and texts."""

import base64
import hashlib
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import document, make_run, read_page, searched_tree, write_rows, write_trees
from worlds import PROPERTY

from elpo_jax.report import charts, layout, words
from elpo_jax.report.charts import Line, line_chart
from elpo_jax.report.report import write_report

HOSTILE = '</script></pre><img src=x onerror="window.pwned=1">\'"`{{7*7}}\ud800\x00\u202e'


def pages(folder):
    return [folder.report, *sorted(folder.trees.glob("*.html"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


def test_nodes_carry_what_the_tree_knows(finished):
    text = read_page(finished.trees / "step_000001.html").text
    for words_ in (
        "Search A of failed rollout 0, 2 tool calls.",
        "A1: after step 1, 1 of 1 suffixes succeeded: recoverable",
        "A2: after step 2, none of 1 suffixes succeeded",
        "Step 2 is critical.",
        "No budget was left to probe it.",
        "◆ critical A",
        "ELC suffix",
        "branch advantage",
        "trajectory advantage",
        "hierarchical advantage",
        "mean entropy, nats",
        "✗ failed, R \N{MINUS SIGN}1.10, out of tokens",
        "✓ right, R +1.00, answered",
    ):
        assert words_ in text, words_


# Hostile text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every text that a policy, a tool or a data file can write is hostile."""
    folder = make_run(tmp_path_factory.mktemp("hostile") / "<img src=x>")
    tree = document(searched_tree(HOSTILE), decode=lambda ids: HOSTILE)
    tree["task"] |= {"kind": HOSTILE, "question": HOSTILE, "answer": {HOSTILE: HOSTILE}}
    for node in tree["nodes"]:
        for exchange in node["exchanges"]:
            exchange["call"] = {"name": HOSTILE, "arguments": {HOSTILE: [HOSTILE]}}
            exchange["observation"] = {"text": HOSTILE, "error": HOSTILE}
    for leaf in tree["leaves"]:
        leaf |= {"answer": HOSTILE, "end": leaf["end"] if leaf["success"] else HOSTILE}
    write_trees(folder.step_trees(4), [tree])
    write_trees(folder.evaluation_trees(4), [tree])
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows[-1][f"eval/success/{HOSTILE}"] = 0.5
    rows[-1][f"eval/trials/{HOSTILE}"] = 2
    rows[-1][HOSTILE] = 1
    write_rows(folder, rows)
    config = json.loads(folder.config.read_text())
    config["suite"]["name"] = config[HOSTILE] = HOSTILE
    folder.config.write_text(json.dumps(config))
    write_report(folder)
    return folder


def test_of_a_turns_results_a_node_shows_the_first_error(tmp_path):
    folder = make_run(tmp_path / "run")
    tree = document(searched_tree())
    (first,) = tree["nodes"][0]["exchanges"]
    failed = {"text": "error: unknown", "error": "tool_error"}
    tree["nodes"][0]["exchanges"] = [first | {"observation": failed}, first]
    write_trees(folder.step_trees(1), [tree])
    write_report(folder)
    assert "→ error: unkn" in read_page(folder.trees / "step_000001.html").text


def test_hostile_text_stays_text(hostile):
    for path in pages(hostile):
        page = read_page(path)
        assert "img" not in page.tags, path
        assert len(page.scripts) == 1, path
        assert not [name for name, _ in page.attributes if name.startswith("on")], path
        assert "`49" not in page.text, path  # texts aren't templates
    for name in ("index", "step_000004", "eval_000004"):
        page = read_page(hostile.trees / f"{name}.html")
        assert page.text.count("<img src=x onerror=") > 1, name


def test_pages_refer_to_nothing_outside_and_run_one_script(finished, hostile):
    for path in pages(finished) + pages(hostile):
        text, page = path.read_text(encoding="utf-8"), read_page(path)
        for name, value in page.attributes:
            if name in ("href", "src", "xlink:href"):
                assert re.match(r"(\.\./|trees/|#|[a-z]+(_\d+)?\.html)", value), (path, value)
        style = text.partition("<style>")[2].partition("</style>")[0]
        assert "@import" not in style
        assert "url(" not in style
        digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
        assert f"script-src &#39;sha256-{digest}&#39;" in text


# Charts, layout, words


def test_a_charts_geometry_by_hand():
    """Steps 0 to 4 lie on x = 50 to 368, values 0 to 1 on y = 174 to 10."""
    chart = line_chart("x", [Line("a", [(0, 0.0), (4, 1.0)])], steps=(0, 4))
    assert chart.lines[0].path == "M50 174L368 10"
    assert [(tick.at, tick.label) for tick in chart.x_ticks][:2] == [(50, "0"), (129.5, "1")]
    assert [tick.label for tick in chart.y_ticks] == ["0", "0.25", "0.5", "0.75", "1"]
    assert chart.summary == "a: 0 at step 0, 1 at step 4"


def test_charts_of_little():
    assert line_chart("x", [Line("a", [])], steps=(0, 1)) is None
    single = line_chart("x", [Line("a", [(3, 5.0)])], steps=(0, 4))
    assert single.lines[0].dots == ((288.5, 37.3),)  # 5 on an axis from 0 to 6
    zeros = line_chart("x", [Line("a", [(1, 0), (2, 0)]), Line("b", [(1, 1)])], steps=(0, 4))
    assert zeros.note == "Always 0: a."
    assert [line.label for line in zeros.lines] == ["b"]
    both = line_chart("x", [Line("a", [(1, 0)]), Line("b", [(1, 0)])], steps=(0, 4))
    assert [line.label for line in both.lines] == ["a", "b"]


@PROPERTY
@given(
    st.lists(
        st.floats(-1e12, 1e12, allow_subnormal=False) | st.sampled_from([0.0, 1e-13, 5e-14]),
        min_size=1,
        max_size=30,
    )
)
def test_lines_stay_within_their_axes(values):
    chart = line_chart("x", [Line("a", list(enumerate(values)), smooth=True)], steps=(0, 30))
    numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", chart.lines[0].path)]
    xs, ys = numbers[::2], numbers[1::2]
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x in xs)
    assert all(charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1 for y in ys)
    assert 2 <= len(chart.y_ticks) <= 7


def test_running_mean_by_hand():
    points = [(i, float(i % 2)) for i in range(4)]
    means = [value for _, value in charts.running_mean(points)]
    assert means == [0.5, 1 / 3, 2 / 3, 0.5]


@PROPERTY
@given(st.lists(st.integers(-1, 100), max_size=40))
def test_no_two_nodes_overlap(draws):
    parents = [min(parent, node - 1) for node, parent in enumerate(draws)]
    found = layout.lay_out(parents)
    columns = {}
    for node, place in enumerate(found.places):
        above = found.root if parents[node] < 0 else found.places[parents[node]]
        assert place.x >= above.x + above.width + layout.GAP
        assert 0 <= place.x <= found.width - layout.NODE_WIDTH - layout.END_WIDTH
        assert 0 <= place.y <= found.height - layout.NODE_HEIGHT
        columns.setdefault(place.x, []).append(place.y)
    for rows in columns.values():
        rows.sort()
        assert all(b - a >= layout.ROW for a, b in pairwise(rows))


def test_deep_trees_are_laid_out():
    found = layout.lay_out(range(-1, 4999))
    assert found.places[-1].x > found.places[0].x


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (12.345678, "12.35"),
        (0.5, "0.5"),
        (-0.25, "\N{MINUS SIGN}0.25"),
        (1.55e-13, "1.55e-13"),
        (5e-14, "5e-14"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_as_text(value, text):
    assert words.number(value) == text


def test_other_words():
    assert words.signed(-0.001) == "+0.00"
    assert words.clip("x" * 30, 10) == "xxxxx\n[20 characters cut]\nxxxxx"
    assert words.short("a\n  b" * 9, 6) == "a ba …"
    assert words.answer({"type": "number", "value": 2.0097205e23, "unit": "g", "rtol": 0.01}) == (
        "2.0097e+23 g"
    )
    assert words.answer({"accepted": ["Rn", "Radon"]}) == "Rn or Radon"
    printed = {"stdin": [{"input": "a\n", "output": "b"}], "calls": [], "function": ""}
    assert words.answer(printed) == "1 test: 'a\\n' → 'b'"
    called = {"calls": [{"arguments": [n, "x"], "named": {}, "results": [1, 2]} for n in range(4)]}
    assert words.answer(called).startswith("4 tests: 0, 'x' → 1 or 2; 1, 'x' → 1 or 2; 2,")
    assert words.answer(called).endswith("; …")
    assert words.answer({"tests": [{"other": 1}]}) == "1 test: {'other': 1}"
    assert words.last_line("File 1\n  ^\nSyntaxError: no\n\n") == "SyntaxError: no"
    assert words.last_line(" \n") == ""
