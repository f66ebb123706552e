"""The suites by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from elpo_jax.config import SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks.base import Suite
from elpo_jax.tasks.code.suite import CodeSuite
from elpo_jax.tasks.files import KEYS
from elpo_jax.tasks.math import MathSuite
from elpo_jax.tasks.math_judge import PRELOAD
from elpo_jax.tasks.question import Question
from elpo_jax.tasks.question_suite import QuestionSuite
from elpo_jax.tasks.science.suite import ScienceSuite
from elpo_jax.tasks.verifiers import Verifiers
from elpo_jax.tools.base import Tool
from elpo_jax.tools.code_interpreter import CodeInterpreter
from elpo_jax.tools.search import Search, index_folder

Questions = Mapping[str, Sequence[Question]]  # from files, by split

Passages = Sequence[str]  # of a corpus


@dataclass(frozen=True)
class Means:
    """What suites are made of besides their settings.

    Attributes:
      questions: from files, by split.
      sandbox: where code runs; None will do for a suite that runs none.
      corpus: passages of the user's file to search; None: there is none.
      fail_fast: the tests of a program may end with the first that fails.
    """

    questions: Questions
    sandbox: Sandbox | None
    corpus: Passages | None
    fail_fast: bool

    def sandbox_for(self, suite: str) -> Sandbox:
        """The sandbox; raises ValueError if there is none."""
        if self.sandbox is None:
            raise ValueError(f"make_suite: sandbox: expected one for suite {suite}, got None")
        return self.sandbox


def _code_suite(config: SuiteConfig, means: Means) -> Suite:
    return CodeSuite(config.length, means.sandbox_for("code"), means.fail_fast)


def _question_suite(config: SuiteConfig, means: Means) -> Suite:
    sandbox = means.sandbox_for("questions")
    if config.length != "short":
        got = repr(config.length)
        raise UsageError([f"suite.length: expected 'short' for suite questions, got {got}"])
    tools: list[Tool] = [CodeInterpreter(sandbox, sandbox.config.session)]
    if config.search:
        if means.corpus is None:
            raise UsageError(["suite.corpus: expected a file to search, got none"])
        tools.append(Search(means.corpus, index_folder()))
    # Processes of their own for mathematics: they import what the policy's programs needn't.
    verifiers = Verifiers(
        programs=sandbox,
        mathematics=Sandbox(sandbox.config, PRELOAD),
        fail_fast=means.fail_fast,
    )
    return QuestionSuite(means.questions, tools, verifiers)


SUITES: Mapping[str, Callable[[SuiteConfig, Means], Suite]] = {
    "code": _code_suite,
    "math": lambda config, means: MathSuite(config.length, means.questions),
    "questions": _question_suite,
    "science": lambda config, means: ScienceSuite(config.length, config.search, means.corpus),
}

_SEARCHING = ("questions", "science")


def make_suite(
    config: SuiteConfig,
    questions: Questions = MappingProxyType({}),
    sandbox: Sandbox | None = None,
    corpus: Passages | None = None,
    fail_fast: bool = False,
) -> Suite:
    """The suite that the configuration names.

    Args:
      config: its settings.
      questions: of the splits that have a file.
      sandbox: where code runs; None will do for a suite that runs none.
      corpus: passages of the user's file to search, if there is one.
      fail_fast: the tests of a program may end with the first that fails.

    Raises:
      ValueError: for an unknown name, or settings or files that the suite refuses.
    """
    if config.name not in SUITES:
        closest = difflib.get_close_matches(config.name, SUITES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"suite.name: expected one of {sorted(SUITES)}, got {config.name!r} "
            f"(closest: {closest!r})"
        )
    if corpus is not None and not config.search:
        raise UsageError(["suite.corpus: expected none without suite.search"])
    if config.search and config.name not in _SEARCHING:
        raise UsageError([f"suite.search: expected false, suite {config.name} doesn't search"])
    suite = SUITES[config.name](config, Means(questions, sandbox, corpus, fail_fast))
    unread = [split for split in questions if suite.size(split) is None]
    if unread:
        raise UsageError(
            [f"{KEYS[split]}: expected none, suite {config.name} reads no file" for split in unread]
        )
    return suite
