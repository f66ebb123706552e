"""Final answers: finding them in a response, and reading numbers, units and option letters.

Everything here reads a hostile response in time linear in its length.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from elpo_jax.tasks import units

MAX_ANSWER = 200  # characters inside the box; a longer one is no answer
_BOX = re.compile(r"\\boxed\s{0,4}\{")

_UNITS: Mapping[str, frozenset[str]] = {
    "": frozenset(),
    "%": frozenset({"%", "\\%", "percent"}),
    "K": frozenset({"K", "kelvin", "kelvins", "Kelvin"}),
    "atoms": frozenset({"atoms", "atom"}),
    "g": frozenset({"g", "gram", "grams"}),
    "g/cm3": frozenset({"g/cm3", "g/cm^3", "g/cm\u00b3", "gcm^-3", "g/mL", "g/ml"}),
    "g/mol": frozenset({"g/mol", "gmol^-1", "grams/mole", "gramspermole"}),
    "mol": frozenset({"mol", "mole", "moles"}),
}
_MANTISSA = r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+\.?[0-9]*|\.[0-9]+)"
_TIMES = r"(?:x|\*|\u00d7|\u00b7|\\times|\\cdot)"
_EXPONENT = r"[+-]?[0-9]{1,4}"
_QUANTITY = re.compile(
    rf"(?:\\approx|\u2248)?(?P<mantissa>{_MANTISSA})"
    rf"(?:[eE](?P<e>{_EXPONENT})|{_TIMES}10\^(?P<power>{_EXPONENT}))?"
    r"(?P<unit>(?![0-9.,]).*)"
)
_MACRO = re.compile(r"\\(?:cdot|circ|degree|mu|Omega|times)(?![a-zA-Z])")
_SPACE = re.compile(r"\\[,;:! ]|[\s~]")
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|rm|ce)(?![a-zA-Z])|\\\$|[$ {}]")
_LETTER = re.compile(r"\(([A-Z])\)[.:]?|([A-Z])[).:]?")
# Words before an answer outside a box: 'the answer is (C)', 'Final answer: C', '**Answer**: C'.
_ANSWER_IS = re.compile(r"\banswer[\s*]{0,4}(?::|is\b)[\s*:]{0,4}", re.IGNORECASE)
_AFTER = 120  # characters of an answer outside a box that are looked at
_OPTION = r"(?:\([A-Z]\)|[A-Z])(?![\w'\u2019-])"
_NAMED = r"[Oo]ption[\s*]{1,4}"
_FIRST_OPTION = re.compile(rf"[\s*]*(?P<named>{_NAMED})?(?P<option>{_OPTION})(?P<rest>.*)")
_FURTHER_OPTION = re.compile(
    rf"[\s*).]*(?:[,;/&]|or\b|and\b)[\s*]*(?:or\b|and\b)?[\s*]*(?:{_NAMED})?{_OPTION}|[\s*]*\([A-Z]\)"
)
_WORDS_TOO = "AI"  # letters that are words: 'the answer is A large one'
_FENCE = re.compile(r" {0,3}(`{3,}+|~{3,}+) *+([^\s`]*+)[^`]*+")
_PYTHON = ("python", "py", "python3")


class Quantity(NamedTuple):
    value: float
    unit: str  # without spaces; '' if there is none
    spaced_unit: str = ""  # with them


def boxed(response: str, limit: int = MAX_ANSWER) -> str | None:
    """The inside of the last `\\boxed{...}`, braces balanced.

    None if it is missing, unclosed or longer than `limit` characters.
    """
    start = _last_end(_BOX, response)
    if start is None:
        return None
    depth = 1
    escaped = False  # \\{ and \\} are braces that are printed
    for offset, character in enumerate(response[start : start + limit + 1]):
        if not escaped:
            depth += (character == "{") - (character == "}")
        escaped = character == "\\" and not escaped
        if depth == 0:
            return response[start : start + offset].strip()
    return None


def has_box(text: str) -> bool:
    """Whether a box is begun."""
    return _BOX.search(text) is not None


def plain(answer: str) -> str:
    """An answer without LaTeX's text commands, braces, dollar signs and spacing."""
    return _spaced(answer).replace(" ", "")


def _spaced(answer: str) -> str:
    """As `plain`, but with blanks for spacing of any kind, and after the macros of units."""
    blanks = _SPACE.sub(" ", _MACRO.sub(lambda macro: f"{macro[0]} ", answer))
    marked = _MARKUP.sub(lambda mark: " " if mark[0] == " " else "", blanks)
    return marked.replace("\u2212", "-")  # U+2212: the typographic minus


def quantity(answer: str) -> Quantity | None:
    """A number and its unit: '159.69 g/mol', '1,234', '1.5e22', '1.5\\times10^{22} atoms'.

    None if the answer is not one finite number with at most something after it.
    """
    match = _QUANTITY.fullmatch(plain(answer))
    if match is None:
        return None
    mantissa = match["mantissa"].replace(",", "")
    value = float(f"{mantissa}e{match['e'] or match['power'] or '0'}")
    if not math.isfinite(value):
        return None
    return Quantity(value, match["unit"], _after(_spaced(answer), match.start("unit")))


def _after(spaced: str, count: int) -> str:
    """What comes after so many characters that aren't blank."""
    for index, character in enumerate(spaced):
        if count == 0:
            return spaced[index:].strip()
        count -= character != " "
    return ""


def number(answer: str) -> Decimal | None:
    """A number alone, exactly: '18', '-1,234.50', '$18', '25 %'. None if it is anything else."""
    match = _QUANTITY.fullmatch(plain(answer))
    if match is None or not is_unit(match["unit"], "%"):
        return None
    value = Decimal(f"{match['mantissa'].replace(',', '')}e{match['e'] or match['power'] or '0'}")
    return value if math.isfinite(value) else None


def is_unit(found: str, expected: str) -> bool:
    """Whether a unit is the expected one in a usual spelling, or missing.

    A missing unit is accepted because questions name the unit to answer in.

    Raises:
      ValueError: if no question uses the expected unit.
    """
    if expected not in _UNITS:
        raise ValueError(f"is_unit: expected: one of {sorted(_UNITS)}, got {expected!r}")
    return not found or found in _UNITS[expected]


def has_unit_of(found: Quantity, expected: Quantity) -> bool:
    """Whether a unit is missing, spelled as the expected one, or in another usual spelling of it.

    Units aren't converted: 5 g isn't 0.005 kg.
    """
    spellings = next((known for known in _UNITS.values() if expected.unit in known), ())
    if found.unit in ("", expected.unit, *spellings):
        return True
    unit = units.parse(found.spaced_unit)
    return unit is not None and unit == units.parse(expected.spaced_unit)


def letter(answer: str) -> str | None:
    """The option letter, if the answer is one letter alone: 'B', '(B)' or 'B.'."""
    match = _LETTER.fullmatch(plain(answer))
    return match.group(1) or match.group(2) if match else None


def final_letter(response: str) -> str | None:
    """The option letter that a response ends with.

    In the last `\\boxed{}`, where there is one, as `letter` reads it. Else after the last 'answer
    is' or 'Answer:', where exactly one letter stands, perhaps after 'option': 'Answer: (C) 5 m' is
    C, 'A or B' is nothing.
    """
    if has_box(response):
        inside = boxed(response)
        return letter(inside) if inside else None
    end = _last_end(_ANSWER_IS, response)
    if end is None:
        return None
    match = _FIRST_OPTION.match(_plain_line(response[end : end + _AFTER]))
    if match is None or _FURTHER_OPTION.match(match["rest"]):
        return None
    option = match["option"].strip("()")
    is_word = option in _WORDS_TOO and match["option"] == option and not match["named"]
    return None if is_word and re.match(r" [a-z]", match["rest"]) else option


def _last_end(pattern: re.Pattern[str], text: str) -> int | None:
    ends = deque((found.end() for found in pattern.finditer(text)), maxlen=1)
    return ends[0] if ends else None


def _plain_line(text: str) -> str:
    """The first line that isn't blank, without signs of mathematics and LaTeX's text commands."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return re.sub(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}|\\[()]|\$", r"\1", first)


def last_program(response: str) -> str | None:
    """The last closed fenced block that says it is Python; without one the last that says nothing.

    None if there is neither.
    """
    found: dict[bool, str] = {}
    fence, is_python, lines = "", None, list[str]()
    for line in response.split("\n"):
        if not fence:
            if opening := _FENCE.fullmatch(line):
                fence, name = opening[1], opening[2].lower()
                is_python = name in _PYTHON if name in (*_PYTHON, "") else None
                lines = []
        elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            if is_python is not None:
                found[is_python] = "\n".join(lines)
            fence = ""
        else:
            lines.append(line)
    return found.get(True, found.get(False))
