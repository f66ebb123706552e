"""Questions from files: GSM8K's rows, and every way in which a row or a file can be wrong."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.config import DataConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.files import read_files, read_questions
from elpo_jax.tasks.question import Question

# Rows in GSM8K's manner, made up here.
BREAD = {
    "question": "A baker bakes 48 rolls and half as many buns. How many is that?",
    "answer": "He bakes 48/2=<<48/2=24>>24 buns.\nThat is 48+24=<<48+24=72>>72.\n#### 72",
}
RENT = {
    "question": "Rent is $1,150 a month. How much is it a year?",
    "answer": "It is 1150*12=$<<1150*12=13800>>13,800.\n#### $13,800",
}
ROWS = [json.dumps(row).encode() for row in (BREAD, RENT)]


def write(tmp_path, *lines, name="train.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    return str(path)


def read_lines(content, form="gsm8k"):
    """Questions of a file of lines, and 'LINE: PROBLEM' of its bad rows."""
    rows, _ = read_questions(content, "file.jsonl", form)
    return [question for _, question in rows.good], [f"{n}: {problem}" for n, problem in rows.bad]


def row(answer, question="How many?"):
    return json.dumps({"question": question, "answer": answer}).encode()


def test_gsm8k_rows():
    good, bad = read_lines(b"\n".join(ROWS))
    assert good == [
        Question("gsm8k", BREAD["question"], "72", ("48/2", "48+24")),
        Question("gsm8k", RENT["question"], "13800", ("1150*12",)),
    ]
    assert not bad


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("#### 18", "18"),
        ("####18", "18"),
        ("#### -3", "-3"),
        ("#### 1,234,567", "1234567"),
        ("#### $2.50", "2.50"),
        ("#### \\$2.50", "2.50"),
        ("#### 25%", "25"),
        ("#### 12345678901234567", "12345678901234567"),
        ("one #### 1 and #### 2\n", "2"),
    ],
)
def test_the_number_at_the_end(answer, number):
    ((question,), bad) = read_lines(row(answer), "gsm8k")
    assert (question.answer, bad) == (number, [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"question": "How many?"}', "answer: expected this field, got 'question'"),
        (b'{"answer": "#### 1"}', "question: expected this field, got 'answer'"),
        (b'{"question": 7, "answer": "#### 1"}', "question: expected a text, got int"),
        (b'{"question": " ", "answer": "#### 1"}', "question: expected a text, got ' '"),
        (b'{"question": null, "answer": "#### 1"}', "question: expected a text, got NoneType"),
        (b'{"question": "\\ud800", "answer": "#### 1"}', "question: expected Unicode without lone"),
        (row("It is 18."), "answer: expected #### and a number at its end, got no ####"),
        (row("#### "), "answer: expected a number after ####, got ''"),
        (row("#### eighteen"), "answer: expected a number after ####, got 'eighteen'"),
        (row("#### 18 rolls"), "answer: expected a number after ####, got '18 rolls'"),
        (row("#### 1 2,3"), "answer: expected a number after ####, got '1 2,3'"),
        (row("#### nan"), "answer: expected a number after ####, got 'nan'"),
        (row("#### \u0661\u0668"), r"answer: expected a number after ####, got '\u0661\u0668'"),
        (row("#### 1e999"), "answer: expected a number after ####, got '1e999'"),
        (row("#### " + "9" * 5000), f"answer: expected a number after ####, got '{'9' * 40}'..."),
        (b'{"question": "How many?", "answer": "#### 18"', 'expected JSON, got \'{"question"'),
        (b"question,answer", "expected JSON, got 'question,answer'"),
        (b"[" * 100_000, "expected JSON, got '[[["),
        (b"[1]", "expected an object, got list"),
        (b'"#### 18"', "expected an object, got '#### 18'"),
        (b"NaN", "expected an object, got float"),
        (row("#### 18").replace(b"many", b"m\xe4ny"), "expected UTF-8, got byte 0xe4"),
        (row("#### 18").decode().encode("utf-16"), "expected UTF-8, got byte 0xff"),
    ],
)
def test_bad_rows_are_named_and_the_others_kept(line, problem):
    good, bad = read_lines(b"\n".join([ROWS[0], line, ROWS[1]]), "gsm8k")
    assert len(good) == 2
    assert len(bad) == 1
    assert bad[0].startswith(f"2: {problem}")
    assert len(bad[0]) < 120
    assert bad[0].isprintable()


def test_empty_lines_byte_order_marks_and_windows_line_ends_are_no_fault():
    content = b"\xef\xbb\xbf" + b"\r\n".join([ROWS[0], b"", ROWS[1], b""])
    good, bad = read_lines(content, "gsm8k")
    assert (len(good), bad) == (2, [])


def test_a_line_separator_inside_a_text_ends_no_line():
    ((question,), bad) = read_lines(
        row("#### 1", question="a\u2028b\x0c").replace(b"\n", b""), "gsm8k"
    )
    assert (question.text, bad) == ("a\u2028b\x0c", [])


@PROPERTY
@given(st.binary(max_size=200))
def test_nothing_breaks_the_reader(content):
    assume(not content.startswith(b"PAR1"))  # Parquet, which is read as a whole
    good, bad = read_lines(content, "gsm8k")
    lines = sum(bool(line.strip()) for line in content.split(b"\n"))
    assert len(good) + len(bad) == lines


def test_a_few_bad_rows_are_explained_and_the_rest_numbered(tmp_path):
    path = write(tmp_path, *ROWS, *[b"no"] * 8, *ROWS, b"no")
    other = write(tmp_path, row("#### 1", question="Another?"), name="other.jsonl")
    files = read_files(DataConfig(train=path, eval=other))
    assert len(files.questions[TRAIN]) == 2
    assert files.notes == (
        *(f"{path}:{line}: expected JSON, got 'no'" for line in range(3, 8)),
        f"{path}: and 4 more, lines 8-10, 13",
        f"data.train: {path}: questions: 2, bad rows: 9, rows that repeat a question: 2",
        f"data.eval: {other}: questions: 1, bad rows: 0",
    )


def test_a_question_with_two_answers_is_left_out_and_its_rows_named(tmp_path):
    path = write(
        tmp_path, ROWS[0], row("#### 1", question="Which?"), row("#### 2", question="Which?")
    )
    told, *_ = read_files(DataConfig(train=path)).notes
    assert told == f"{path}:2: expected one answer to the question, got '1' here and '2' in line 3"


def test_very_many_bad_rows_take_one_line(tmp_path):
    path = write(tmp_path, *[each for _ in range(300) for each in (ROWS[0], b"no")])
    *_, rest, _, _ = read_files(DataConfig(train=path)).notes
    assert rest.startswith(f"{path}: and 295 more, lines 12, 14, 16, ")
    assert rest.endswith(", 210, ...")


def test_one_file_of_two_is_told(tmp_path):
    path = write(tmp_path, *ROWS)
    *_, train_only = read_files(DataConfig(train=path)).notes
    *_, eval_only = read_files(DataConfig(eval=path)).notes
    assert train_only.startswith("warning: data.eval: no file, only data.train has one")
    assert eval_only.startswith("warning: data.train: no file, only data.eval has one")


def test_a_file_of_bad_rows_alone_is_an_error(tmp_path):
    path = write(tmp_path, b"no", b"[]", name="held_out.jsonl")
    with pytest.raises(UsageError) as caught:
        read_files(DataConfig(eval=path))
    assert caught.value.problems == (
        f"data.eval: {path}: expected a gsm8k row that can be used, got none",
        f"{path}:1: expected JSON, got 'no'",
        f"{path}:2: expected an object, got list",
    )


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="expected a gsm8k row that can be used, got none"):
        read_files(DataConfig(train=write(tmp_path)))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=rf"data.train: {tmp_path}: expected a file to read: Is a"):
        read_files(DataConfig(train=str(tmp_path)))


def test_questions_in_both_files_are_pointed_out(tmp_path):
    train = write(tmp_path, *ROWS)
    held_out = write(tmp_path, ROWS[1], row("#### 1"), name="held_out.jsonl")
    files = read_files(DataConfig(train=train, eval=held_out))
    assert files.notes[-1] == "data.eval: 1 of its questions are in data.train too"
    assert {split: len(found) for split, found in files.questions.items()} == {
        TRAIN: 2,
        HELD_OUT: 2,
    }
    assert files.digests[TRAIN] != files.digests[HELD_OUT]
    assert not read_files(DataConfig()).questions
