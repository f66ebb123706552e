"""Questions from files: what is asked, what is judged, and by whom."""

import json

import pytest

from elpo_jax.config import SandboxConfig, SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Result, Sandboxes, Status
from elpo_jax.tasks import make_suite
from elpo_jax.tasks.base import HELD_OUT, TRAIN, Verdict
from elpo_jax.tasks.code_tests import ProgramTests, StdinTest, from_asserts
from elpo_jax.tasks.question import LETTER, NUMBER, Question, code_question
from elpo_jax.tasks.verifiers import Verifiers

STDIN = ProgramTests(stdin=tuple(StdinTest(str(n), str(n * n)) for n in (1, 2, 3)))
QUESTIONS = {
    TRAIN: [
        Question("algebra", "Half of one?", "\\frac{1}{2}"),
        Question("gpqa", "Which?\n\nA. x\nB. y", "B", verifier=LETTER),
        Question("mass", "How heavy?", "9.5 g/mol", verifier=NUMBER, tolerance=0.01),
        code_question("squares", "Print the square.", STDIN),
        code_question("squares", "Square it.", from_asserts("assert f(3) == 9", "f", "", "x")),
    ],
    HELD_OUT: [Question("algebra", "Two?", "2")],
}


@pytest.fixture(scope="module")
def sandboxes():
    sandboxes = Sandboxes(SandboxConfig())
    yield sandboxes
    sandboxes.close()


@pytest.fixture(scope="module")
def suite(sandboxes):
    return make_suite(SuiteConfig("questions"), QUESTIONS, sandboxes)


def verdict(suite, index, response):
    return suite.verify(suite.task(TRAIN, index), response)


def test_a_question_asks_for_the_form_of_its_answer(suite):
    tasks = [suite.task(TRAIN, index) for index in range(suite.size(TRAIN))]
    for task, question in zip(tasks, QUESTIONS[TRAIN], strict=True):
        assert task.question.startswith(f"{question.text}\n\nThink step by step. ")
        assert (task.kind, task.calls) == (question.kind, None)
        json.dumps(task.answer)
    asked = [
        task.question.removeprefix(q.text) for task, q in zip(tasks, QUESTIONS[TRAIN], strict=True)
    ]
    assert all("\\boxed{}" in text for text in asked[:3])
    assert "letter" in asked[1]
    assert all("```python" in text and "\\boxed" not in text for text in asked[3:])
    assert "standard input" in asked[3]
    assert "defines f," in asked[4]
    assert tasks[3].answer == {"verifier": "code"}  # tests aren't written beside trees
    assert tasks[2].answer == {"verifier": "number", "value": "9.5 g/mol", "tolerance": 0.01}
    assert [task.id for task in tasks[:2]] == ["train/0", "train/1"]


def test_the_tool_is_the_code_interpreter(suite):
    assert [tool.name for tool in suite.tools] == ["code_interpreter"]


def test_there_is_no_solver(suite):
    with pytest.raises(ValueError, match="expected one with a solver, got train/0"):
        suite.demonstration(suite.task(TRAIN, 0))


@pytest.mark.parametrize(
    ("response", "success", "vote"),
    [
        ("\\boxed{0.50}", True, "0.5"),
        ("\\boxed{\\frac12}", True, "\\frac12"),
        ("\\boxed{0.5} or rather \\boxed{0.6}", False, "0.6"),
        ("As asked in \\boxed{2}, half is \\boxed{1/2}", True, "1/2"),
        ("\\boxed{}", False, None),
        ("0.5", False, None),
        ("", False, None),
        ("\\boxed{" + "9" * 1_000_000 + "}", False, None),
        ("\\boxed{9^{9}}", False, "9^9"),
    ],
)
def test_mathematics(suite, response, success, vote):
    assert verdict(suite, 0, response) == Verdict(success, vote)


@pytest.mark.parametrize(
    ("response", "success", "vote"),
    [
        ("\\boxed{B}", True, "B"),
        ("Answer: (B)", True, "B"),
        ("\\boxed{A, B}", False, None),
        ("\\boxed{A} \\boxed{B}", True, "B"),
        ("\\boxed{C}", False, "C"),
        ("B", False, None),
        ("", False, None),
    ],
)
def test_letters(suite, response, success, vote):
    assert verdict(suite, 1, response) == Verdict(success, vote)


@pytest.mark.parametrize(
    ("response", "success", "vote"),
    [
        ("\\boxed{9.55\\ \\text{g/mol}}", True, "9.55"),
        ("\\boxed{9.45}", True, "9.45"),
        ("\\boxed{9.7}", False, "9.7"),
        ("\\boxed{9.5 kg}", False, "9.5 kg"),
        ("\\boxed{-9.5}", False, "-9.5"),
        ("\\boxed{heavy}", False, "heavy"),
        ("9.5", False, None),
    ],
)
def test_numbers_with_units(suite, response, success, vote):
    assert verdict(suite, 2, response) == Verdict(success, vote)


@pytest.mark.parametrize(
    ("gold", "answer", "success"),
    [
        ("50%", "50\\%", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", "0.5%", False),
        ("50%", "0.5 m", False),
        ("0.5", "50%", False),
        ("5 m/s", "5\\,\\mathrm{m\\,s^{-1}}", True),
        ("5 m/s", "5\\,\\mathrm{m\\,s}", False),
        ("5 km", "5000 m", False),
        ("3", "3/4", False),
    ],
)
def test_numbers_and_their_units(gold, answer, success):
    question = Question("number", "?", gold, verifier=NUMBER, tolerance=0.01)
    judged = Verifiers(None, None, False).verify(question, f"\\boxed{{{answer}}}")
    assert judged.success is success


SQUARE = "n = int(input())\nprint(n * n)"
ONE_AND_TWO = "n = int(input())\nprint([0, 1, 4, 5][n])"


def test_programs(suite):
    right = verdict(suite, 3, f"So:\n```python\n{SQUARE}\n```")
    assert (right.success, right.score) == (True, 1.0)
    assert right.extracted.startswith("program ")
    assert right.extracted.endswith(": 3 of 3 tests")
    for response in ("", SQUARE, "\\boxed{4}", f"```python\n{SQUARE}"):
        assert verdict(suite, 3, response) == Verdict(False, None)
    assert verdict(suite, 4, "```\ndef f(x):\n    return x * x\n```").success
    assert not verdict(suite, 4, "```python\nprint('PASSED')\n```").success


def test_the_score_of_a_program(sandboxes):
    response = f"```python\n{ONE_AND_TWO}\n```"
    for fail_fast, score in ((False, 2 / 3), (True, 0.0)):
        found = Verifiers(sandboxes.get(), sandboxes.get(), fail_fast).verify(
            QUESTIONS[TRAIN][3], response
        )
        assert (found.success, found.score) == (False, score)
        assert found.extracted.endswith(": 2 of 3 tests")


class Slow:
    """A sandbox in which a run that comes to 4 takes 0.6 s."""

    config = SandboxConfig(tests_seconds=1.0)

    def run(self, snippet, limits):
        return Result(Status.OK, b"4", b"", 0.0, 0.6, False)


def test_all_tests_of_an_answer_share_their_time():
    question = code_question("fours", "Print 4.", ProgramTests(stdin=(StdinTest("", "4"),) * 3))
    found = Verifiers(Slow(), Slow(), False).verify(question, "```python\nprint(4)\n```")
    assert (found.success, found.score) == (False, 2 / 3)


def test_there_is_no_length(sandboxes):
    with pytest.raises(
        UsageError, match=r"^suite.length: expected 'short' for suite questions, got"
    ):
        make_suite(SuiteConfig("questions", "long"), QUESTIONS, sandboxes)


def test_each_split_needs_a_file(sandboxes):
    with pytest.raises(UsageError) as caught:
        make_suite(SuiteConfig("questions"), {TRAIN: QUESTIONS[TRAIN]}, sandboxes)
    assert caught.value.problems == (
        "data.eval: expected a file, since suite questions makes up none",
    )


@pytest.mark.parametrize(("split", "index"), [("test", 0), (TRAIN, 5), (TRAIN, -1)])
def test_tasks_that_there_are_not(suite, split, index):
    with pytest.raises(ValueError, match=r"^task: (split|index): expected"):
        suite.task(split, index)
