"""Tests of programs as files hold them, and every way in which they can be wrong or hostile."""

import base64
import contextlib
import json
import pickle
import pickletools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.tasks.code_tests import (
    CallTest,
    ProgramTests,
    StdinTest,
    from_asserts,
    from_ground_truth,
    from_livecodebench,
    pack,
    pickled_text,
    unpack,
)


def packed(value):
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def lcb(given, output, kind="stdin"):
    return {"input": given, "output": output, "testtype": kind}


def test_standard_input():
    truth = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
    tests = from_ground_truth(truth, "x")
    assert tests.stdin == (StdinTest("1 2\n", "3\n"), StdinTest("3\n4", "7"))
    assert (tests.calls, tests.function, len(tests)) == ((), "", 2)


def test_calls():
    truth = {"inputs": [[[1, 2], 3], "[4]\n5\n"], "outputs": [[6], "9"], "fn_name": "add"}
    tests = from_ground_truth(truth, "x")
    assert tests.calls == (
        CallTest([[1, 2], 3], {}, [[6], 6]),  # rows don't say whether a list wraps the result
        CallTest([[4], 5], {}, [9, "9"]),
    )
    assert tests.function == "add"


ASSERTS = '''
METADATA = {"author": "x"}

def check(candidate):
    """Calls it."""
    assert candidate(nums=[3, 3], target=6) == [0, 1]
    assert candidate("a") == ("b", 1.5), "a message"
    assert [] == candidate({"k": None}, -1)
    assert candidate(1) is True
    assert candidate(2)
    assert not candidate(3)

check(two_sum)
'''


def test_asserts_are_read_and_not_run():
    tests = from_asserts(ASSERTS, "Solution().two_sum", "import math", "x")
    assert tests.calls == (
        CallTest([], {"nums": [3, 3], "target": 6}, [[0, 1]]),
        CallTest(["a"], {}, [["b", 1.5]]),
        CallTest([{"k": None}, -1], {}, [[]]),
        CallTest([1], {}, [True]),
        CallTest([2], {}, [True]),
        CallTest([3], {}, [False]),
    )
    assert (tests.function, tests.prefix) == ("two_sum", "import math")
    outside = from_asserts("assert f(1) == 2\nassert Solution().f(2) == 3", "f", "", "x")
    assert outside.calls == (CallTest([1], {}, [2]), CallTest([2], {}, [3]))


@pytest.mark.parametrize(
    "line",
    [
        "assert abs(candidate(1) - 0.5) < 1e-6",
        "assert candidate(1) == candidate(2)",
        "assert candidate(1) != 2",
        "assert candidate(1) == 2 == 2",
        "assert candidate(1) == expected",
        "assert candidate(1) == {1, 2}",
        "assert candidate((1, 2)) == 3",
        "assert candidate({1: 2}) == 3",
        "assert candidate(b'x') == 3",
        "assert candidate(float('inf')) == 3",
        "assert candidate(*[1]) == 3",
        "assert candidate(**{'a': 1}) == 3",
        "assert other(1) == 3",
        "assert is_same(candidate(1), tree([1]))",
        "assert True",
        "assert candidate == 3",
    ],
)
def test_an_assert_that_cannot_be_read_leaves_the_row_out(line):
    with pytest.raises(ValueError, match=r"^x.test_code: assert 2: expected f\(\.\.\.\) == VALUE"):
        from_asserts(f"def check(candidate):\n  assert candidate(1) == 2\n  {line}", "f", "", "x")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x = 1\nassert f(1) == 2", "x.test_code: expected asserts alone, got Assign"),
        ("for i in [1]:\n  assert f(i) == 2", "x.test_code: expected asserts alone, got For"),
        ("def check(c):\n  return", "x.test_code: expected asserts alone, got Return"),
        ("def other(c):\n  pass", "x.test_code: expected asserts alone, got FunctionDef"),
        ("", "x.test_code: expected asserts, got none"),
        ("assert", "x.test_code: expected Python, got invalid syntax"),
        ("\0", "x.test_code: expected Python, got"),
        ("(" * 100_000, "x.test_code: expected Python, got"),
        ("assert f(" + "-" * 5000 + "1) == 2", "x.test_code: "),
        (None, "x: expected texts as test_code and import_prefix, got NoneType and str"),
    ],
)
def test_test_code_that_is_something_else(code, problem):
    with pytest.raises(ValueError, match=r"^x") as caught:
        from_asserts(code, "f", "", "x")
    assert str(caught.value).startswith(problem)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "a b", "f()", "Solution().a.b", "class", "é", None, 3, "f\n"])
def test_a_name_that_is_no_function(name):
    with pytest.raises(ValueError, match="expected the name of a function, got"):
        from_asserts("assert f(1) == 2", name, "", "x")


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ({}, "x: expected lists of inputs and outputs, or test_code, got ''"),
        ({"inputs": ["1"]}, "x: expected lists of inputs and outputs, or test_code, got 'inputs'"),
        ({"inputs": "1", "outputs": "2"}, "x: expected lists of inputs and outputs"),
        ({"inputs": [], "outputs": []}, "x: expected as many inputs as outputs, 1 or more, got 0"),
        ({"inputs": ["1"], "outputs": []}, "x: expected as many inputs as outputs"),
        ({"inputs": [1], "outputs": ["2"]}, "x[0].input: expected a text, got int"),
        ({"inputs": ["1"], "outputs": [None]}, "x[0].output: expected a text, got NoneType"),
        ({"inputs": ["\ud800"], "outputs": ["2"]}, "x[0].input: expected Unicode without lone"),
        ({"inputs": ["nope"], "outputs": [1], "fn_name": "f"}, "x.inputs[0]: expected JSON, got"),
        ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "x.inputs[0]: expected arguments, got"),
    ],
)
def test_ground_truths_that_are_something_else(truth, problem):
    with pytest.raises(ValueError, match=r"^x") as caught:
        from_ground_truth(truth, "x")
    assert str(caught.value).startswith(problem)


def test_livecodebench_packs_its_private_tests():
    public, private = [lcb("1", "2")], [lcb("3\n", "4\n"), lcb("5", "6")]
    expected = tuple(map(StdinTest, ("1", "3\n", "5"), ("2", "4\n", "6")))
    for form in (json.dumps(private), private, packed(json.dumps(private))):
        assert from_livecodebench(json.dumps(public), form, None).stdin == expected
    assert from_livecodebench(json.dumps(public), "", None).stdin == expected[:1]


def test_livecodebench_calls_functions():
    public = [lcb('[1, 2]\n"a"', "[3]", "functional")]
    tests = from_livecodebench(json.dumps(public), "[]", "solve")
    assert tests.calls == (CallTest([[1, 2], "a"], {}, [[3]]),)
    assert tests.function == "solve"


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("private", "problem"),
    [
        (packed(Evil()), "got the instruction"),
        (packed([json.dumps([lcb("1", "2")]), Evil()]), "got the instruction"),
        (packed(b"[]"), "got the instruction"),
        (packed(7), "got the instruction"),
        (packed("[]")[:-9], "private_test_cases: as JSON or base64 of zlib: "),
        (base64.b64encode(b"junk").decode(), "private_test_cases: as JSON or base64 of zlib: "),
        (base64.b64encode(zlib.compress(b"")).decode(), "base64 of zlib: "),
        (base64.b64encode(zlib.compress(b"\x80\x05X\xff")).decode(), "base64 of zlib: "),
        (packed("{}"), "private_test_cases: expected a list of tests, got dict"),
        (packed("nope"), "private_test_cases: expected JSON, got 'nope'"),
        ("!", "private_test_cases: as JSON or base64 of zlib: "),
        ([{}], "private_test_cases[0]: expected texts input, output and testtype"),
        ("[", "private_test_cases: expected JSON, got '['"),
        (None, "private_test_cases: expected a list of tests, got NoneType"),
        ("", "private_test_cases: expected tests, got none"),
        ([lcb("1", "2", "x")], "testtype: expected stdin or functional, the same in all"),
        ([lcb("1", "2"), lcb("1", "2", "functional")], "testtype: expected stdin or functional"),
        ([lcb("x", "2", "functional")], "test_cases[0].input: expected JSON, got 'x'"),
        ([lcb("1", "x", "functional")], "test_cases[0].output: expected JSON, got 'x'"),
    ],
)
def test_private_tests_that_are_something_else(private, problem, capsys):
    with pytest.raises(ValueError, match=r".") as caught:
        from_livecodebench("[]", private, "f")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_a_bomb_of_zeros_is_not_unpacked(monkeypatch):
    monkeypatch.setattr("elpo_jax.tasks.code_tests.MAX_UNPACKED", 1000)
    with pytest.raises(ValueError, match="expected fewer bytes, got 1000 bytes"):
        from_livecodebench("[]", packed("0" * 5000), None)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_text_is_read_without_unpickling(protocol):
    for text in ("", "a", "é\ud800", "x" * 300, "y" * 70_000):
        assert pickled_text(pickle.dumps(text, protocol)) == text
        assert pickled_text(pickletools.optimize(pickle.dumps(text, protocol))) == text


@PROPERTY
@given(st.binary(max_size=60))
def test_any_bytes_are_a_pickled_text_or_an_error(data):
    with contextlib.suppress(ValueError):
        assert pickled_text(data) == pickle.loads(data)


def test_packing():
    for tests in (
        from_asserts(ASSERTS, "f", "import x", "x"),
        from_ground_truth({"inputs": ["é\n", ""], "outputs": ["", "2"]}, "x"),
    ):
        assert unpack(pack(tests)) == ProgramTests(
            tests.stdin, tests.calls, tests.function, tests.prefix
        )
