"""Judges programs by tests. They run in the sandbox; right and wrong are decided here, from what
they print or return.

Neither an expected output nor an assert ever enters the sandbox, and no exit status or printed word
counts: a program that would pass has to know the answers. Each test is a fresh run, but for calls
that are to be made together.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from elpo_jax.sandbox import Limits, Result, Sandbox, Snippet, Status
from elpo_jax.tasks.code_tests import CallTest, ProgramTests, StdinTest

SECONDS = 6.0  # a test's processor time, as LiveCodeBench allows
_WALL = 2  # times as long by the clock: neighbours may have the processor
_MAX_TIMEOUTS = 3  # the tests after so many that ran out of time count as failed
_MAX_PROGRAM = 100_000  # characters
_SLACK = 1 << 16  # bytes that a program may print beyond twice what is expected
_CLOSE = 1e-6  # relative and absolute: results that aren't whole numbers
_NUMBER = re.compile(r"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]{1,6})?")

# What solutions of the kind that defines a function take for granted.
_USUAL_IMPORTS = """
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re
import string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from typing import *
from builtins import *
"""

# Reads the arguments of calls, runs the program and makes the calls. Writes a line for each, the
# result in a list as JSON or null, to a copy of standard output that was made before; what the
# program prints goes nowhere.
_HARNESS = """
import json, os, sys, types

def _value(x):
    if hasattr(x, "tolist"):
        return x.tolist()
    raise TypeError(type(x).__name__)

def _result(function, call):
    try:
        result = function(*call["arguments"], **call["named"])
        return json.dumps([result], default=_value)
    except Exception:
        return "null"

def _main(prefix, program, name):
    calls = json.loads(sys.stdin.buffer.read())
    results = os.dup(1)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        nowhere = 2
    os.dup2(nowhere, 1)
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    exec(compile(prefix, "<prefix>", "exec"), module.__dict__)
    module.__dict__.pop(name, None)  # operator's add is nobody's solution
    exec(compile(program, "<answer>", "exec"), module.__dict__)
    owner = getattr(module, "Solution", None)
    function = getattr(owner(), name) if hasattr(owner, name) else getattr(module, name)
    for call in calls:
        data = _result(function, call).encode() + b"\\n"
        while data:
            data = data[os.write(results, data):]
"""


@dataclass(frozen=True)
class Judgement:
    """How many tests passed, of how many. Those not run count as failed."""

    passed: int
    total: int

    @property
    def success(self) -> bool:
        return self.passed == self.total

    @property
    def score(self) -> float:
        return self.passed / self.total


def judge(
    sandbox: Sandbox,
    program: str,
    tests: ProgramTests,
    fail_fast: bool = False,
    seconds: float = math.inf,
) -> Judgement:
    """Runs a program on its tests, one after another.

    A slow program is the policy's doing, so that it gets a verdict, and in time: tests that don't
    fit in `seconds` count as failed. Only time in which the program ran counts, waits for a free
    worker don't.

    Args:
      sandbox: where it runs.
      program: its source; nothing in it is trusted.
      tests: one or more.
      fail_fast: stop at the first failure, for where only a full pass counts.
      seconds: by the clock, of all runs together.

    Raises:
      ToolFailure: the sandbox itself broke, which says nothing about the program.
    """
    if len(program) > _MAX_PROGRAM or not _is_unicode(program):
        return Judgement(0, len(tests))
    passed = timeouts = 0
    for success, status in _outcomes(_Clock(sandbox, seconds), program, tests):
        passed += success
        timeouts += status is Status.TIMEOUT
        if timeouts >= _MAX_TIMEOUTS or (fail_fast and not success):
            break
    return Judgement(passed, len(tests))


def same_output(got: bytes, expected: str) -> bool:
    """Whether a program printed what it should have.

    Blank space around the text and around each line doesn't count. Lines that differ are the same
    if both are numbers, as many, of the same exact values: 1.50 and 1.5.
    """
    lines = [_stripped_lines(text) for text in (got.decode(errors="replace"), expected)]
    return len(lines[0]) == len(lines[1]) and all(map(_same_line, *lines))


def same_value(got: Any, expected: Any) -> bool:
    """Whether a result, as JSON gives it back, is the expected one.

    Numbers are the same within a millionth if the expected one isn't whole, else exactly; as in
    Python True is 1. Tuples have become lists and the keys of objects texts.
    """
    if isinstance(expected, tuple | list):
        is_list = isinstance(got, list) and len(got) == len(expected)
        return is_list and all(map(same_value, got, expected))
    if isinstance(expected, Mapping):
        is_object = isinstance(got, dict) and got.keys() == expected.keys()
        return is_object and all(same_value(got[name], x) for name, x in expected.items())
    if not isinstance(expected, int | float) or not isinstance(got, int | float):
        return type(got) is type(expected) and got == expected
    if isinstance(expected, int) or not math.isfinite(expected) or not _is_finite(got):
        return got == expected
    return math.isclose(got, expected, rel_tol=_CLOSE, abs_tol=_CLOSE)


class _Clock:
    """A sandbox for so many seconds, as the runs take them."""

    def __init__(self, sandbox: Sandbox, seconds: float):
        self._sandbox = sandbox
        self._left = seconds

    @property
    def is_up(self) -> bool:
        return self._left <= 0

    def run(self, snippet: Snippet, expected: int) -> Result:
        """Runs a snippet that is to print so many bytes, in what is left of the time at most."""
        result = self._sandbox.run(
            snippet,
            Limits(
                cpu_seconds=SECONDS,
                wall_seconds=min(_WALL * SECONDS, self._left),
                output_bytes=2 * expected + _SLACK,
            ),
        )
        self._left -= result.wall_seconds
        return result


def _outcomes(clock: _Clock, program: str, tests: ProgramTests) -> Iterator[tuple[bool, Status]]:
    """Whether a test passed, and how the run ended; each is run when it is asked for, until the
    time is up."""
    for test in tests.stdin:
        if clock.is_up:
            return
        result = _run_stdin(clock, program, test)
        yield _is_whole(result) and same_output(result.stdout, test.output), result.status
    size = len(tests.calls) if tests.together else 1
    for start in range(0, len(tests.calls), size):
        if clock.is_up:
            return
        calls = tests.calls[start : start + size]
        result = _run_calls(clock, program, calls, tests)
        returned = (
            _returned(result.stdout, len(calls)) if _is_whole(result) else [None] * len(calls)
        )
        for call, got in zip(calls, returned, strict=True):
            yield _is_right(got, call.results), result.status


def _run_stdin(clock: _Clock, program: str, test: StdinTest) -> Result:
    snippet = Snippet((program,), stdin=test.input.encode(), echo=False)
    return clock.run(snippet, len(test.output.encode()))


def _run_calls(
    clock: _Clock, program: str, calls: Sequence[CallTest], tests: ProgramTests
) -> Result:
    prefix = tests.prefix or _USUAL_IMPORTS
    call = f"_main({prefix!r}, {program!r}, {tests.function!r})"
    given = json.dumps([{"arguments": call.arguments, "named": call.named} for call in calls])
    snippet = Snippet((_HARNESS + call,), stdin=given.encode(), echo=False)
    return clock.run(snippet, sum(len(json.dumps(call.results)) for call in calls))


def _is_whole(result: Result) -> bool:
    return result.status is Status.OK and not result.truncated


def _returned(stdout: bytes, count: int) -> list[Any]:
    """What the harness wrote for each call, [result] or None; None for all if it isn't that."""
    lines = stdout.split(b"\n")
    if len(lines) != count + 1 or lines[-1]:
        return [None] * count
    try:
        return [json.loads(line) for line in lines[:-1]]
    except (ValueError, RecursionError):
        return [None] * count


def _is_right(got: Any, results: Sequence[Any]) -> bool:
    is_result = isinstance(got, list) and len(got) == 1
    return is_result and any(same_value(got[0], each) for each in results)


def _stripped_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(got: str, expected: str) -> bool:
    if got == expected:
        return True
    tokens = got.split(), expected.split()
    if len(tokens[0]) != len(tokens[1]) or not all(map(_NUMBER.fullmatch, tokens[0] + tokens[1])):
        return False
    return all(Decimal(a) == Decimal(b) for a, b in zip(*tokens, strict=True))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floats
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
