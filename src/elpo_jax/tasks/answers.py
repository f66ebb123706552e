"""Final answers: finding them in `\\boxed{}` or a block of code, and reading numbers, units and
option letters.

Everything here reads a hostile response in time linear in its length.
"""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

MAX_ANSWER = 200  # characters inside the box; a longer one is no answer
_BOX = "\\boxed{"
_CODE, _FENCE = "```python\n", "\n```"

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
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|rm|ce)(?![a-zA-Z])|\\[,;:!$ ]|[\s$~{}]")
_LETTER = re.compile(r"\(([A-Z])\)[.:]?|([A-Z])[).:]?")


class Quantity(NamedTuple):
    value: float
    unit: str  # without spaces; '' if there is none


def boxed(response: str) -> str | None:
    """The inside of the last `\\boxed{...}`, braces balanced; None if it is missing or unclosed."""
    start = response.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for offset, character in enumerate(response[start : start + MAX_ANSWER + 1]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return response[start : start + offset].strip()
    return None


def code_block(response: str) -> str | None:
    """The inside of the last ```python block; None if it is missing or unclosed."""
    _, opened, rest = response.rpartition(_CODE)
    inside, closed, _ = rest.partition(_FENCE)
    return inside if opened and closed else None


def plain(answer: str) -> str:
    """An answer without LaTeX's text commands, braces, dollar signs and spacing."""
    return _MARKUP.sub("", answer).replace("\u2212", "-")  # U+2212: the typographic minus


def quantity(answer: str) -> Quantity | None:
    """A number and its unit: '159.69 g/mol', '1,234', '1.5e22', '1.5\\times10^{22} atoms'.

    None if the answer is not one finite number with at most something after it.
    """
    match = _QUANTITY.fullmatch(plain(answer))
    if match is None:
        return None
    mantissa = match["mantissa"].replace(",", "")
    value = float(f"{mantissa}e{match['e'] or match['power'] or '0'}")
    return Quantity(value, match["unit"]) if math.isfinite(value) else None


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


def letter(answer: str) -> str | None:
    """The option letter, if the answer is one letter alone: 'B', '(B)' or 'B.'."""
    match = _LETTER.fullmatch(plain(answer))
    return match.group(1) or match.group(2) if match else None
