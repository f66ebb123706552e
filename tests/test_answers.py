"""Reading final answers: ordinary ones, and ones made to break the reader."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.tasks.answers import (
    boxed,
    final_letter,
    has_unit_of,
    is_unit,
    last_program,
    letter,
    number,
    plain,
    quantity,
)
from elpo_jax.tasks.units import parse


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{159.69 g/mol}", "159.69 g/mol"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\text{B}}", r"\text{B}"),
        (r"\boxed{1.5\times10^{22}}", r"1.5\times10^{22}"),
        (r"\boxed{ Fe }", "Fe"),
        (r"\boxed{}", ""),
        ("159.69", None),
        ("", None),
        (r"\boxed{1", None),
        (r"\boxed{1} and then \boxed{2", None),
        (r"\boxed{" + "1" * 201 + "}", None),
        (r"\boxed 5", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # one printed brace
        (r"\boxed{1 \\} and more}", r"1 \\"),  # a line's end before the closing brace
    ],
)
def test_the_last_box_counts(response, expected):
    assert boxed(response) == expected


@pytest.mark.parametrize(
    ("answer", "value", "unit"),
    [
        ("159.69", 159.69, ""),
        ("159.69 g/mol", 159.69, "g/mol"),
        (r"159.69\ \text{g/mol}", 159.69, "g/mol"),
        (r"159.69\,\mathrm{g\,mol^{-1}}", 159.69, "gmol^-1"),
        ("$69.94\\%$", 69.94, "\\%"),
        ("-5 K", -5.0, "K"),
        ("\u22125", -5.0, ""),
        (".5", 0.5, ""),
        ("5.", 5.0, ""),
        ("1,234.5", 1234.5, ""),
        ("1,234,567 g", 1234567.0, "g"),
        ("1.5e22", 1.5e22, ""),
        ("1.5E+22 atoms", 1.5e22, "atoms"),
        ("1.5x10^22", 1.5e22, ""),
        ("1.5*10^22", 1.5e22, ""),
        (r"1.5 \times 10^{22} \text{ atoms}", 1.5e22, "atoms"),
        (r"1.5 \cdot 10^{-5}", 1.5e-5, ""),
        ("1.5\u00d710^22", 1.5e22, ""),
        (r"\approx 3 mol", 3.0, "mol"),
        ("1 or 2", 1.0, "or2"),
    ],
)
def test_quantities(answer, value, unit):
    found = quantity(answer)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.unit == unit


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("18", "18"),
        ("18.", "18"),
        ("-1,234.50", "-1234.5"),
        ("$18", "18"),
        ("\\$18.50", "18.5"),
        ("25%", "25"),
        ("25 \\%", "25"),
        ("1.45e6", "1450000"),
        ("9007199254740993", "9007199254740993"),  # 2**53 + 1, which no float64 holds
        ("18 dollars", None),
        ("18 or 19", None),
        ("1/2", None),
        ("1e999", None),
        ("", None),
    ],
)
def test_numbers_alone(answer, value):
    assert number(answer) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "g/mol",
        "nan",
        "inf",
        "-inf",
        "NaN g",
        "1e9999",
        "9" * 200 + "e300",
        "1,23",
        "12,34,567",
        "1,5",
        "1.2.3",
        "--5",
        "\u0661\u0662\u0663",
        "\uff11\uff12",
        "x = 5",
        "about 5",
    ],
)
def test_what_is_no_quantity(answer):
    assert quantity(answer) is None


def test_units():
    assert is_unit("", "g/mol")
    assert is_unit("g/mol", "g/mol")
    assert is_unit("gmol^-1", "g/mol")
    assert is_unit("\\%", "%")
    assert not is_unit("kg/mol", "g/mol")
    assert not is_unit("g", "mol")
    assert not is_unit("mol", "g")
    assert not is_unit("or2", "g")
    assert not is_unit("g", "")
    with pytest.raises(ValueError, match="got 'furlong'"):
        is_unit("g", "furlong")


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", r"\text{B}", "$B$", r"\textbf{(B)}", " B "])
def test_letters(answer):
    assert letter(answer) == "B"


@pytest.mark.parametrize(
    "answer", ["", "Be", "B or C", "A, B", "AB", "b", "\u0412", "(B", "159.7", "B C", "option B"]
)
def test_what_is_no_letter(answer):
    assert letter(answer) is None


def test_plain_keeps_the_answer_itself():
    assert plain(r"$\mathrm{Fe_{2}O_{3}}$") == "Fe_2O_3"
    assert plain(r"\text{ CuSO4 }") == "CuSO4"
    assert plain(r"\textual{x}") == r"\textualx"  # another command is left standing


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{C}",
        r"\boxed{A}, no: \boxed{(C)}",
        "The problem says \\boxed{letter}. So \\boxed{\\text{C}}.",
        "Answer: C",
        "Answer: (C)",
        "**Answer:** C",
        "**Answer**: (C).",
        "The correct answer is (C) 5 m/s.",
        "The answer is C because A is too large.",
        "Answer: A\nNo. Final answer: C",
        "Answer:\n\nC",
        "Answer: $\\text{C}$",
        "Answer: C) A proton",
        "Answer: C. A proton",
        "Answer: C, as D is wrong",
        "\\boxed {C}",
        "\\boxed{A} then \\boxed\n{C}",
        "The answer is \\(C\\).",
        "The answer is \\((C)\\)",
        "The correct answer is option C.",
        "Answer: **Option C**",
        "The answer is option (C) 5 m",
    ],
)
def test_the_letter_at_the_end(response):
    assert final_letter(response) == "C"


def test_a_named_option_is_no_word():
    assert final_letter("The answer is option A because B is large") == "A"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "C",
        "Answer",
        "Answer:",
        "Answer: c",
        "Answer: Carbon",
        "Answer: C-14",
        "Answer: C's",
        "Answer: AB",
        "Answer: A or B",
        "Answer: A, B",
        "Answer: (A)(B)",
        "Answer: A and (B)",
        "Answer: A/B",
        "Answer: (A), or (B)",
        "Answer: A large one",
        "The answer is I think 5",
        "The answer isn't C",
        "The answer's C",
        r"\boxed{A, B}",
        r"\boxed{}",
        r"\boxed{",
        r"Answer: C, \boxed{A or C}",  # a box is the answer, words beside it aren't
        r"\boxed{Carbon}",
        r"\boxed{C-14}",
        r"Answer: C, \boxed {A or C}",
        "The answer is option A or option B",
        "The answer is A, option B",
        "The answer is optionC",
        r"The answer is \(A\) or \(B\)",
    ],
)
def test_no_letter_or_several(response):
    assert final_letter(response) is None


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\nb\n```", "a\nb"),
        ("```\na\n```", "a"),
        ("```py\na\n```\nand\n```Python3\nb\n```", "b"),
        ("```python\na\n```\nIt prints\n```\n5\n```", "a"),
        ("```\na\n```\n```text\nb\n```", "a"),
        ("~~~python\n```\n~~~", "```"),
        ("````python\n```\n````", "```"),
        ("```python\na\n`````", "a"),
        ("  ```python\n  a\n  ```", "  a"),
        ("```python\n```", ""),
        ("```python\r\na\r\n```", "a\r"),
        ("```python\na\n```\n```python\nb", "a"),
        ("```text\n```python\na\n```", None),
        ("```python\na", None),
        ("```python a```", None),
        ("python\na", None),
        ("", None),
    ],
)
def test_the_last_program(response, program):
    assert last_program(response) == program


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("", "m/s", True),
        ("m/s", "m/s", True),
        ("m", "", False),
        ("km/s", "m/s", False),
        ("kelvin", "K", True),
        ("k", "K", False),
        (r"\,\mathrm{m\,s^{-1}}", "m/s", True),
        (r"\ \text{m}\cdot\text{s}^{-1}", "m/s", True),
        ("meters per second", "m/s", True),
        ("m s\u207b\u00b9", "m/s", True),
        ("ms", "m s", True),  # as written without blanks
        (r"\mathrm{ms}^{-1}", "m/s", False),  # but not a millisecond for both
        ("m/s/s", "m/s^2", True),
        (r"s^{-2}\,m", "m/s\u00b2", True),
        ("J/(mol K)", r"\mathrm{J\,mol^{-1}\,K^{-1}}", True),
        ("J/mol K", "J/(mol K)", False),
        ("joules", "J", True),
        ("Joules", "J", True),
        ("kJ", "J", False),
        ("mj", "MJ", False),
        (r"^\circ", "degrees", True),
        (r"^{\circ}\mathrm{C}", "\u00b0C", True),
        ("C", "\u00b0C", False),
        (r"\,\mu\mathrm{m}", "\u03bcm", True),
        (r"\,k\Omega", "k\u03a9", True),
        (r"\%", "percent", True),
        ("furlongs", "furlongs", True),
        ("/4", "", False),
        (r"\pi", "", False),
    ],
)
def test_units_of_files(found, expected, same):
    units = [quantity(f"5 {unit}") for unit in (found, expected)]
    assert has_unit_of(*units) is same


@pytest.mark.parametrize(
    "unit",
    [
        "m/s",
        "kg",
        "%",
        r"\%",
        r"^\circ",
        "m^2",
        "m2",
        "/s",
        "ft-lb",
        "atoms",
        r"\mathrm{N\,m}",
        "m.",
    ],
)
def test_what_is_a_unit(unit):
    assert parse(quantity(f"3 {unit}").spaced_unit)


@pytest.mark.parametrize(
    "rest",
    [
        *("/4", "/2 mol", "^5", "^{10}", r"\pi", r"\sqrt{3}", " or 4", ":3", " to m", "!"),
        *(" - 4", r"\pm 1", "+x", "(m)", "m^x", "/ 4 m", r"\frac{1}{2}", "m123", "=3", ";4"),
        *("_3", "x", "i", "e", r"\cdot 4", "*m*4"),
    ],
)
def test_what_is_no_unit(rest):
    assert parse(quantity(f"3{rest}").spaced_unit) is None


@PROPERTY
@given(st.text(max_size=250))
def test_any_inside_is_read_without_an_exception(inside):
    if found := quantity(inside):
        assert found.spaced_unit.replace(" ", "") == found.unit
        parse(found.spaced_unit)
    letter(inside)
    plain(inside)
    boxed(inside)
    final_letter(inside)
    last_program(inside)


@pytest.mark.parametrize(
    "response",
    [
        "9" * 1_000_000,
        r"\boxed{" + "9" * 1_000_000 + "}",
        r"\boxed{" * 150_000,
        "{" * 1_000_000 + r"\boxed{" + "{" * 1_000_000,
        "\\" * 1_000_000,
        "answer:" * 150_000,
        "answer" + "*" * 1_000_000,
        "Answer: " + "(" * 1_000_000,
        "```" + "a" * 1_000_000 + "`",
        "```\n" * 250_001,
        "`" * 1_000_000,
    ],
)
def test_a_megabyte_is_read_quickly(response):
    start = time.process_time()
    assert boxed(response) is None
    assert final_letter(response) is None
    last_program(response)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("inside", ["1," * 100, "1" * 200, "1,111" * 40, "\\,$ " * 50, "1." * 100])
def test_a_full_box_is_read_quickly(inside):
    start = time.process_time()
    quantity(inside)
    letter(inside)
    assert time.process_time() - start < 0.2
