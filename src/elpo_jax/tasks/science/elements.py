"""The chemical elements: facts from `elements.json`, and how the lookup tool shows them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from elpo_jax.tools.calculator import format_number
from elpo_jax.tools.lookup import Lookup

UNITS: Mapping[str, str] = {
    "atomic_weight": "g/mol",
    "electronegativity": "",
    "melting_point": "K",
    "boiling_point": "K",
    "density": "g/cm3",
}
_DIGITS: Mapping[str, int] = {
    "atomic_weight": 5,
    "electronegativity": 3,
    "melting_point": 4,
    "boiling_point": 4,
    "density": 4,
}
_BARE = frozenset({"atomic_weight", "electronegativity"})  # shown without a unit: fewer tokens


@dataclass(frozen=True)
class Element:
    """One element; None where the source has no value.

    Attributes:
      number: atomic number.
      atomic_weight: standard atomic weight, or the mass number of the longest-lived isotope, g/mol.
      group: 1-18; None in the f-block.
      category: such as 'transition metal'.
      electronegativity: Pauling scale.
      melting_point: K.
      boiling_point: K.
      density: g/cm3, at room temperature and pressure.
    """

    number: int
    symbol: str
    name: str
    atomic_weight: float
    group: int | None
    period: int
    category: str
    electronegativity: float | None
    melting_point: float | None
    boiling_point: float | None
    density: float | None

    def quantity(self, name: str) -> float | None:
        """A numeric property, unrounded."""
        value = getattr(self, name)
        return None if value is None else float(value)

    def shown(self, name: str) -> str | None:
        """A property as the lookup tool shows it: rounded, with its unit; None if not known."""
        value = getattr(self, name)
        if isinstance(value, float):
            text = format_number(value, _DIGITS[name])
            return text if name in _BARE else f"{text} {UNITS[name]}"
        return None if value is None else str(value)


@cache
def elements() -> tuple[Element, ...]:
    """All 118 elements in order of atomic number."""
    text = resources.files(__package__).joinpath("elements.json").read_text(encoding="utf-8")
    return tuple(Element(**fields) for fields in json.loads(text)["elements"])


@cache
def by_symbol() -> Mapping[str, Element]:
    return {element.symbol: element for element in elements()}


def element_lookup() -> Lookup:
    """The lookup tool over the elements, by symbol, name or atomic number."""
    properties = tuple(Element.__dataclass_fields__)
    records = [{name: element.shown(name) for name in properties} for element in elements()]
    return Lookup(records, keys=("number", "symbol", "name"))
