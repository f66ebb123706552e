"""The suites by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from elpo_jax.config import SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks.base import Suite
from elpo_jax.tasks.files import KEYS
from elpo_jax.tasks.math import MathSuite
from elpo_jax.tasks.math_judge import PRELOAD
from elpo_jax.tasks.question import Question
from elpo_jax.tasks.question_suite import QuestionSuite
from elpo_jax.tasks.science.suite import ScienceSuite
from elpo_jax.tasks.verifiers import Verifiers
from elpo_jax.tools.code_interpreter import CodeInterpreter

Questions = Mapping[str, Sequence[Question]]  # from files, by split


def _question_suite(
    config: SuiteConfig, questions: Questions, sandbox: Sandbox | None, fail_fast: bool
) -> Suite:
    if sandbox is None:
        raise ValueError("make_suite: sandbox: expected one for suite questions, got None")
    if config.length != "short":
        got = repr(config.length)
        raise UsageError([f"suite.length: expected 'short' for suite questions, got {got}"])
    # Processes of their own for mathematics: they import what the policy's programs needn't.
    verifiers = Verifiers(
        programs=sandbox,
        mathematics=Sandbox(sandbox.config, PRELOAD),
        fail_fast=fail_fast,
    )
    return QuestionSuite(questions, [CodeInterpreter(sandbox, sandbox.config.session)], verifiers)


SUITES: Mapping[str, Callable[[SuiteConfig, Questions, Sandbox | None, bool], Suite]] = {
    "math": lambda config, questions, *_: MathSuite(config.length, questions),
    "questions": _question_suite,
    "science": lambda config, *_: ScienceSuite(config.length),
}


def make_suite(
    config: SuiteConfig,
    questions: Questions = MappingProxyType({}),
    sandbox: Sandbox | None = None,
    fail_fast: bool = False,
) -> Suite:
    """The suite that the configuration names.

    Args:
      config: its settings.
      questions: of the splits that have a file.
      sandbox: where code runs; None will do for a suite that runs none.
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
    suite = SUITES[config.name](config, questions, sandbox, fail_fast)
    unread = [split for split in questions if suite.size(split) is None]
    if unread:
        raise UsageError(
            [f"{KEYS[split]}: expected none, suite {config.name} reads no file" for split in unread]
        )
    return suite
