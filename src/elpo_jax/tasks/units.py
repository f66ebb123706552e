"""Units of numbers: which texts are units, and which of them are the same.

Nothing is converted, and no factor is known: 5 km isn't 5000 m, nor N m a J.
"""

import re
from collections import Counter
from collections.abc import Mapping

_NAMES: Mapping[str, str] = {
    name: symbol
    for symbol, names in {
        "%": "percent",
        "\u00b0": "deg degree degrees",
        "\u03a9": "ohm ohms",
        "A": "amp amps ampere amperes",
        "C": "coulomb coulombs",
        "F": "farad farads",
        "Hz": "hertz",
        "J": "joule joules",
        "K": "kelvin kelvins",
        "L": "l liter liters litre litres",
        "N": "newton newtons",
        "Pa": "pascal pascals",
        "T": "tesla teslas",
        "V": "volt volts",
        "W": "watt watts",
        "atom": "atoms",
        "cm": "centimeter centimeters centimetre centimetres",
        "d": "day days",
        "g": "gram grams",
        "h": "hr hrs hour hours",
        "kJ": "kilojoule kilojoules",
        "kg": "kilogram kilograms",
        "km": "kilometer kilometers kilometre kilometres",
        "m": "meter meters metre metres",
        "mL": "ml milliliter milliliters millilitre millilitres",
        "min": "mins minute minutes",
        "mm": "millimeter millimeters millimetre millimetres",
        "mol": "mole moles",
        "rad": "radian radians",
        "s": "sec secs second seconds",
        "yr": "year years",
    }.items()
    for name in names.split()
}
# Other letters alone are names in mathematics: 2x, 2i, 2e.
_LETTERS = frozenset("ABCDFGHJKLMNPSTVWabcdghlmstu\u03a9\u00c5")
_WORDS = frozenset({"and", "or", "to"})  # between numbers
_LATEX = (
    (re.compile(r"\^?(?:\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])|\u00b0|\u00ba)\s*"), "\u00b0"),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])|[\u00b7\u22c5*]"), " "),
    (re.compile(r"\\mu(?![a-zA-Z])\s*|\u03bc"), "\u00b5"),  # the micro sign
    (re.compile(r"\\Omega(?![a-zA-Z])|\u2126"), "\u03a9"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\bper\b"), "/"),
    (re.compile(r"(?<=[A-Za-z])-(?=[A-Za-z])"), " "),  # ft-lb
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)
_FACTOR = re.compile(
    r"(?P<slash>/)?(?P<symbol>\u00b0?[A-Za-z\u00b5\u03a9\u00c5]+|\u00b0|%)"
    r"(?:\^?(?P<power>[+-]?[0-9]{1,2}))?(?![0-9])"
)
_SPACES = re.compile(r"\s+")
_GROUP = re.compile(r"/\(([^()/]*)\)")  # J/(mol K)

Unit = frozenset[tuple[str, int]]  # symbols with their powers; empty: none
PERCENT: Unit = frozenset({("%", 1)})


def parse(text: str) -> Unit | None:
    """The unit that a text is: 'm/s', 'm s^-1', 'kg\\cdot m^2', 'J/(mol K)', 'joules', '%'.

    Blank space separates, so that m s isn't ms; slashes are for what is next to them.

    Args:
      text: without braces and LaTeX's commands for fonts and spaces.

    Returns:
      None if it is no unit by its looks: numbers that stand alone, operators, names like x.
    """
    for pattern, symbol in _LATEX:
        text = pattern.sub(symbol, text)
    text = _GROUP.sub(lambda group: "".join(f"/{each} " for each in group[1].split()), text)
    text = _SPACES.sub(" ", text.translate(_SUPERSCRIPTS)).replace(" /", "/").replace("/ ", "/")
    text = text.strip().removesuffix(".")
    powers: Counter[str] = Counter()
    while text:
        factor = _FACTOR.match(text)
        if factor is None or not _is_symbol(factor["symbol"]):
            return None
        power = int(factor["power"] or 1)
        powers[_symbol(factor["symbol"])] += -power if factor["slash"] else power
        text = text[factor.end() :].removeprefix(" ")
    return frozenset(powers.items())


def _is_symbol(text: str) -> bool:
    return text not in _WORDS and (len(text) > 1 or text in _LETTERS or text in "\u00b0%")


def _symbol(text: str) -> str:
    return _NAMES.get(text) or _NAMES.get(text.lower() if len(text) > 3 else text, text)
