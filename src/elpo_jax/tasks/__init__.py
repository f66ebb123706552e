"""The suites by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from elpo_jax.config import SuiteConfig
from elpo_jax.errors import UsageError
from elpo_jax.tasks.base import Suite
from elpo_jax.tasks.files import KEYS
from elpo_jax.tasks.math import MathSuite
from elpo_jax.tasks.question import Question
from elpo_jax.tasks.science.suite import ScienceSuite

Questions = Mapping[str, Sequence[Question]]  # from files, by split

Passages = Sequence[str]  # of a corpus

SUITES: Mapping[str, Callable[[SuiteConfig, Questions, Passages | None], Suite]] = {
    "math": lambda config, questions, corpus: MathSuite(config.length, questions),
    "science": lambda config, questions, corpus: ScienceSuite(config.length, config.search, corpus),
}


def make_suite(
    config: SuiteConfig,
    questions: Questions = MappingProxyType({}),
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
    suite = SUITES[config.name](config, questions, corpus)
    unread = [split for split in questions if suite.size(split) is None]
    if unread:
        raise UsageError(
            [f"{KEYS[split]}: expected none, suite {config.name} reads no file" for split in unread]
        )
    return suite
