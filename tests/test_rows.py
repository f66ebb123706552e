"""Rows of JSONL, JSON and Parquet files, and every way in which a file can be wrong."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.errors import UsageError
from elpo_jax.tasks import rows as rows_module
from elpo_jax.tasks.rows import Bad, convert, read_content, text_of

TABLE = [{"a": "one"}, {"a": "two"}, {"a": "three"}]


def parquet(rows, schema=None):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()


def convert_a(content, name, **options):
    return convert(content, name, lambda row: text_of(row, "a"), **options)


@pytest.mark.parametrize(
    ("name", "content", "unit"),
    [
        ("rows.jsonl", "\n".join(map(json.dumps, TABLE)).encode(), "line"),
        ("rows.json", "\n".join(map(json.dumps, TABLE)).encode(), "line"),
        ("rows.json", b"\xef\xbb\xbf \n" + json.dumps(TABLE, indent=1).encode(), "row"),
        ("rows.JSON", json.dumps(TABLE).encode(), "row"),
        ("rows.parquet", parquet(TABLE), "row"),
        ("rows", parquet(TABLE), "row"),  # known by its first bytes
    ],
)
def test_the_same_rows_from_every_kind_of_file(name, content, unit):
    rows = convert_a(content, name)
    assert (rows.good, rows.bad) == ([(1, "one"), (2, "two"), (3, "three")], [])
    assert rows.unit == unit


def test_bad_rows_of_a_list_are_named_by_their_number():
    content = json.dumps([{"a": "one"}, {"b": 1}, 7, [], {"a": None}, {"a": "six"}]).encode()
    rows = convert_a(content, "x.json")
    assert rows.good == [(1, "one"), (6, "six")]
    assert rows.named("x.json") == [
        "x.json: row 2: a: expected this field, got 'b'",
        "x.json: row 3: expected an object, got int",
        "x.json: row 4: expected an object, got list",
        "x.json: row 5: a: expected a text, got NoneType",
    ]


def test_many_bad_rows_take_one_line():
    rows = convert_a(parquet([{"b": 1}] * 9), "x.parquet")
    assert rows.named("x.parquet")[-1] == "x.parquet: and 4 more, rows 6-9"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.json", b"[{}, ", r"expected a JSON list, got a fault at line 1 column 6: Expecting v"),
        ("x.json", b'[{}]\n{"a": "b"}', r"expected a JSON list, got a fault at line 2 column 1: E"),
        ("x.json", b"[" * 100_000, r"expected a JSON list, got a fault: "),
        ("x.json", b"[" + b"9" * 5000 + b"]", r"expected a JSON list, got a fault: Exceeds the l"),
        ("x.json", b'["\xe4"]', r"expected UTF-8, got byte 0xe4 at 2"),
        ("x.parquet", b"", r"expected Parquet, got a fault: "),
        ("x.parquet", b'{"a": "one"}', r"expected Parquet, got a fault: Parquet magic bytes not"),
        ("x.parquet", parquet(TABLE)[:-40], r"expected Parquet, got a fault: "),
        ("x.jsonl", b"PAR1", r"expected Parquet, got a fault: "),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_told_in_a_line(name, content, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        convert_a(content, name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@PROPERTY
@given(st.binary(max_size=60), st.integers(0, 400))
def test_damaged_parquet_gives_rows_or_a_line(damage, place):
    content = parquet(TABLE)
    place %= len(content)
    damaged = content[:place] + damage + content[place + len(damage) :]
    try:
        rows = convert_a(damaged, "x.parquet")
    except ValueError as error:
        assert str(error).startswith("expected Parquet, got a fault")  # noqa: PT017
    else:
        assert len(rows.good) + len(rows.bad) <= 3


def test_rows_of_parquet_that_have_no_text_are_bad_and_the_others_kept(monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH", 3)
    values = pa.array([b"one", b"\xff\xfe", b"three", b"four"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, values.buffers())  # says it is UTF-8
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": text}), sink)
    rows = convert_a(sink.getvalue().to_pybytes(), "x.parquet")
    assert rows.good == [(1, "one"), (3, "three"), (4, "four")]
    ((number, problem),) = rows.bad
    assert number == 2
    assert problem.startswith("expected a readable row, got a fault: 'utf-8' codec can't decode")


def test_inner_nulls_of_parquet_are_kept_or_dropped():
    table = [{"a": [{"x": 1, "y": None}, {"x": None, "y": {"z": None}}], "b": None}]
    content = parquet(table)
    kept = convert(content, "x.parquet", lambda row: row)
    dropped = convert(content, "x.parquet", lambda row: row, drop_nulls=True)
    assert kept.good[0][1]["a"][0] == {"x": 1, "y": None}
    assert dropped.good == [(1, {"a": [{"x": 1}, {"y": {}}], "b": None})]
    as_json = convert(json.dumps(table).encode(), "x.json", lambda row: row, drop_nulls=True)
    assert as_json.good == [(1, table[0])]  # there a null was written


def test_a_huge_row_is_read_and_a_huge_wrong_one_is_cut():
    size = 5_000_000
    content = json.dumps({"a": "x" * size}).encode() + b"\n" + b'{"a": [' + b"1," * size
    rows = convert_a(content, "x.jsonl")
    assert [(number, len(text)) for number, text in rows.good] == [(1, size)]
    assert rows.bad == [Bad(2, "expected JSON, got " + repr('{"a": [' + "1," * 16 + "1") + "...")]


def test_other_types_of_parquet_are_no_text():
    for value in (b"bytes", 1.5, math.nan, True, [1], {"x": 1}):
        (bad,) = convert_a(parquet([{"a": value}]), "x.parquet").bad
        assert bad.problem == f"a: expected a text, got {type(value).__name__}"


def test_a_file_that_is_not_there_is_told_with_its_setting(tmp_path):
    with pytest.raises(UsageError, match=r"sft\.data: .*x: expected a file to read: No such file"):
        read_content(tmp_path / "x", "sft.data")
