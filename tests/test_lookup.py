"""The lookup tool, and the facts about the elements that it serves."""

import json
import re
import sys
from functools import partial
from importlib import resources
from itertools import pairwise

import jsonschema
import pytest

from elpo_jax.errors import RunFault
from elpo_jax.tasks.science import derive_elements
from elpo_jax.tasks.science.elements import by_symbol, element_lookup, elements
from elpo_jax.tasks.science.suite import ScienceSuite
from elpo_jax.tools.base import Observation
from elpo_jax.tools.lookup import Lookup

LOOKUP = element_lookup()


def look_up(element, name):
    state, observation = LOOKUP.call(LOOKUP.initial_state(), {"element": element, "property": name})
    assert state is None
    return observation


@pytest.mark.parametrize("element", ["Fe", "fe", "FE", "iron", "Iron", " Fe ", "26", 26])
def test_elements_are_found_by_symbol_name_and_number(element):
    assert look_up(element, "name").text == "Iron"


# From general knowledge (IUPAC 2021 abridged weights, CRC Handbook), not from the source package.
@pytest.mark.parametrize(
    ("element", "name", "expected"),
    [
        ("H", "atomic_weight", "1.008"),
        ("Fe", "atomic_weight", "55.845"),
        ("U", "atomic_weight", "238.03"),
        ("Na", "atomic_weight", "22.99"),
        ("Au", "number", "79"),
        ("W", "name", "Tungsten"),
        ("79", "symbol", "Au"),
        ("Cl", "group", "17"),
        ("Cl", "period", "3"),
        ("Cl", "category", "halogen"),
        ("Ar", "category", "noble gas"),
        ("F", "electronegativity", "3.98"),
        ("Fe", "melting_point", "1811 K"),
        ("Hg", "melting_point", "234.3 K"),
        ("N", "boiling_point", "77.36 K"),
        ("Os", "density", "22.59 g/cm3"),
        ("Al", "density", "2.7 g/cm3"),
    ],
)
def test_values_as_shown(element, name, expected):
    observation = look_up(element, name)
    assert observation.error is None
    assert observation.text == expected


@pytest.mark.parametrize(
    ("element", "name", "text"),
    [
        ("Xx", "symbol", "error: unknown element"),
        ("0", "symbol", "error: unknown element"),
        (119, "symbol", "error: unknown element"),
        ("", "symbol", "error: unknown element"),
        ("Fe2O3", "atomic_weight", "error: unknown element"),
        ("\u0662\u0666", "symbol", "error: unknown element"),
        ("Fe" * 500_000, "symbol", "error: unknown element"),
        ("Fe", "mass", "error: unknown property"),
        ("Fe", "", "error: unknown property"),
        ("He", "electronegativity", "error: not known"),
        ("Og", "density", "error: not known"),
        ("U", "group", "error: not known"),
    ],
)
def test_errors(element, name, text):
    observation = look_up(element, name)
    assert observation.error == "tool_error"
    assert observation.text == text


def test_schema_accepts_what_the_tool_serves_and_refuses_the_rest():
    validator = jsonschema.Draft202012Validator(LOOKUP.schema["parameters"])
    assert validator.is_valid({"element": "Fe", "property": "density"})
    assert validator.is_valid({"element": 26, "property": "density"})
    assert not validator.is_valid({"element": "Fe", "property": "mass"})
    assert not validator.is_valid({"element": None, "property": "density"})
    assert not validator.is_valid({"element": "Fe"})


def test_a_bad_table_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Lookup([], keys=["symbol"])
    with pytest.raises(ValueError, match="unique keys, got 'a'"):
        Lookup([{"symbol": "A"}, {"symbol": "a"}], keys=["symbol"])
    with pytest.raises(ValueError, match="unique keys"):
        Lookup([{"symbol": None}], keys=["symbol"])
    with pytest.raises(ValueError, match="expected properties"):
        Lookup([{"symbol": "A"}, {"name": "B"}], keys=["symbol"])


def test_all_118_elements_once_in_order():
    table = elements()
    assert [element.number for element in table] == list(range(1, 119))
    assert len({element.symbol for element in table}) == len(by_symbol()) == 118
    assert len({element.name for element in table}) == 118
    assert all(1 <= len(element.symbol) <= 2 for element in table)


def test_weights_rise_except_at_the_known_inversions():
    table = elements()
    assert all(element.atomic_weight > 0 for element in table)
    # Each is at least twice the atomic number but for hydrogen, and no more than 2.7 times.
    assert all(1.95 < e.atomic_weight / e.number < 2.7 for e in table[1:])
    falls = {
        (a.symbol, b.symbol)
        for a, b in pairwise(table)
        if a.number < 90 and b.atomic_weight < a.atomic_weight
    }
    assert falls == {("Ar", "K"), ("Co", "Ni"), ("Te", "I")}


def test_periods_and_groups_follow_from_the_atomic_number():
    noble = [2, 10, 18, 36, 54, 86, 118]
    for element in elements():
        assert element.period == 1 + sum(element.number > last for last in noble)
        assert (element.category == "noble gas") == (element.number in noble)
        if element.group is not None and element.number > 2:
            # Counted from the end of the period, the p-block has its last places: 18 is noble.
            if element.group >= 13:
                assert element.group == 18 - (noble[element.period - 1] - element.number)
            elif element.group <= 2:
                assert element.group == element.number - noble[element.period - 2]
    assert {e.symbol for e in elements() if e.group is None} >= {"Ce", "U", "Yb"}
    assert all(e.group is not None for e in elements() if e.period <= 5)


def test_properties_are_physical():
    for element in elements():
        for name in ("electronegativity", "melting_point", "boiling_point", "density"):
            value = element.quantity(name)
            assert value is None or value > 0
        if element.electronegativity is not None:
            assert 0.7 <= element.electronegativity <= 3.98
        if element.melting_point and element.boiling_point and element.symbol != "As":
            assert element.melting_point < element.boiling_point  # arsenic sublimes
        if element.number >= 100:  # never seen in bulk: only predictions exist
            assert element.melting_point is element.boiling_point is element.density is None


def test_shown_values_have_few_digits():
    for element in elements():
        for name in ("atomic_weight", "melting_point", "boiling_point", "density"):
            shown = element.shown(name)
            if shown is not None:
                number = shown.split()[0]
                digits = number.split("e")[0].replace(".", "").lstrip("0")
                assert len(digits) <= 5
                assert float(number) == pytest.approx(element.quantity(name), rel=6e-4)


def test_the_data_names_its_source():
    text = resources.files("elpo_jax.tasks.science").joinpath("elements.json").read_text()
    document = json.loads(text)
    assert document["source"].startswith("mendeleev 1.3.0")
    assert document["license"] == "MIT"
    assert "Copyright (c) 2015 Lukasz Mentel" in document["license_text"]
    assert "derive_elements" in document["command"]


def test_deriving_without_the_source_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mendeleev", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mendeleev"):
        derive_elements.main([str(tmp_path / "elements.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "no\nnumber", "x" * 9999])
def test_an_answer_that_the_suites_own_solver_cant_use_is_told_in_a_line(monkeypatch, text):
    """By this tool, or by the calculator that was asked to compute with it."""
    monkeypatch.setattr(Lookup, "call", lambda self, state, arguments: (state, Observation(text)))
    suite = ScienceSuite()
    with pytest.raises(RunFault) as caught:
        # A hundred, since some kinds only compare what they read.
        list(map(partial(suite.task, "train"), range(100)))
    (line,) = caught.value.problems
    said = r"suite \w+: under its own solver: tool '(lookup|calculator)' answered '.*': \w+Error: "
    assert re.match(said, line), line
    assert len(line) < 300
