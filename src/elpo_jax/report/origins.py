"""Where the contents of calls and answers come from: the prompt, a tool's output, or nowhere.

Works on text alone, so it needs to know neither suites nor tools. A number or name counts as given
if it stands anywhere in the prompt (the question, and the tools' schemas with their enums) or in an
earlier output of the same episode. So does an output that is rounded, and a share that the prompt
writes as 25% or 1/4. What words say (half, a dozen) isn't known.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Digits, then a fraction and an exponent: '174.97', '6.022e23'. No sign: in 7-5 it is none.
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_LEADING = re.compile(r"[^\w.+-]*(?:[+-]\s*)?((?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)")
# A word or up to three; what holds operators or more words is no name.
_NAME = re.compile(r"[^\W\d_]\w*(?:[ -]\w+){0,2}")
# Parts of words: a capital begins one, so 'Fe2O3' holds Fe and O, but no F.
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]|\d+|[^\W\d_a-zA-Z]+")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?(?:%|percent)")
_FRACTION = re.compile(r"(?<![\d./])(\d{1,6})/(\d{1,6})(?![\d./])")
_TOLERANCE = 0.01  # answers may be rounded
_DECIMALS = (0, 1, 2, 3)  # that outputs may be rounded to


class Origins(NamedTuple):
    """What the calls of an episode hold that nothing before them gave.

    Attributes:
      numbers: of two digits or more.
      names: arguments that are a word, or up to three.
    """

    numbers: frozenset[float]
    names: frozenset[str]


def origins(prompt: str, turns: Sequence[Mapping[str, Any]]) -> Origins:
    """Looks for the contents of calls in what came before them.

    Args:
      prompt: its text.
      turns: an episode's nodes of a tree document, in order.
    """
    words = _words(prompt)
    given = _with_rounded([*_numbers(prompt), *_shares(prompt)])
    made_up, unknown = set(), set()
    for turn in turns:
        for exchange in turn["exchanges"]:
            for value in _leaves(exchange["call"]["arguments"]) if exchange["call"] else []:
                made_up |= set(_numbers(value, digits=2)) - given
                if _NAME.fullmatch(value) and not _holds(words, value):
                    unknown.add(value)
        for text in outputs(turn):
            given |= _with_rounded(_numbers(text))
            words += _words(text)
    return Origins(frozenset(made_up), frozenset(unknown))


def drifts(answer: str | None, turns: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answer is a number, but not that of the last output that is one.

    They may differ by 1 %, since answers are rounded, and in their signs.
    """
    texts = [text for turn in turns for text in outputs(turn)]
    last = next((x for x in map(_leading, reversed(texts)) if x is not None), None)
    given = _leading(answer or "")
    if given is None or last is None:
        return False
    meant = [given, *_shares(answer or "")]
    return all(abs(x - last) > _TOLERANCE * max(x, last) for x in meant)


def outputs(turn: Mapping[str, Any]) -> list[str]:
    """What the calls of a turn were answered with."""
    return [each["observation"]["text"] for each in turn["exchanges"] if each["observation"]]


def _leading(text: str) -> float | None:
    """The number that a text begins with, without its sign; '$1,024 a day' gives 1024."""
    found = _LEADING.match(text)
    return float(found[1].replace(",", "")) if found else None


def _numbers(text: str, digits: int = 1) -> Iterator[float]:
    """The numbers in a text that have so many digits, not counting those of exponents.

    '1,024' may be one number or two, so it gives 1, 24 and 1024.
    """
    joined = _THOUSANDS.sub("", text)
    for found in _NUMBER.findall(text) + (_NUMBER.findall(joined) if joined != text else []):
        if sum(map(str.isdigit, re.split("[eE]", found)[0])) >= digits:
            yield float(found)


def _with_rounded(numbers: Iterable[float]) -> set[float]:
    return {each for x in numbers for each in (x, *(round(x, n) for n in _DECIMALS))}


def _shares(text: str) -> Iterator[float]:
    """0.25 for 25%, with the 100 that makes it so, and for 1/4."""
    for percent in _PERCENT.findall(text):
        yield from (float(percent) / 100, 100.0)
    for numerator, denominator in _FRACTION.findall(text):
        if int(denominator):
            yield int(numerator) / int(denominator)


def _words(text: str) -> str:
    """The text as words and as parts of words, in small letters, each between bars."""
    parts = [part.casefold() for part in _PART.findall(text)]
    whole = re.findall(r"\w+", text.casefold())
    return f"|{'|'.join(parts)}|\n|{'|'.join(whole)}|\n"


def _holds(words: str, name: str) -> bool:
    return any(line in words for line in _words(name).split("\n") if line.strip("|"))


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in an argument's value, as text."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
