"""Formats of questions: the project's own, those of benchmarks, and finding out which it is."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.config import DataConfig
from elpo_jax.tasks.base import HELD_OUT
from elpo_jax.tasks.code_tests import CallTest, StdinTest, unpack
from elpo_jax.tasks.files import read_files, read_questions
from elpo_jax.tasks.formats import FORMATS
from elpo_jax.tasks.question import Question

# Rows in the manner of each format, made up here.
MATH500 = {
    "problem": "Half of $x$ is $3$.",
    "solution": "It is $\\boxed{6}$.",
    "answer": "\\frac{12}{2}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "x/1.json",
}
AIME24 = {"ID": "2024-I-0", "Problem": "Which?", "Solution": "So.", "Answer": 25}
AIME25 = {"question": "Which one?", "answer": "070"}
GPQA = {
    "Question": "What is heavy? ",
    "Correct Answer": "lead\n",
    "Incorrect Answer 1": "air",
    "Incorrect Answer 2": "wood",
    "Incorrect Answer 3": "ice",
    "High-level domain": "Physics",
    "Subdomain": "Mechanics",
}
GPQA_LETTER = {
    "problem": "What is light?\nA. lead\nB. air",
    "solution": "\\boxed{B}",
    "domain": "Physics",
}
LCB = {
    "question_title": "Sum",
    "question_content": "Print the sum.",
    "starter_code": "",
    "difficulty": "easy",
    "contest_date": "2025-01-04T00:00:00",
    "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "4 5", "output": "9", "testtype": "stdin"}]),
    "metadata": "{}",
}
LCB_CALL = LCB | {
    "question_content": "Give the sum.",
    "starter_code": "class Solution:\n    def add(self, a, b):\n",
    "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    "private_test_cases": "[]",
    "metadata": json.dumps({"func_name": "add"}),
}
GSM8K = {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
AGENTRL = {
    "data_source": "x",
    "prompt": [{"role": "user", "content": "How many?"}],
    "reward_model": {"ground_truth": "34", "style": "rule"},
}
OWN = {"question": "How heavy?", "answer": "9.5 g/mol", "verifier": "number", "tolerance": 0.05}


def read(*rows, form="auto"):
    """Questions, and 'LINE: PROBLEM' of bad rows."""
    found, _ = read_questions("\n".join(map(json.dumps, rows)).encode(), "x.jsonl", form)
    return [question for _, question in found.good], [f"{n}: {line}" for n, line in found.bad]


def one(row, form="auto"):
    (question,), bad = read(row, form=form)
    assert not bad
    return question


def bad_line(row, form="auto"):
    good, (line,) = read(row, form=form)
    assert not good
    assert line.isprintable()
    assert len(line) < 200
    return line


def test_math500():
    expected = Question("Prealgebra", MATH500["problem"], "\\frac{12}{2}")
    assert one(MATH500, "math500") == one(MATH500) == expected
    assert bad_line(MATH500 | {"answer": " "}).startswith("1: answer: expected 1 to 1000 characte")


def test_aime_of_both_years():
    assert one(AIME24, "aime") == one(AIME24) == Question("aime", "Which?", "25")
    assert one(AIME25, "aime") == one(AIME25) == Question("aime", "Which one?", "70")
    assert one({"problem": "P?", "answer": 7}) == Question("aime", "P?", "7")
    assert bad_line({"x": 1}, "aime").startswith("1: Answer: expected this field, got 'x'")


def test_gpqa_with_a_letter():
    expected = Question("Physics", GPQA_LETTER["problem"], "B", verifier="letter")
    for solution in ("\\boxed{B}", "B", " (B) ", "It floats. The answer is B."):
        assert one(GPQA_LETTER | {"solution": solution}) == expected
    line = bad_line(GPQA_LETTER | {"solution": "A or B"})
    assert line == "1: solution: expected the letter of an option, got 'A or B'"


def test_gpqas_options_are_shuffled_the_same_each_time():
    question = one(GPQA, "gpqa")
    assert question == one(GPQA)
    assert (question.kind, question.verifier) == ("Physics", "letter")
    head, *options = question.text.split("\n")[:1] + question.text.split("\n")[2:]
    assert head == "What is heavy?"
    assert sorted(option[3:] for option in options) == ["air", "ice", "lead", "wood"]
    assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
    assert f"{question.answer}. lead" in options
    letters = Counter(one(GPQA | {"Question": f"Heavy {n}?"}).answer for n in range(200))
    assert min(letters[letter] for letter in "ABCD") > 30
    line = bad_line(GPQA | {"Incorrect Answer 2": "lead"})
    assert line == "1: Incorrect Answer: expected options that differ from each other"
    assert bad_line(GPQA | {"Incorrect Answer 3": None}).startswith("1: Incorrect Answer 3: exp")


def test_livecodebench():
    question = one(LCB, "livecodebench")
    assert question == one(LCB)
    assert (question.kind, question.text) == ("easy", "Print the sum.")
    assert unpack(question.tests).stdin == (StdinTest("1 2", "3"), StdinTest("4 5", "9"))
    question = one(LCB_CALL)
    assert question.text == (
        "Give the sum.\n\n```python\nclass Solution:\n    def add(self, a, b):\n```"
    )
    assert question.function == "add"
    assert unpack(question.tests).calls == (CallTest([1, 2], {}, [3]),)
    assert bad_line(LCB | {"metadata": "{"}) == "1: metadata: expected JSON, got '{'"
    assert bad_line(LCB_CALL | {"metadata": "{}"}).startswith("1: metadata.func_name: expected th")


def test_the_projects_own_format():
    expected = Question("number", "How heavy?", "9.5 g/mol", verifier="number", tolerance=0.05)
    assert one(OWN, "questions") == one(OWN) == expected
    question = one({"question": "?", "answer": "$\\pi$", "verifier": "math", "kind": "my kind"})
    assert question == Question("my_kind", "?", "$\\pi$")
    assert one({"question": "?", "answer": "(B)", "verifier": "letter"}).answer == "B"
    tests = {"inputs": [[1]], "outputs": [2], "fn_name": "f"}
    question = one({"question": "?", "answer": tests, "verifier": "code"})
    assert unpack(question.tests).calls == (CallTest([1], {}, [2]),)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"verifier": "maths"},
            "verifier: expected one of math, number, letter, code, got 'maths'",
        ),
        ({"verifier": ["math"]}, "verifier: expected one of math, number, letter, code, got list"),
        ({"answer": "heavy"}, "answer: expected a number, perhaps with a unit, got 'heavy'"),
        *(
            ({"answer": gold}, "answer: expected a number, perhaps with a unit, got ")
            for gold in ("3/4", "10^5", "2\\pi", "2\\sqrt{3}", "3 or 4", "1:3", "1/2 mol", "2x")
        ),
        ({"answer": "1e999"}, "answer: expected a number, perhaps with a unit, got '1e999'"),
        ({"tolerance": 1}, "tolerance: expected a number from 0 and below 1, got '1'"),
        ({"tolerance": "x"}, "tolerance: expected a number from 0 and below 1, got 'x'"),
        ({"tolerance": True}, "tolerance: expected a number from 0 and below 1, got 'True'"),
        ({"verifier": "math"}, "tolerance: expected none beside verifier 'math'"),
        ({"verifier": "letter", "tolerance": None}, "answer: expected a letter, got '9.5 g/mol'"),
        ({"verifier": "code", "tolerance": None}, "answer: expected an object of tests, got '9.5"),
        ({"question": ""}, "question: expected a text, got ''"),
    ],
)
def test_own_rows_that_cannot_be_used(changes, problem):
    assert bad_line(OWN | changes).startswith(f"1: {problem}")


def test_a_file_may_mix_formats():
    rows = [MATH500, AIME24, AIME25, GPQA, GPQA_LETTER, LCB, LCB_CALL, GSM8K, AGENTRL, OWN]
    questions, bad = read(*rows, {"prompt": "x"}, [])
    assert [question.verifier for question in questions] == [
        "math", "math", "math", "letter", "letter", "code", "code", "math", "math", "number"
    ]  # fmt: skip
    assert bad == [
        "11: expected the columns of questions, agentrl, livecodebench, gsm8k, gpqa, math500, "
        "aime, got 'prompt'",
        "12: expected an object, got list",
    ]


def test_the_same_from_parquet(tmp_path):
    for name, rows in (("lcb", [LCB, LCB_CALL]), ("gpqa", [GPQA]), ("math500", [MATH500])):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        found = read_files(DataConfig(eval=str(path), format="auto")).questions[HELD_OUT]
        assert list(found) == [one(row) for row in rows]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("row", [AIME24, GPQA, LCB_CALL, OWN], ids=lambda row: next(iter(row)))
@PROPERTY
@given(data=st.data())
def test_any_row_is_a_question_or_named(row, data):
    form = next(name for name, form in FORMATS.items() if form.fits(row))
    changes = data.draw(st.dictionaries(st.sampled_from(list(row)), VALUES, max_size=3))
    questions, bad = read(row | changes, form=form)
    assert len(questions) + len(bad) == 1
    assert all(line.isprintable() and len(line) < 250 for line in bad)
