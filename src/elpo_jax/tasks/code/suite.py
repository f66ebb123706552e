"""The code suite: small Python programs, tried in the interpreter and judged by hidden tests."""

from dataclasses import asdict, dataclass
from functools import partial

from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks import answers
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tasks.code import trusted
from elpo_jax.tasks.code.drafting import draw, draw_example, draw_tests
from elpo_jax.tasks.code.table import PROGRAMS
from elpo_jax.tasks.code_judge import judge
from elpo_jax.tasks.code_tests import from_dict
from elpo_jax.tasks.problems import Call, Problem, ProblemSuite, Solver, split_of
from elpo_jax.tools.base import Observation
from elpo_jax.tools.code_interpreter import CodeInterpreter

KINDS = tuple(PROGRAMS)
_ROWS = tuple((kind, program) for kind, rows in PROGRAMS.items() for program in rows)


@dataclass(frozen=True)
class CodeProblem(Problem):
    """A problem whose solver may be hasty.

    Attributes:
      hasty: what is tried first then: the solver's trial with a typical slip.
    """

    hasty: str


class CodeSuite(ProblemSuite):
    """Generated tasks from the table of programs.

    Each asks for a function, or a quarter of them for a program that reads and prints, and shows
    what one example gives. The solver tries its program on the example, in one call, and answers
    with it. Hidden tests judge the answer: all have to pass. No task of one split is asked in the
    other with the same form, words and constants; most programs are in both.

    Args:
      length: there is only 'short'.
      sandbox: where the policy's programs run.
      fail_fast: an answer's tests may end with the first that fails.

    Raises:
      UsageError: for another length.
    """

    name = "code"
    system_prompt = (
        "Write Python. Try it with the tool, one call a turn. End with the whole program in a "
        "```python block. A program reads each variable from a line, a list as its items with "
        "spaces between, and prints a value as print does."
    )

    def __init__(self, length: str, sandbox: Sandbox, fail_fast: bool = False):
        if length != "short":
            raise UsageError([f"suite.length: expected 'short' for suite code, got {length!r}"])
        super().__init__([CodeInterpreter(sandbox, sandbox.config.session)], [length])
        self._sandbox = sandbox
        self._fail_fast = fail_fast

    def problem(self, split: str, index: int) -> CodeProblem:
        rng = self.rng(split, index)
        while True:
            kind, program = _ROWS[rng.integers(len(_ROWS))]
            draft = draw(rng, program)
            if split_of(draft.subject) == split:
                break
        example = draw_example(rng, draft)
        return CodeProblem(
            kind=kind,
            subject=draft.subject,
            question=draft.question(example),
            answer=asdict(draft.tests(draw_tests(rng, draft))),
            solve=partial(_solve, draft.trial(example), draft.solution),
            hasty=draft.trial(example, slipped=True),
        )

    def detour(self, problem: Problem, call: Call) -> Call | None:
        """The call with a slip in its program; what it gives isn't what the example says."""
        return _trial(problem.hasty) if isinstance(problem, CodeProblem) else None

    def observe(self, call: Call) -> Observation:
        """The interpreter's answer, without the sandbox: solvers only run the table's programs."""
        return Observation(trusted.printed(call.arguments["code"]).rstrip("\n"))

    def final_turn(self, answer: str) -> str:
        return f"```python\n{answer}\n```"

    def verify(self, task: Task, response: str) -> Verdict:
        """Runs the last ```python block against the hidden tests.

        Raises:
          ToolFailure: the sandbox broke.
        """
        source = answers.last_program(response)
        if source is None:
            return Verdict(False, None)
        tests, seconds = from_dict(task.answer), self._sandbox.config.tests_seconds
        result = judge(self._sandbox, source, tests, self._fail_fast, seconds)
        return Verdict(result.success, source, None if self._fail_fast else result.score)


def _solve(trial: str, solution: str) -> Solver:
    yield _trial(trial)
    return solution


def _trial(source: str) -> Call:
    return Call(CodeInterpreter.name, {"code": source})
