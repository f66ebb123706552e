"""The suites by name."""

import difflib
from collections.abc import Callable, Mapping

from elpo_jax.config import SuiteConfig
from elpo_jax.tasks.base import Suite
from elpo_jax.tasks.science.suite import ScienceSuite

SUITES: Mapping[str, Callable[[SuiteConfig], Suite]] = {
    "science": lambda config: ScienceSuite(config.length),
}


def make_suite(config: SuiteConfig) -> Suite:
    """The suite that the configuration names.

    Raises:
      ValueError: for an unknown name, or settings that the suite refuses.
    """
    if config.name not in SUITES:
        closest = difflib.get_close_matches(config.name, SUITES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"suite.name: expected one of {sorted(SUITES)}, got {config.name!r} "
            f"(closest: {closest!r})"
        )
    return SUITES[config.name](config)
