"""The tool: what the policy reads, and sessions."""

import pytest
from sandboxes import LIMITS, TIERS, opened, why_not

from elpo_jax.rollout.tool_calls import CallParser
from elpo_jax.sandbox import Limits, Result, Status
from elpo_jax.tools.base import Observation
from elpo_jax.tools.code_interpreter import CodeInterpreter, observed

BEST = next((tier for tier in TIERS if not why_not(tier)), None)


@pytest.fixture(scope="module")
def sandbox():
    if BEST is None:
        pytest.skip("no tier holds here")
    with opened(BEST) as sandbox:
        yield sandbox


def call(tool, code, state=()):
    return tool.call(state, {"code": code})


@pytest.mark.parametrize(
    ("code", "observation"),
    [
        ("print(1)\n2", Observation("1\n2")),
        ("x = 1", Observation("(no output)")),
        ("print('a\\n\\n')", Observation("a")),
        (
            "print('so far')\n1/0",
            Observation(
                "so far\nTraceback (most recent call last):\n"
                '  File "<cell 1>", line 2, in <module>\n    1/0\n'
                "ZeroDivisionError: division by zero",
                "tool_error",
            ),
        ),
        ("while True: pass", Observation("error: out of time (1 s of CPU time)", "tool_error")),
        ("bytearray(1 << 30)", Observation("error: out of memory (256 MB)", "tool_error")),
        ("import ctypes; ctypes.string_at(0)", None),
        ("import warnings; warnings.warn('careful'); print(3)", None),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\0')", Observation("\\xff\x002")),
    ],
)
def test_observations(sandbox, code, observation):
    state, seen = call(CodeInterpreter(sandbox), code)
    assert state == ()
    if observation:
        assert seen == observation
    elif "ctypes" in code:
        assert seen == Observation("error: the interpreter crashed", "tool_error")
    else:
        assert seen.error is None
        assert seen.text.startswith("3\n")
        assert "careful" in seen.text


def test_results_that_are_hard_to_cause():
    limits = Limits(wall_seconds=7, output_bytes=2048)
    slept = Result(Status.TIMEOUT, b"x", b"", 0.1, 7.0, False)
    assert observed(slept, limits) == Observation("x\nerror: out of time (7 s)", "tool_error")
    flood = Result(Status.OUTPUT, b"y" * 2048, b"", 0.1, 7.0, True)
    assert observed(flood, limits).text.endswith("\nerror: more than 2 KB of output")
    silent = Result(Status.ERROR, b"", b"", 0.1, 7.0, False)
    assert observed(silent, limits).text.startswith("error: ended with an exit status")
    long = Result(Status.ERROR, b"", b"a" * 9000 + b"\nValueError: last", 0.1, 0.1, False)
    assert len(observed(long, limits).text) <= 1200
    assert observed(long, limits).text.endswith("ValueError: last")


def test_calls_are_strangers_unless_in_a_session(sandbox):
    stateless, session = CodeInterpreter(sandbox), CodeInterpreter(sandbox, session=True)
    assert "Nothing stays" in stateless.schema["description"]
    assert "Variables stay" in session.schema["description"]
    state, _ = call(stateless, "x = 1")
    assert "NameError" in call(stateless, "x", state)[1].text
    state, _ = call(session, "x = 1")
    assert call(session, "x", state)[1] == Observation("1")


def test_a_branch_of_a_session_goes_on_where_its_prefix_stood(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    first, _ = call(tool, "import random\nx = [random.random()]")
    second, seen = call(tool, "x.append(2)\nprint('once')\n1/0", first)
    assert seen.text.startswith("once\n")
    assert call(tool, "len(x)", second)[1] == Observation("2")  # what an error left behind
    assert call(tool, "len(x)", first)[1] == Observation("1")
    assert call(tool, "x[0]", first)[1] == call(tool, "x[0]", second)[1]
    assert first == ("import random\nx = [random.random()]",)


def test_a_cell_that_leaves_is_no_part_of_a_session(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    first, _ = call(tool, "x = 1")
    for code in ("import os; os._exit(0)", "import os; os._exit(3)", "import os; os.abort()"):
        after, _ = call(tool, code, first)
        assert after == first
    left, _ = call(tool, "x += 1; import sys; sys.exit()", first)  # its effects stay
    assert call(tool, "x", left)[1] == Observation("2")


def test_cells_that_are_run_again_have_time_of_their_own(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    busy = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    state = ()
    for _ in range(3):
        state, seen = call(tool, busy, state)
        assert seen == Observation("(no output)")


def test_generators_without_a_seed_are_drawn_again(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    state, _ = call(tool, "import numpy\nx = numpy.random.default_rng().random()")
    assert call(tool, "x", state)[1] == call(tool, "1\nx", state)[1]


def test_arguments_are_checked_before_they_get_here(sandbox):
    parser = CallParser([CodeInterpreter(sandbox)])
    text = '<tool_call>{"name": "code_interpreter", "arguments": {"code": 3}}</tool_call>'
    (error,) = parser.parse(text).calls
    assert error.error == "bad_arguments"


def test_the_state_is_cells_alone(sandbox):
    tool = CodeInterpreter(sandbox, session=True)
    assert tool.initial_state() == ()
    assert LIMITS.wall_seconds < 30
