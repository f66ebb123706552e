"""An arithmetic calculator with its own grammar over Python's `ast`; nothing is ever executed."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from elpo_jax.tools.base import Observation

MAX_LENGTH = 256  # characters
MAX_DEPTH = 32
MAX_NODES = 128
DIGITS = 6

# Narrower than Python's own tokens: no 0x10, 1_000 or `1if`, and nothing that is not ASCII.
# Each token ends where the next can't have begun, so that matching never backtracks far.
_NUMBER = r"(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_NAME = r"[a-z]++[0-9]*+"
_TOKENS = re.compile(rf"(?:(?:{_NUMBER}|{_NAME})(?![0-9a-zA-Z.])|[-+*/() \t])+")
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # stays in floats: no integer can grow without bound
}
_UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
}


class CalculatorError(ValueError):
    """The expression has no value; the message is short, for the policy to read."""


def evaluate(expression: str) -> float:
    """The value of an expression, in time bounded by its length (at most `MAX_LENGTH`).

    Grammar: decimal numbers (also 1.5e22), + - * / ** (also written ^), unary signs, parentheses,
    and sqrt, exp, log (natural), log10 of one argument. All arithmetic is in float64.

    Raises:
      CalculatorError: if the text is too long, too deep or outside the grammar, or if any
        intermediate value is undefined or not finite.
    """
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"expression longer than {MAX_LENGTH} characters")
    source = expression.replace("^", "**").strip()
    if not _TOKENS.fullmatch(source):
        raise CalculatorError("not an arithmetic expression")
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError:
        raise CalculatorError("syntax error") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise CalculatorError("expression too complex")
    return _value(tree.body, MAX_DEPTH)


def _value(node: ast.expr, depth: int) -> float:
    if depth == 0:
        raise CalculatorError("expression too complex")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _finite(float, number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand, depth - 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            values = _value(left, depth - 1), _value(right, depth - 1)
            return _finite(_BINARY[type(op)], *values)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _finite(_FUNCTIONS[name], _value(argument, depth - 1))
    raise CalculatorError("not an arithmetic expression")


def _finite(function: Callable[..., float], *values: float) -> float:
    try:
        result = function(*values)
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("number too large") from None
    except ValueError:
        raise CalculatorError("undefined") from None
    if not math.isfinite(result):
        raise CalculatorError("number too large")
    return result


def format_number(value: float, digits: int = DIGITS) -> str:
    """`value` to `digits` significant digits, without trailing zeros, as `evaluate` reads it.

    Plain decimals for 1e-4 <= |value| < 1e6 (and 0), otherwise a mantissa and exponent: '1.5e22'.
    """
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if float(mantissa) == 0.0:
        return "0"
    if -4 <= power < 6:
        text = f"{value:.{max(digits - 1 - power, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{power}"


def format_result(value: float) -> str:
    """`value` as the calculator answers: `format_number`, but hundredths are kept below 1e13.

    So sums of money are exact, and whole numbers of seven and more digits, as GSM8K has them.
    """
    if 1e4 <= abs(value) < 1e13:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return format_number(value)


class Calculator:
    """The tool `calculator(expression)`. Stateless."""

    name = "calculator"
    schema: Mapping[str, Any] = {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    }

    def initial_state(self) -> None:
        return None

    def call(self, state: None, arguments: Mapping[str, Any]) -> tuple[None, Observation]:
        """The value as `format_result` writes it, or a 'tool_error' of a few words."""
        try:
            return state, Observation(format_result(evaluate(arguments["expression"])))
        except CalculatorError as error:
            return state, Observation(f"error: {error}", error="tool_error")
