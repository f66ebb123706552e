"""What programs are given: domains of arguments, drawn small for examples and larger for tests."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Short words, each a single token of the suite's tokenizer. Some are palindromes, some anagrams of
# others; many have letters twice.
WORDS = (
    "apple", "banana", "bird", "cherry", "civic", "cocoa", "coffee", "eagle", "ferry", "grape",
    "hippo", "kayak", "kiwi", "koala", "lemon", "level", "llama", "mango", "melon", "moose",
    "noon", "olive", "onion", "otter", "panda", "pear", "pepper", "plum", "puffin", "radar",
    "raven", "robin", "salsa", "tiger", "trout", "yak", "zebra", "zoo",
)  # fmt: skip

# Constants of programs, as they stand in words and code; single tokens too.
QUOTED = tuple(f"'{letter}'" for letter in "aceiklmnopry-+*._/")

# Draws a value; a small one if asked to.
Domain = Callable[[np.random.Generator, bool], Any]


def integer(low: int, high: int) -> Domain:
    """An integer from `low` to `high`."""
    return lambda rng, small: int(rng.integers(low, high + 1))


def numbers(shortest: int = 3, longest: int = 7, low: int = 1, high: int = 9) -> Domain:
    """A list of integers; a small one is at most one longer than the shortest."""

    def draw(rng: np.random.Generator, small: bool) -> list[int]:
        length = _length(rng, small, shortest, longest)
        return [int(value) for value in rng.integers(low, high + 1, length)]

    return draw


def ascending(shortest: int = 3, longest: int = 7, high: int = 9) -> Domain:
    """As `numbers`, in order."""
    inner = numbers(shortest, longest, 1, high)
    return lambda rng, small: sorted(inner(rng, small))


def words(shortest: int = 2, longest: int = 5) -> Domain:
    """A list of words, one of them sometimes twice; small as with `numbers`."""

    def draw(rng: np.random.Generator, small: bool) -> list[str]:
        chosen = [_word(rng) for _ in range(_length(rng, small, shortest, longest))]
        if len(chosen) > 2 and rng.random() < 0.4:
            chosen[-1] = chosen[int(rng.integers(len(chosen) - 1))]
        return chosen

    return draw


def text(shortest: int = 1, longest: int = 4) -> Domain:
    """Words with spaces between."""
    inner = words(shortest, longest)
    return lambda rng, small: " ".join(inner(rng, small))


def mixed(rng: np.random.Generator, small: bool) -> str:
    """A text in which some words are in upper case or begin with a capital."""
    forms = (str.upper, str.capitalize, str)
    return " ".join(forms[rng.integers(3)](_word(rng)) for _ in range(int(rng.integers(1, 4))))


def anagram(rng: np.random.Generator, small: bool) -> str:
    """One of a few words that have most letters in common."""
    return choice("lemon", "melon", "level", "lemmon", "melnon", "lemno", "nolem")(rng, small)


def letter(letters: str) -> Domain:
    """One of these letters or marks, in quotes."""
    return choice(*(f"'{each}'" for each in letters))


def choice(*values: Any) -> Domain:
    """One of these."""
    return lambda rng, small: values[int(rng.integers(len(values)))]


def _length(rng: np.random.Generator, small: bool, shortest: int, longest: int) -> int:
    top = min(longest, shortest + 1) if small else longest
    return int(rng.integers(shortest, top + 1))


def _word(rng: np.random.Generator) -> str:
    return WORDS[int(rng.integers(len(WORDS)))]


# By the name of a parameter, unless a program says otherwise.
DOMAINS: dict[str, Domain] = {
    "s": text(1, 4),
    "t": text(1, 1),
    "w": words(),
    "x": numbers(),
    "y": numbers(),
    "n": integer(1, 40),
    "m": integer(1, 40),
}
