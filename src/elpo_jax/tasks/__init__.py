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

SUITES: Mapping[str, Callable[[SuiteConfig, Questions], Suite]] = {
    "math": lambda config, questions: MathSuite(config.length, questions),
    "science": lambda config, questions: ScienceSuite(config.length),
}


def make_suite(config: SuiteConfig, questions: Questions = MappingProxyType({})) -> Suite:
    """The suite that the configuration names.

    Args:
      config: its settings.
      questions: of the splits that have a file.

    Raises:
      ValueError: for an unknown name, or settings or files that the suite refuses.
    """
    if config.name not in SUITES:
        closest = difflib.get_close_matches(config.name, SUITES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"suite.name: expected one of {sorted(SUITES)}, got {config.name!r} "
            f"(closest: {closest!r})"
        )
    suite = SUITES[config.name](config, questions)
    unread = [split for split in questions if suite.size(split) is None]
    if unread:
        raise UsageError(
            [f"{KEYS[split]}: expected none, suite {config.name} reads no file" for split in unread]
        )
    return suite
