"""Reward terms, against numbers by hand."""

import pytest

from elpo_jax.config import RewardConfig
from elpo_jax.tasks.base import Verdict
from elpo_jax.tasks.rewards import TERMS, Ending, reward

SUCCESS = Verdict(True, "4")
FAILURE = Verdict(False, None)


def ending(verdict=SUCCESS, turns=3, tokens=100, max_tokens=1000):
    return Ending(verdict, turns, tokens, max_tokens)


@pytest.mark.parametrize(
    ("term", "given", "expected"),
    [
        ("plus_minus_one", ending(), 1),
        ("plus_minus_one", ending(FAILURE), -1),
        ("zero_one", ending(), 1),
        ("zero_one", ending(FAILURE), 0),
        ("fraction", ending(), 1),
        ("fraction", ending(FAILURE), 0),
        ("fraction", ending(Verdict(False, "code", passed=0.75)), 0.75),
        ("demyagent", ending(turns=10), 1),
        ("demyagent", ending(FAILURE, turns=1), -1),
        ("demyagent", ending(FAILURE, turns=2), -0.9),
        ("demyagent", ending(FAILURE, turns=5), -0.6),
        ("demyagent", ending(FAILURE, turns=16), -0.6),
        ("overlong", ending(tokens=0), 0),
        ("overlong", ending(tokens=800), 0),
        ("overlong", ending(tokens=850), -0.25),
        ("overlong", ending(tokens=1000), -1),
        ("overlong", ending(FAILURE, tokens=900), -0.5),
    ],
)
def test_terms(term, given, expected):
    assert reward(given, RewardConfig((term,), overlong_buffer=200)) == pytest.approx(expected)


def test_terms_add_up():
    config = RewardConfig(("demyagent", "overlong"), overlong_buffer=200)
    assert reward(ending(FAILURE, tokens=900), config) == pytest.approx(-0.8 - 0.5)
    assert reward(ending(), config) == 1


def test_a_buffer_longer_than_the_response():
    config = RewardConfig(("overlong",), overlong_buffer=2000)
    assert reward(ending(tokens=0), config) == pytest.approx(-0.5)


def test_every_term_is_known_by_its_own_name():
    assert {name: term.__name__ for name, term in TERMS.items()} == {name: name for name in TERMS}
