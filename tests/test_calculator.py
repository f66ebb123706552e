"""The calculator against hand-computed values, Python's own arithmetic, and hostile expressions."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.tools.calculator import (
    MAX_LENGTH,
    Calculator,
    CalculatorError,
    evaluate,
    format_number,
)

CALCULATOR = Calculator()


def answer(expression: str) -> str:
    _, observation = CALCULATOR.call(None, {"expression": expression})
    assert observation.error is None, observation
    return observation.text


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2*55.845+3*15.999", "159.687"),
        ("12.5/(2*1.008+15.999)*6.022e23", "4.17846e23"),
        ("1+2*3", "7"),
        ("(1+2)*3", "9"),
        ("2-3-4", "-5"),
        ("16/4/2", "2"),
        ("2**3**2", "512"),
        ("2^10", "1024"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("+-+3", "-3"),
        (" 1 + 1 ", "2"),
        (".5+1.", "1.5"),
        ("9" * MAX_LENGTH, "1e256"),
        ("1E-7", "1e-7"),
        ("0*5", "0"),
        ("-0.0", "0"),
        ("sqrt(2)", "1.41421"),
        ("log(exp(3))", "3"),
        ("log10(1000)", "3"),
    ],
)
def test_values(expression, expected):
    assert answer(expression) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (100000.0, "100000"),
        (999999.0, "999999"),
        (999999.5, "1e6"),
        (1234567.0, "1.23457e6"),
        (0.0001, "0.0001"),
        (0.000123456789, "0.000123457"),
        (0.00001, "1e-5"),
        (-159.6882, "-159.688"),
        (1.5e22, "1.5e22"),
        (5e-324, "4.94066e-324"),
    ],
)
def test_six_digits_in_canonical_form(value, expected):
    assert format_number(value) == expected


@PROPERTY
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e307, max_value=1e307))
def test_results_round_trip_through_the_calculator(value):
    text = format_number(value)
    assert math.isclose(float(text), value, rel_tol=5.1e-6, abs_tol=5e-324)
    result = answer(text)
    assert answer(result) == result
    assert float(result) == float(text)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1234567*9", "11111103"),  # format_number's six digits would say 1.11111e7
        ("3*5000000.25", "15000000.75"),
        ("10000/3", "3333.33"),
        ("100000/3", "33333.33"),
        ("0-100000/3", "-33333.33"),
        ("999999.999", "1000000"),
        ("9999999999999-1", "9999999999998"),
        ("10^13", "1e13"),
    ],
)
def test_results_keep_whole_numbers_and_hundredths(expression, expected):
    assert answer(expression) == expected


_NUMBERS = st.floats(min_value=1e-3, max_value=1e3).map(lambda number: f"{number:.4f}")
_EXPRESSIONS = st.recursive(
    _NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"
    ),
    max_leaves=8,
)


@PROPERTY
@given(_EXPRESSIONS)
def test_agrees_with_python(expression):
    try:
        expected = eval(expression, {"__builtins__": {}})
    except ZeroDivisionError:
        with pytest.raises(CalculatorError, match="division by zero"):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "not an arithmetic expression"),
        ("1+", "syntax error"),
        ("(1", "syntax error"),
        ("1 2", "syntax error"),
        ("007", "syntax error"),
        ("()", "not an arithmetic expression"),
        ("1,000", "not an arithmetic expression"),
        ("1_000", "not an arithmetic expression"),
        ("0x10", "not an arithmetic expression"),
        ("1j", "not an arithmetic expression"),
        ("1if 2else 3", "not an arithmetic expression"),
        ("1 if 2 else 3", "not an arithmetic expression"),
        ("not 1", "not an arithmetic expression"),
        ("True", "not an arithmetic expression"),
        ("x", "not an arithmetic expression"),
        ("inf", "not an arithmetic expression"),
        ("nan", "not an arithmetic expression"),
        ("7//2", "not an arithmetic expression"),
        ("7%2", "not an arithmetic expression"),
        ("1\n+1", "not an arithmetic expression"),
        ("1\x00", "not an arithmetic expression"),
        ("\u0661+1", "not an arithmetic expression"),
        ("sqrt()", "not an arithmetic expression"),
        ("sqrt", "not an arithmetic expression"),
        ("1(2)", "not an arithmetic expression"),
        ("exit()", "not an arithmetic expression"),
        ("__import__('os')", "not an arithmetic expression"),
        ("(1).__class__", "not an arithmetic expression"),
        ("lambda: 1", "not an arithmetic expression"),
        ("[1]*9", "not an arithmetic expression"),
        ("'a'*9", "not an arithmetic expression"),
        ("1/0", "division by zero"),
        ("0**-1", "undefined"),
        ("(-8)**0.5", "undefined"),
        ("sqrt(-1)", "undefined"),
        ("log(0)", "undefined"),
        ("1e400", "number too large"),
        ("1e308*10", "number too large"),
        ("1/(1e308*10)", "number too large"),
        ("exp(1000)", "number too large"),
        ("9**9**9", "number too large"),
        ("-" * 100 + "1", "too complex"),
        ("(" * 100 + "1" + ")" * 100, ""),
        ("1+" * 127 + "1", "too complex"),
        ("1" * (MAX_LENGTH + 1), "longer than 256"),
        ("1" * 1_000_000, "longer than 256"),
    ],
)
def test_refusals_are_short_and_fast(expression, reason):
    start = time.process_time()
    state, observation = CALCULATOR.call(None, {"expression": expression})
    assert time.process_time() - start < 0.5
    assert state is None
    if reason:
        assert observation.error == "tool_error"
        assert reason in observation.text
        assert len(observation.text) < 50
    else:  # redundant parentheses leave no trace in the syntax tree
        assert observation.text == "1"


@pytest.mark.parametrize("piece", ["a", "1", "(", "-", "2**", "1.", "e", " ", "sqrt(", "1e", "9^"])
def test_no_expression_of_full_length_takes_long(piece):
    expression = (piece * MAX_LENGTH)[:MAX_LENGTH]
    start = time.process_time()
    CALCULATOR.call(None, {"expression": expression})
    assert time.process_time() - start < 0.5


@PROPERTY
@given(st.text(max_size=60) | st.text(alphabet="0123456789.e+-*/^() sqrtlogx", max_size=60))
def test_any_text_gives_a_finite_number_or_an_error(expression):
    _, observation = CALCULATOR.call(None, {"expression": expression})
    if observation.error is None:
        assert math.isfinite(float(observation.text))
    else:
        assert observation.error == "tool_error"
        assert "\n" not in observation.text
