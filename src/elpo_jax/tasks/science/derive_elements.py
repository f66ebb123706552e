"""Derives `elements.json` from the mendeleev package; run once, its output ships with the code.

`pip install mendeleev==1.3.0`, then `python -m elpo_jax.tasks.science.derive_elements OUT.json`.
"""

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path
from typing import Any

_CATEGORIES = {
    "Nonmetals": "nonmetal",
    "Noble gases": "noble gas",
    "Alkali metals": "alkali metal",
    "Alkaline earth metals": "alkaline earth metal",
    "Metalloids": "metalloid",
    "Halogens": "halogen",
    "Poor metals": "post-transition metal",
    "Transition metals": "transition metal",
    "Lanthanides": "lanthanide",
    "Actinides": "actinide",
}
# No weighable sample of these exists: the source's bulk properties of them are predictions.
_NO_BULK = frozenset({85, 87, *range(100, 119)})
_BULK = ("melting_point", "boiling_point", "density")
_DIGITS = 9  # enough for every published weight; drops the noise of Celsius to kelvin


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def derive() -> dict[str, Any]:
    """The contents of `elements.json`.

    Raises:
      ModuleNotFoundError: if mendeleev is not installed.
    """
    try:
        from mendeleev.mendeleev import get_all_elements
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "deriving the elements needs the mendeleev package: pip install mendeleev==1.3.0"
        ) from error
    with warnings.catch_warnings():
        # The source warns of elements with several allotropes, and gives None as melting point.
        warnings.simplefilter("ignore", UserWarning)
        elements = [_element(source) for source in get_all_elements()]
    package = importlib.metadata.distribution("mendeleev")
    notice = next(path for path in package.files or () if path.name == "LICENSE")
    return {
        "source": f"mendeleev {package.version}, https://github.com/lmmentel/mendeleev",
        "command": "python -m elpo_jax.tasks.science.derive_elements elements.json",
        "license": "MIT",
        "license_text": notice.read_text(),
        "units": {
            "atomic_weight": "g/mol",
            "electronegativity": "Pauling",
            "melting_point": "K",
            "boiling_point": "K",
            "density": "g/cm3",
        },
        "elements": elements,
    }


def _element(source: Any) -> dict[str, Any]:
    element = {
        "number": source.atomic_number,
        "symbol": source.symbol,
        "name": source.name,
        "atomic_weight": _rounded(source.atomic_weight),
        "group": source.group_id,
        "period": source.period,
        "category": _CATEGORIES[source.series],
        "electronegativity": _rounded(source.en_pauling),
        "melting_point": _rounded(source.melting_point),
        "boiling_point": _rounded(source.boiling_point),
        "density": _rounded(source.density),
    }
    if source.atomic_number in _NO_BULK:
        element.update(dict.fromkeys(_BULK))
    return element


def _dump(document: dict[str, Any]) -> str:
    """JSON with one element a line, so that a change of one fact is a change of one line."""
    head = {key: value for key, value in document.items() if key != "elements"}
    rows = ",\n".join("    " + json.dumps(element) for element in document["elements"])
    return json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "elements": [\n{rows}\n  ]\n}}\n'


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python -m elpo_jax.tasks.science.derive_elements OUT.json")
    Path(arguments[0]).write_text(_dump(derive()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
