"""The compounds that questions are about: salts by charge balance, and those of `compounds.json`.

Each belongs to one split, by a hash of its composition, so that no formula is in both.
"""

import json
from functools import cache
from importlib import resources
from math import gcd

from elpo_jax.tasks.problems import split_of
from elpo_jax.tasks.science.formulas import Formula, parse

_CATIONS = {
    1: "Li Na K Rb Cs Ag Cu Tl NH4",
    2: "Be Mg Ca Sr Ba Mn Fe Co Ni Cu Zn Cd Hg Sn Pb Cr V Ti Pd Pt Eu Yb Sm Ra",
    3: "Al Ga In Tl Sc Y La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ti V Cr Mn Fe Co Rh Ir Ru Au "
    "Bi Sb",
    4: "Ti Zr Hf Ce Th U Sn Pb Mn V Si Ge Pt Nb Mo W Re",
    5: "V Nb Ta",
    6: "W Mo",
}
_ANIONS = {
    1: "F Cl Br I H OH NO3 NO2 ClO3 ClO4 BrO3 IO3 CN SCN MnO4 VO3 BO2 NH2 N3 HCO3 HSO4",
    2: "O S Se Te SO4 SO3 CO3 CrO4 SeO4 SeO3 MoO4 WO4 SiO3 S2O3 C2O4 Cr2O7 HPO4",
    3: "N P As PO4 AsO4 BO3",
}
# Cations of charge 4 and more occur as oxides and halides, not as salts of oxoacids.
_HIGH_CHARGE_ANIONS = frozenset({"F", "Cl", "Br", "I", "O", "S", "Se"})


@cache
def compounds(length: str, split: str) -> tuple[Formula, ...]:
    """The compounds of a split, distinct in composition, in a fixed order.

    'short': two or three elements, subscripts to 12, no parentheses. 'long': three or more
    elements with parentheses or water of crystallisation, or four and more.
    """
    listed = json.loads(resources.files(__package__).joinpath("compounds.json").read_text())
    chosen: dict[str, Formula] = {}
    for text in [*_salts(), *(text for group in listed.values() for text in group)]:
        formula = parse(text)
        if _fits(formula, length) and split_of(formula.key) == split:
            chosen.setdefault(formula.key, formula)
    return tuple(chosen.values())


def _fits(formula: Formula, length: str) -> bool:
    elements = len(formula.composition)
    plain = formula.text.isalnum()
    if length == "short":
        return plain and elements in (2, 3) and max(formula.composition.values()) <= 12
    return 4 <= elements <= 6 or (elements == 3 and not plain)


def _salts() -> list[str]:
    """Every cation with every anion in the ratio that balances their charges."""
    return [
        _salt(cation, charge, anion, negative)
        for charge, cations in _CATIONS.items()
        for cation in cations.split()
        for negative, anions in _ANIONS.items()
        for anion in anions.split()
        if charge < 4 or anion in _HIGH_CHARGE_ANIONS
    ]


def _salt(cation: str, charge: int, anion: str, negative: int) -> str:
    common = gcd(charge, negative)
    return _times(cation, negative // common) + _times(anion, charge // common)


def _times(ion: str, count: int) -> str:
    if count == 1:
        return ion
    is_element = ion.isalpha() and sum(letter.isupper() for letter in ion) == 1
    return f"{ion}{count}" if is_element else f"({ion}){count}"
