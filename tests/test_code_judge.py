"""Programs judged by tests: right ones, wrong ones, and those that want to pass all the same."""

import time

import pytest

from elpo_jax.config import SandboxConfig
from elpo_jax.sandbox import Result, Sandbox, Status
from elpo_jax.tasks.code_judge import Judgement, judge, same_output, same_value
from elpo_jax.tasks.code_tests import CallTest, ProgramTests, StdinTest, from_asserts
from elpo_jax.tools.base import ToolFailure

STDIN = ProgramTests(stdin=(StdinTest("1 2\n", "3\n"), StdinTest("4 5\n", "9\n")))
ASSERTS = "assert add(1, 2) == 3\nassert add(a=4, b=5) == 9"
CALLS = from_asserts(ASSERTS, "add", "", "x")
RIGHT_STDIN = "print(sum(map(int, input().split())))"
RIGHT_CALL = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox(SandboxConfig())
    yield box
    box.close()


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (RIGHT_STDIN, 2),
        ("import sys\nfor line in sys.stdin: print(eval('+'.join(line.split())))", 2),
        ("if __name__ == '__main__':\n  " + RIGHT_STDIN, 2),
        (RIGHT_STDIN + "\nimport sys; sys.exit()", 2),
        ("print(3)", 1),
        ("print(4)", 0),
        ("", 0),
        ("syntax error", 0),
        ("raise SystemExit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("print('PASSED'); print('2/2 tests passed')", 0),
        ("print(3)\nprint(9)", 0),  # every answer at once
        ("print('3 9')", 0),
        ("import os; os.close(1)", 0),
        (RIGHT_STDIN + "\nraise ValueError", 0),
        ("print('3' + chr(0))", 0),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", 0),
        ("print('x' * 10**7)", 0),
        ("print('1' * 10**6)", 0),
        ("\ud800", 0),
        ("#" * 200_000 + "\n" + RIGHT_STDIN, 0),
        ("input(); input()", 0),
    ],
)
def test_programs_that_read_and_print(sandbox, program, passed):
    assert judge(sandbox, program, STDIN) == Judgement(passed, 2)


FORGE = """
import os
def add(a, b):
    for fd in range(3, 64):
        try:
            os.write(fd, b"{}")
        except OSError:
            pass
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (RIGHT_CALL, 2),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", 2),
        ("print('noise' * 10**6)\n" + RIGHT_CALL + "\nprint('more')", 2),
        ("import sys; print('noise', file=sys.stderr)\n" + RIGHT_CALL, 2),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n  a: int\n" + RIGHT_CALL, 2),
        ("def add(a, b) -> List[int]:\n    return pow(a + b, 1)", 2),  # typing, the built-in pow
        ("import numpy as np\ndef add(a, b):\n    return np.int64(a + b)", 2),
        (RIGHT_CALL + "\nif __name__ == '__main__':\n    raise ValueError", 2),
        ("def add(a, b):\n    return a + b + 1e-9", 0),  # a whole number is met exactly
        ("def add(a, b):\n    return 3", 1),
        ("def add(a, b):\n    return '3'", 0),
        ("def add(a, b):\n    return [a + b]", 0),
        ("def add(a, b):\n    return {3}", 0),
        ("def add(a, b):\n    return None", 0),
        ("def add(a, b):\n    yield 3", 0),
        ("def sub(a, b):\n    return a + b", 0),
        ("def add(a):\n    return 3", 0),
        ("add = 3", 0),
        ("", 0),
        ("def add(a, b", 0),
        ("def add(a, b):\n    import os; os._exit(0)", 0),
        ("def add(a, b):\n    raise SystemExit(0)", 0),
        ("raise SystemExit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("def add(a, b):\n    print(3); print('PASSED')", 0),
        ("class Yes(int):\n  __eq__ = lambda s, o: True\ndef add(a, b):\n    return Yes(0)", 0),
        ("class Yes:\n  __eq__ = lambda s, o: True\ndef add(a, b):\n    return Yes()", 0),
        ("class Yes(str):\n  __eq__ = lambda s, o: True\ndef add(a, b):\n    return Yes()", 0),
        ("class Y(float):\n  __repr__ = lambda s: '3'\ndef add(a, b):\n    return Y(0)", 0),
        ("import builtins\nbuiltins.all = lambda x: True\ndef add(a, b):\n    return 0", 0),
        ("import json\njson.loads = lambda x: 3\ndef add(a, b):\n    return 0", 0),
        ("def add(a, b):\n    a = []\n    a.append(a)\n    return a", 0),
        ("def add(a, b):\n    return [3] * 10**6", 0),
        ("def add(a, b):\n    return 10 ** 10000", 0),
        ("import sys; sys.stdin.read()\n" + RIGHT_CALL, 2),
        (FORGE, 0),
    ],
)  # fmt: skip
def test_programs_that_define_a_function(sandbox, program, passed):
    assert judge(sandbox, program, CALLS) == Judgement(passed, 2)


def test_a_prefix_comes_first(sandbox):
    tests = from_asserts("assert f(1) == 2", "f", "class Pair: value = 2", "x")
    assert judge(sandbox, "def f(x):\n    return Pair.value", tests).success
    assert not judge(
        sandbox, "def f(x):\n    return ceil(1.5)", tests
    ).success  # not the usual ones


LEAK = """
import gc, inspect, os, sys
def f(x):
    seen = [info.frame.f_locals for info in inspect.stack()] + gc.get_objects()
    seen += [frame.f_globals for frame in sys._current_frames().values()]
    seen += list(os.environ.values()) + sys.argv
    texts = [each for each in seen if isinstance(each, str)]
    for each in seen:
        try:
            texts += [str(inner) for inner in (each.values() if hasattr(each, "values") else each)]
        except Exception:
            pass
    return next((text for text in texts if text[::-1] == "emases"), x)
"""


def test_what_is_right_is_nowhere_in_the_sandbox(sandbox):
    assert judge(sandbox, LEAK, from_asserts("assert f('sesame')=='sesame'", "f", "", "x")).success
    assert not judge(sandbox, LEAK, from_asserts("assert f(1) == 'sesame'", "f", "", "x")).success


def test_a_function_that_only_the_imports_have_is_no_solution(sandbox):
    tests = from_asserts("assert gcd(4, 6) == 2", "gcd", "", "x")
    assert not judge(sandbox, "", tests).success
    assert judge(sandbox, "from math import gcd", tests).success


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_time_runs_out(sandbox, program, monkeypatch):
    monkeypatch.setattr("elpo_jax.tasks.code_judge.SECONDS", 1.0)
    tests = ProgramTests(stdin=(StdinTest("", ""),))
    assert judge(sandbox, program, tests) == Judgement(0, 1)


class Scripted:
    """A sandbox that answers from a list."""

    def __init__(self, *outcomes):
        self.outcomes, self.limits = list(outcomes), []

    def run(self, snippet, limits):
        outcome = self.outcomes.pop(0)
        self.limits.append(limits)
        if isinstance(outcome, Exception):
            raise outcome
        status, stdout, truncated, *seconds = outcome
        return Result(status, stdout, b"", 0.0, *(seconds or [0.0]), truncated)


THREE, TIMEOUT = (Status.OK, b"3", False), (Status.TIMEOUT, b"3", False)


def judged(*outcomes, total=5, **options):
    """The judgement, and how many outcomes weren't asked for."""
    box = Scripted(*outcomes)
    judgement = judge(box, "", ProgramTests(stdin=(StdinTest("", "3"),) * total), **options)
    return judgement, len(box.outcomes)


def test_the_score_is_the_share_of_the_tests():
    judgement, _ = judged(THREE, (Status.OK, b"4", False), THREE, THREE, total=4)
    assert (judgement.passed, judgement.total, judgement.success) == (3, 4, False)
    assert judgement.score == 0.75


def test_a_run_that_did_not_end_well_is_no_pass():
    for status in Status:
        (judgement, _) = judged((status, b"3", False), total=1)
        assert judgement.success == (status is Status.OK)
    assert not judged((Status.OK, b"3", True), total=1)[0].success


def test_the_first_failure_may_end_it():
    assert judged(THREE, TIMEOUT, THREE, fail_fast=True) == (Judgement(1, 5), 1)


def test_the_third_time_out_ends_it():
    script = [TIMEOUT, THREE, TIMEOUT, TIMEOUT, THREE]
    assert judged(*script) == (Judgement(1, 5), 1)


def test_tests_that_do_not_fit_in_the_time_have_failed():
    box = Scripted(*((Status.OK, b"[3]\n", False, 17.0) for _ in range(10)))
    stdin = ProgramTests(stdin=(StdinTest("", "[3]"),) * 10)
    assert judge(box, "", stdin, seconds=40.0) == Judgement(3, 10)
    assert [limits.wall_seconds for limits in box.limits] == [12.0, 12.0, 6.0]
    calls = ProgramTests(calls=(CallTest([], {}, [3]),) * 10, function="f")
    assert judge(box, "", calls, seconds=40.0) == Judgement(3, 10)
    assert len(box.outcomes) == 4


def test_a_slow_program_gets_its_verdict_in_time(sandbox):
    tests = ProgramTests(stdin=(StdinTest("3", "3"),) * 40)
    program = "import time; time.sleep(0.3); print(input())"
    start = time.monotonic()
    judgement = judge(sandbox, program, tests, seconds=1.0)
    assert time.monotonic() - start < 6  # of 12
    assert 0 < judgement.passed <= 3


def test_a_broken_sandbox_is_no_verdict():
    with pytest.raises(ToolFailure):
        judged(THREE, ToolFailure("gone"))


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("3", "3\n", True),
        (" 3 \r\n\n", "3", True),
        ("1\n 2 \n", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        ("1 2", "1\n2", False),
        ("1  2", "1 2", True),  # as numbers
        ("a  b", "a b", False),
        ("1.50 2", "1.5 2.0", True),
        ("1.5000001", "1.5", False),
        ("1e2", "100", True),
        ("+1 .5", "1 0.5", True),
        ("0.1 yes", "0.10 yes", False),
        ("1_000", "1000", False),
        ("\u0661", "1", False),
        ("nan", "NaN", False),
        ("", "", True),
        ("", "0", False),
        ("1e999999", "1e999998", False),
        ("9" * 10**6, "9" * 10**6 + ".0", True),
        ("YES", "yes", False),
    ],
)
def test_what_is_printed(got, expected, same):
    assert same_output(got.encode(), expected) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ([1, [2]], (1, (2,)), True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([], {}, False),
        (0.30000000000000004, 0.3, True),
        (0.3001, 0.3, False),
        (1e-7, 0.0, True),
        (1, 1.0, True),
        (3.0000000001, 3, False),
        (1, True, True),
        (True, 1, True),
        ("1", 1, False),
        (1, "1", False),
        (None, None, True),
        (None, False, False),
        (0, None, False),
        (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), True),
        (float("inf"), 1.5, False),
        (10**400, 1.5, False),
        ("\ud800", "\ud800", True),
    ],
)
def test_what_is_returned(got, expected, same):
    assert same_value(got, expected) is same


def test_any_of_several_results_will_do(sandbox):
    tests = ProgramTests(calls=(CallTest([], {}, [[5], 5]),), function="f")
    for value, success in (("[5]", True), ("5", True), ("(5,)", True), ("[[5]]", False)):
        assert judge(sandbox, f"def f():\n    return {value}", tests).success is success
