"""Questions in the format of Open-AgentRL-30K and DAPO-Math-17k."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.config import DataConfig, SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks import make_suite
from elpo_jax.tasks.base import TRAIN
from elpo_jax.tasks.code_tests import ProgramTests, StdinTest, unpack
from elpo_jax.tasks.files import read_files, read_questions
from elpo_jax.tasks.question import Question

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def user(text):
    return {"role": "user", "content": text}


def row(question="How many?", answer="34", **changes):
    return {
        "data_source": "math_dapo",
        "prompt": [user(question)],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": "0"},
    } | changes


def read(*rows):
    content = "\n".join(map(json.dumps, rows)).encode()
    found, copies = read_questions(content, "x.jsonl", "agentrl")
    questions = [question for _, question in found.good]
    return questions, [f"{number}: {problem}" for number, problem in found.bad], copies


def test_a_row_is_a_question():
    assert read(row()) == ([Question("math_dapo", "How many?", "34")], [], 0)


def test_the_same_from_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row(), row("Else?", ""), row()]), path)
    files = read_files(DataConfig(train=str(path), format="agentrl"))
    assert files.questions[TRAIN] == (Question("math_dapo", "How many?", "34"),)
    assert files.notes[:2] == (
        f"{path}: row 2: reward_model.ground_truth: expected 1 to 1000 characters, got 0: ''",
        f"data.train: {path}: questions: 1, bad rows: 1, rows that repeat a question: 1",
    )


def test_messages_of_the_system_come_first_and_several_of_the_user_follow_each_other():
    system = {"role": "system", "content": "Think."}
    ((question,), _, _) = read(row(prompt=[system, user("One."), user("Two?")]))
    assert question.text == "Think.\n\nOne.\n\nTwo?"


def test_words_that_ask_for_another_form_of_the_answer_are_left_out_and_counted(tmp_path):
    (cut, plain), _, _ = read(row(BEFORE + "How many?" + AFTER), row("Which answer is it?"))
    assert cut.text == "Solve the following math problem step by step.\n\nHow many?"
    assert plain.text == "Which answer is it?"
    assert (cut.is_cut, plain.is_cut) == (True, False)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row(BEFORE + "How many?" + AFTER)))
    note, *_ = read_files(DataConfig(train=str(path), format="agentrl")).notes
    assert note == (
        f"data.train: {path}: questions: 1, bad rows: 0, "
        "without their words on the form of the answer: 1"
    )


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("34", "34"),
        (" -3 ", "-3"),
        ("$1,234.50$", "1234.50"),
        (34, "34"),
        (2.5, "2.5"),
        ("025", "25"),
        ("50\\%", "50\\%"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed{x+1}", "x+1"),
        ("{1, 2}", "{1, 2}"),
    ],
)
def test_ground_truths_of_mathematics(truth, answer):
    ((question,), bad, _) = read(row(answer=truth))
    assert (question.answer, question.verifier, bad) == (answer, "math", [])


@pytest.mark.parametrize("truth", ["B", "(B)", "\\boxed{B}", "$\\text{B}$"])
def test_a_ground_truth_that_is_one_letter(truth):
    ((question,), _, _) = read(row(answer=truth))
    assert (question.answer, question.verifier) == ("B", "letter")


CODE = {"inputs": ["1\n"], "outputs": ["2\n"]}


@pytest.mark.parametrize("truth", [CODE, json.dumps(CODE)])
def test_a_ground_truth_of_tests(truth):
    ((question,), _, _) = read(row(answer=truth))
    assert (question.answer, question.verifier, question.function) == ("", "code", "")
    assert unpack(question.tests) == ProgramTests(stdin=(StdinTest("1\n", "2\n"),))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": {}}, "reward_model.ground_truth: expected lists of inputs and outputs, or tes"),
        (
            {"answer": '{"inputs": [1]}'},
            "reward_model.ground_truth: expected lists of inputs",
        ),
        ({"answer": ""}, "reward_model.ground_truth: expected 1 to 1000 characters, got 0: ''"),
        ({"answer": "x" * 1001}, "reward_model.ground_truth: expected 1 to 1000 characters, got 1"),
        ({"answer": "\\boxed{"}, "reward_model.ground_truth: expected 1 to 1000 characters, got 0"),
        ({"answer": "\ud800"}, "reward_model.ground_truth: expected Unicode without lone surrogat"),
        ({"answer": None}, "reward_model.ground_truth: expected a number or a text, got NoneType"),
        ({"answer": True}, "reward_model.ground_truth: expected a number or a text, got bool"),
        ({"answer": ["34"]}, "reward_model.ground_truth: expected a number or a text, got list"),
        ({"answer": float("nan")}, "reward_model.ground_truth: expected a finite number, got nan"),
        ({"reward_model": None}, "reward_model: expected an object with ground_truth, got NoneT"),
        ({"reward_model": {}}, "reward_model: expected an object with ground_truth, got dict"),
        ({"reward_model": "34"}, "reward_model: expected an object with ground_truth, got '34'"),
        ({"prompt": "How many?"}, "prompt: expected a list of messages, got 'How many?'"),
        ({"prompt": None}, "prompt: expected a list of messages, got NoneType"),
        ({"prompt": []}, "prompt: expected user messages, after at most one of the system, got n"),
        ({"prompt": ["How?"]}, "prompt: expected user messages, after at most one of the system, "),
        ({"prompt": [user(7)]}, "prompt[0].content: expected a text, got int"),
        ({"prompt": [user(" ")]}, "prompt[0].content: expected a text, got ' '"),
        ({"prompt": [user("\ud800")]}, "prompt[0].content: expected Unicode without lone surr"),
        (
            {"prompt": [user("a"), {"role": "assistant", "content": "b"}, user("c")]},
            "prompt: expected user messages, after at most one of the system, "
            "got 'user', 'assistant', 'user'",
        ),
        (
            {"prompt": [{"role": ["x"], "content": "b"}]},
            "prompt: expected user messages, after at most one of the system, got list",
        ),
        ({"prompt": [user(AFTER)]}, "prompt: expected a question, got nothing beside the form"),
    ],
)
def test_bad_rows_are_named(changes, problem):
    (_, _), bad, _ = read(row("First?"), row(**changes), row("Last?"))
    (line,) = bad
    assert line.startswith(f"2: {problem}")
    assert line.isprintable()
    assert len(line) < 200


def test_missing_fields_are_named():
    for field in ("prompt", "reward_model"):
        left = {name: value for name, value in row().items() if name != field}
        _, (line,), _ = read(left)
        assert line.startswith(f"1: {field}: expected this field, got 'data_source, ")


@pytest.mark.parametrize(
    ("source", "ability", "kind"),
    [
        ("BytedTsinghua-SIA/DAPO-Math-17k", "MATH", "DAPO-Math-17k"),
        ("big math\n(hard)", "MATH", "big_math_hard"),
        ("", "MATH", "MATH"),
        (None, "MATH", "MATH"),
        (3, None, "agentrl"),
        ("a" * 90, "", "a" * 40),
        ("\ud800/\ud800", "", "agentrl"),
    ],
)
def test_the_kind_is_the_origin(source, ability, kind):
    ((question,), _, _) = read(row(data_source=source, ability=ability))
    assert question.kind == kind


def test_a_question_counts_once_and_several_answers_to_it_are_told():
    questions, bad, copies = read(
        row("A?", "1"),
        row("B?", "2"),
        row("A?", "1.0"),
        row("B?", "3"),
        row("C?", ""),
        row("B?", "4"),
        row("C?", "5"),
        row(BEFORE + "D?", "6"),
        row(BEFORE + "D?" + AFTER, "6", data_source="elsewhere"),
    )
    assert [(question.text[-2:], question.answer) for question in questions] == [
        ("A?", "1"),
        ("C?", "5"),
        ("D?", "6"),
    ]
    assert bad == [
        "2: expected one answer to the question, got '2' here and '3' in line 4",
        "5: reward_model.ground_truth: expected 1 to 1000 characters, got 0: ''",
    ]
    assert copies == 4
    assert len(questions) + len(bad) + copies == 9


def test_tests_that_differ_contradict_each_other():
    others = {"inputs": ["1\n"], "outputs": ["3\n"]}
    questions, bad, _ = read(row("A?", CODE), row("A?", others), row("B?", CODE), row("B?", CODE))
    assert [question.text for question in questions] == ["B?"]
    assert bad == ["1: expected one answer to the question, got tests here and tests in line 2"]


def test_a_file_without_a_usable_row_is_an_error(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps(row(answer=None)))
    with pytest.raises(UsageError) as caught:
        read_files(DataConfig(train=str(path), format="agentrl"))
    first, second = caught.value.problems
    assert first == f"data.train: {path}: expected an agentrl row that can be used, got none"
    assert second.startswith(f"{path}:1: reward_model.ground_truth: expected a number or a text")


def test_a_broken_file_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UsageError) as caught:
        read_files(DataConfig(train=str(path), format="agentrl"))
    (line,) = caught.value.problems
    assert line.startswith(f"data.train: {path}: expected Parquet, got a fault: ")


def test_the_suite_asks_and_judges_and_has_no_solver_for_it():
    suite = make_suite(SuiteConfig("math"), {TRAIN: [Question("math_dapo", "How many?", "34")]})
    task = suite.task(TRAIN, 0)
    assert (task.kind, task.question, task.calls) == ("math_dapo", "How many?", None)
    assert suite.verify(task, "It is \\boxed{34}.").success
    assert not suite.verify(task, "Answer: 34").success


def test_the_suite_for_the_calculator_refuses_other_answers():
    questions = [Question("a", "?", "34"), Question("b", "?", "x"), Question("c", "?", "y")]
    with pytest.raises(UsageError) as caught:
        make_suite(SuiteConfig("math"), {TRAIN: questions})
    assert caught.value.problems == (
        "data.train: expected questions whose answers are numbers for suite math, got 2 others; "
        "suite.name=questions takes them too",
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "ground_truth"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@PROPERTY
@given(st.dictionaries(st.sampled_from(list(row())), VALUES))
def test_any_row_is_a_question_or_named(changes):
    questions, bad, _ = read(row() | changes)
    assert len(questions) + len(bad) == 1
    assert all(line.isprintable() and len(line) < 250 for line in bad)
