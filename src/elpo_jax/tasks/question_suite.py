"""The suite of questions from files: mathematics, multiple choice and programs, with the paper's
tool."""

from collections.abc import Mapping, Sequence

from elpo_jax.errors import UsageError
from elpo_jax.tasks.base import HELD_OUT, TRAIN, Message, Task, Verdict
from elpo_jax.tasks.files import KEYS
from elpo_jax.tasks.question import CODE, LETTER, MATH, NUMBER, Question
from elpo_jax.tasks.verifiers import Verifiers
from elpo_jax.tools.base import Tool

_TOOLS = "Think step by step. You can run Python code with the tool where that helps."
_BOX = "Put the final answer in \\boxed{}."
_PROGRAM = "End with the whole program in one ```python block. It"
INSTRUCTIONS: Mapping[str, str] = {
    MATH: f"{_TOOLS} {_BOX}",
    NUMBER: f"{_TOOLS} {_BOX}",
    LETTER: f"{_TOOLS} Put the letter of the right option, and nothing else, in \\boxed{{}}.",
    CODE: f"{_TOOLS} {_PROGRAM} reads from standard input and prints the answer.",
}
_FUNCTION = f"{_TOOLS} {_PROGRAM} defines {{function}}, which is called."


class QuestionSuite:
    """Questions of any domain, each with its own verifier. There is no solver: a cold start learns
    from a file of conversations.

    Args:
      questions: by split; both have some.
      tools: what the policy may call.
      verifiers: judge the responses.

    Raises:
      UsageError: a split has no file.
    """

    name = "questions"
    system_prompt = ""

    def __init__(
        self,
        questions: Mapping[str, Sequence[Question]],
        tools: Sequence[Tool],
        verifiers: Verifiers,
    ):
        missing = [key for split, key in KEYS.items() if not questions.get(split)]
        if missing:
            expected = "expected a file, since suite questions makes up none"
            raise UsageError([f"{key}: {expected}" for key in missing])
        self._questions = questions
        self._tools = tuple(tools)
        self._verifiers = verifiers

    @property
    def tools(self) -> Sequence[Tool]:
        return self._tools

    def size(self, split: str) -> int | None:
        return len(self._questions[split])

    def task(self, split: str, index: int) -> Task:
        """The `index`-th question of a split's file.

        Raises:
          ValueError: for an unknown split, or an index that it doesn't have.
        """
        question = self._question(f"{split}/{index}")
        return Task(
            f"{split}/{index}",
            question.kind,
            f"{question.text}\n\n{_instruction(question)}",
            _shown_answer(question),
            None,
        )

    def demonstration(self, task: Task, detours: float = 0.0) -> list[Message]:
        """Raises ValueError: there is no solver."""
        raise ValueError(f"demonstration: task: expected one with a solver, got {task.id}")

    def verify(self, task: Task, response: str) -> Verdict:
        """Judges the final turn by the question's verifier.

        Raises:
          ToolFailure: a sandbox broke; there is no verdict then.
        """
        return self._verifiers.verify(self._question(task.id), response)

    def _question(self, name: str) -> Question:
        split, _, index = name.partition("/")
        if split not in self._questions:
            raise ValueError(f"task: split: expected {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
        questions = self._questions[split]
        if not 0 <= int(index) < len(questions):
            raise ValueError(f"task: index: expected 0 to {len(questions) - 1}, got {index}")
        return questions[int(index)]


def _instruction(question: Question) -> str:
    if question.function:
        return _FUNCTION.format(function=question.function)
    return INSTRUCTIONS[question.verifier]


def _shown_answer(question: Question) -> dict[str, str | float]:
    """What is written beside a rollout tree. Tests, which may be huge, stay with the question."""
    answer: dict[str, str | float] = {"verifier": question.verifier}
    if question.verifier != CODE:
        answer["value"] = question.answer
    if question.verifier == NUMBER:
        answer["tolerance"] = question.tolerance
    return answer
