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
from elpo_jax.tasks.question import Question
from elpo_jax.tasks.science.suite import ScienceSuite

Questions = Mapping[str, Sequence[Question]]  # from files, by split

Passages = Sequence[str]  # of a corpus


@dataclass(frozen=True)
class Means:
    """What suites are made of besides their settings.

    Attributes:
      questions: from files, by split.
      sandbox: where code runs; None: nowhere.
      sandbox: where code runs; None will do for a suite that runs none.
      corpus: passages of the user's file to search; None: there is none.
    """

    questions: Questions
    sandbox: Sandbox | None
    corpus: Passages | None


def _code_suite(config: SuiteConfig, means: Means) -> Suite:
    if means.sandbox is None:
        raise ValueError("make_suite: sandbox: expected one for suite code, got None")
    return CodeSuite(config.length, means.sandbox)


SUITES: Mapping[str, Callable[[SuiteConfig, Means], Suite]] = {
    "code": _code_suite,
    "math": lambda config, means: MathSuite(config.length, means.questions),
    "science": lambda config, means: ScienceSuite(config.length, config.search, means.corpus),
}


def make_suite(
    config: SuiteConfig,
    questions: Questions = MappingProxyType({}),
    sandbox: Sandbox | None = None,
    corpus: Passages | None = None,
) -> Suite:
    """The suite that the configuration names.

    Args:
      config: its settings.
      questions: of the splits that have a file.
      corpus: passages of the user's file to search, if there is one.

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
    if config.search and config.name != "science":
        raise UsageError([f"suite.search: expected false, suite {config.name} doesn't search"])
    suite = SUITES[config.name](config, Means(questions, sandbox, corpus))
    unread = [split for split in questions if suite.size(split) is None]
    if unread:
        raise UsageError(
            [f"{KEYS[split]}: expected none, suite {config.name} reads no file" for split in unread]
        )
    return suite
