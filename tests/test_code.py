"""The code suite: its programs, what it asks, its solver, and what tests make of answers."""

import ast
import calendar
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from elpo_jax.config import PolicyConfig, SandboxConfig, SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks import make_suite
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.code import drafting, trusted
from elpo_jax.tasks.code.program import Program, as_function, as_script, filled, reading
from elpo_jax.tasks.code.suite import CodeSuite
from elpo_jax.tasks.code.table import PROGRAMS
from elpo_jax.tasks.code_tests import from_dict
from elpo_jax.tasks.problems import Call, split_of

ROWS = [program for rows in PROGRAMS.values() for program in rows]
SANDBOX = Sandbox(SandboxConfig())  # starts when it is used first
SUITE = CodeSuite("short", SANDBOX)


def drafts(program, count, seed=0):
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        yield rng, drafting.draw(rng, program)


def code_of(message):
    return message["tool_calls"][0]["function"]["arguments"]["code"]


def test_there_are_more_than_a_hundred_programs_all_distinct():
    assert len(ROWS) > 100
    assert len({program.asks for program in ROWS}) == len(ROWS)
    solutions = {(program.takes, program.code) for program in ROWS}
    assert len(solutions) == len(ROWS)


@pytest.mark.parametrize("program", ROWS, ids=lambda program: program.asks)
def test_programs_have_the_form_that_the_suite_needs(program):
    lines = program.code.split("\n")
    assert lines[-1].startswith("return ")
    assert not any("return" in line for line in lines[:-1])
    assert program.slip[0] in program.code
    assert program.slip[1] != program.slip[0]
    assert '"' not in program.code + program.slip[1]  # JSON would write two characters
    assert set(filled(program.asks, dict.fromkeys("kjcdpv", ""))).isdisjoint("{}")


@pytest.mark.parametrize("program", ROWS, ids=lambda program: program.asks)
def test_examples_and_tests_show_the_slip_and_all_forms_agree(program):
    for rng, draft in drafts(program, 12):
        example = drafting.draw_example(rng, draft)
        tests = draft.tests(drafting.draw_tests(rng, draft))
        # A trial prints what the question says, and with the slip something else.
        right, wrong = (trusted.printed(draft.trial(example, slipped)) for slipped in (False, True))
        assert draft.question(example).endswith(f" {right.rstrip()}.")
        assert wrong not in (right, "")
        # The solution passes the tests in its own form, the function with the slip doesn't.
        for test in tests.stdin:
            assert trusted.printed(draft.solution, test.input) == test.output
        calls = [test.arguments for test in tests.calls]
        results = [test.results[0] for test in tests.calls]
        assert trusted.call(draft.function, calls) == results
        assert not calls or trusted.call(draft.slipped, calls) != results
        assert len({repr(x) for x in results} | {test.output for test in tests.stdin}) > 1
        # They survive JSON, in which they are kept.
        assert from_dict(json.loads(json.dumps(asdict(tests)))) == tests


def test_every_program_can_be_learnt():
    """Whatever falls to the held-out split, each program is in training too."""
    for program in ROWS:
        splits = Counter(split_of(draft.subject) for _, draft in drafts(program, 60))
        assert splits[TRAIN] > 0, program.asks


def test_programs_are_right():
    """Some of them, against other ways to work the same out."""
    others = {
        "the factorial of n": lambda n: int(np.prod(range(1, n + 1))),
        "n in binary": lambda n: format(n, "b"),
        "the greatest common divisor of m and n": lambda m, n: int(np.gcd(m, n)),
        "the least common multiple of m and n": lambda m, n: int(np.lcm(m, n)),
        "the running sums of x": lambda x: np.cumsum(x).tolist(),
        "the differences of neighbours in x": lambda x: np.diff(x).tolist(),
        "the product of x": lambda x: int(np.prod(x)),
        "the middle one of x in order": lambda x: int(np.median(x)),
        "the largest so far at each place of x": lambda x: np.maximum.accumulate(x).tolist(),
        "the largest sum of a run of x": lambda x: max(
            sum(x[i:j]) for i in range(len(x)) for j in range(i + 1, len(x) + 1)
        ),
        "whether n is a leap year": calendar.isleap,
        "the number of shortest ways over a grid of m by n": lambda m, n: _binomial(m + n, n),
        "row n of Pascal's triangle, row 0 is 1": lambda n: [_binomial(n, k) for k in range(n + 1)],
        "the edit distance of s and t": _edit_distance,
        "whether the letters of t are in s in their order": _is_subsequence,
        "the sum of the numbers from 1 to n": lambda n: sum(range(n + 1)),
    }
    by_name = {program.asks: program for program in ROWS}
    for asks, other in others.items():
        for rng, draft in drafts(by_name[asks], 10):
            arguments = draft.program.draw_arguments(rng, small=False)
            assert trusted.call(draft.function, [arguments]) == [other(*arguments)], asks


def _binomial(n, k):
    return 1 if k in (0, n) else _binomial(n - 1, k - 1) + _binomial(n - 1, k)


def _edit_distance(s, t):
    if not s or not t:
        return len(s) + len(t)
    rest = _edit_distance(s[1:], t[1:]) + (s[0] != t[0])
    return min(rest, _edit_distance(s[1:], t) + 1, _edit_distance(s, t[1:]) + 1)


def _is_subsequence(s, t):
    return not t or (bool(s) and _is_subsequence(s[1:], t[1:] if s[0] == t[0] else t))


def test_forms_by_hand():
    program = Program("x n", "?", "y = x * {k}\nreturn y + [n]", ("{k}", "2"))
    body = program.body({"k": "3"})
    assert as_function(["x", "n"], body) == "def f(x, n):\n    y = x * 3\n    return y + [n]"
    assert as_script(reading(["x", "n"]), body) == (
        "x = list(map(int, input().split()))\nn = int(input())\ny = x * 3\nprint(y + [n])"
    )
    assert program.body({"k": "3"}, slipped=True)[0] == "y = x * 2"
    assert filled("{1: {k}, 'a': {c}}", {"k": "3", "c": "'b'"}) == "{1: 3, 'a': 'b'}"


def test_what_runs_in_this_process_is_as_a_notebook_shows_it():
    assert trusted.printed("x = 2\nprint(x, 3)\nx + 1") == "2 3\n3\n"
    assert trusted.printed("'a' + 'b'") == "'ab'\n"
    assert trusted.printed("None") == ""
    assert trusted.printed("print(input() + input())", "a\nb\n") == "ab\n"
    assert trusted.call("def f(x):\n    x.sort()\n    return x", [[[2, 1]], [3]]) == [
        [1, 2],
        trusted.FAILED,
    ]


def test_tasks_are_pure_and_of_their_split():
    for split in (TRAIN, HELD_OUT):
        for index in range(40):
            task = SUITE.task(split, index)
            assert task == CodeSuite("short", SANDBOX).task(split, index)
            assert split_of(SUITE.subject(task)) == split
            assert task.calls == 1
            assert task.kind in PROGRAMS
            assert ast.literal_eval(repr(task.answer)) == task.answer
    questions = {SUITE.subject(SUITE.task(HELD_OUT, index)) for index in range(300)}
    assert len(questions) > 150


def test_the_solver_tries_its_program_once_and_with_a_slip_twice():
    for index in range(40):
        task = SUITE.task(TRAIN, index)
        thrifty, hasty = SUITE.demonstration(task), SUITE.demonstration(task, 1.0)
        assert [turn["role"] for turn in thrifty] == ["assistant", "tool", "assistant"]
        assert hasty[2:] == thrifty
        assert task.question.endswith(f" {thrifty[1]['content']}.")
        assert not task.question.endswith(f" {hasty[1]['content']}.")
        assert code_of(hasty[0]) != code_of(thrifty[0])
        inside = thrifty[-1]["content"].removeprefix("```python\n").removesuffix("\n```")
        compile(inside, "<answer>", "exec")
    slips = sum(len(SUITE.demonstration(SUITE.task(TRAIN, i), 0.3)) == 5 for i in range(200))
    assert 40 <= slips <= 80


def test_the_solver_is_answered_as_the_interpreter_would():
    for index in range(12):
        turns = SUITE.demonstration(SUITE.task(TRAIN, index), 1.0)
        for turn, answer in zip(turns[:-1:2], turns[1::2], strict=True):
            state = SUITE.tools[0].initial_state()
            _, observation = SUITE.tools[0].call(state, {"code": code_of(turn)})
            assert observation.text == answer["content"]
            assert observation.error is None
            assert SUITE.observe(Call("code_interpreter", {"code": code_of(turn)})) == observation


def test_episodes_fit_384_tokens_and_turns_128_even_with_every_slip():
    tools = [tool.schema for tool in SUITE.tools]
    chat = make_chat(PolicyConfig(tokenizer="embedded:code"), tools)
    system = {"role": "system", "content": SUITE.system_prompt}
    for index in range(150):
        task = SUITE.task(TRAIN, index)
        turns = SUITE.demonstration(task, 1.0)
        user = {"role": "user", "content": task.question}
        tokens, is_policy = chat.demonstration([system, user, *turns])
        assert len(tokens) <= 384
        longest = max(map(len, "".join(" x"[int(each)] for each in is_policy).split()))
        assert longest <= 128


def test_solutions_pass_and_slips_fail():
    for index in range(16):
        task = SUITE.task(HELD_OUT, index)
        turns = SUITE.demonstration(task, 1.0)
        verdict = SUITE.verify(task, turns[-1]["content"])
        assert verdict.success
        assert verdict.score == 1
        assert turns[-1]["content"] == f"```python\n{verdict.extracted}\n```"
        tests = from_dict(task.answer)
        if tests.calls:
            function = code_of(turns[0]).rpartition("\n")[0]
            wrong = SUITE.verify(task, f"```python\n{function}\n```")
            assert not wrong.success
            assert wrong.score < 1


ANSWERS = {
    "nothing": "",
    "no block": "def f(s):\n    return s",
    "an open block": "```python\ndef f(s):\n    return s[::-1]",
    "another function": "```python\ndef g(s):\n    return s[::-1]\n```",
    "a syntax error": "```python\ndef f(s) return\n```",
    "an early exit": "```python\nimport os\nos._exit(0)\n```",
    "the example alone": "```python\ndef f(s):\n    return 'kayak'\n```",
    "words": "```python\nprint('PASSED')\ndef f(s):\n    print('PASSED')\n```",
    "equal to all": (
        "```python\nclass All(str):\n    def __eq__(self, other):\n        return True\n"
        "def f(s):\n    return All('x')\n```"
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_wrong_answers_fail(answer):
    program = next(program for program in ROWS if program.asks == "s backwards")
    rng, draft = next(pair for pair in drafts(program, 20) if pair[1].form == drafting.FUNCTION)
    answers = asdict(draft.tests(drafting.draw_tests(rng, draft)))
    task = next(
        task
        for task in (SUITE.task(TRAIN, index) for index in range(50))
        if from_dict(task.answer).calls
    )
    verdict = SUITE.verify(replace(task, answer=answers), answer)
    assert not verdict.success
    assert verdict.score < 1


def test_there_is_one_length():
    with pytest.raises(UsageError, match=r"suite\.length: expected 'short' for suite code"):
        make_suite(SuiteConfig("code", length="long"), sandbox=SANDBOX)
    with pytest.raises(UsageError, match=r"suite\.search: expected false, suite code"):
        make_suite(SuiteConfig("code", search=True), sandbox=SANDBOX)
