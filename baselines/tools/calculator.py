"""The calculator that models may call: exact arithmetic on what a stranger wrote, within limits."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from fractions import Fraction

MAX_LENGTH = 200
# Bits of a numerator or denominator: about 3,000 digits.
MAX_BITS = 10_000
MAX_EXPONENT = 1_000
MAX_PLACES = 30
# Digits of a result that has no end (or too many of them).
DIGITS = 15
PRECISION = 50
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": None, "€": None, "£": None})
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
GROUPED = re.compile(r"(?<=\d)_(?=\d)")
LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")


class CalculatorError(ValueError):
    """Why an expression has no result. The message is for the model."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as short text. Raises CalculatorError.

    Numbers are exact fractions (0.1 + 0.2 is 0.3); only roots of no square and broken powers are rounded, to 15 digits.
    There are + - * / // % ** (also ^), parentheses, round (halves away from zero, as at school), abs, min, max and sqrt.
    A comma between groups of three digits is read as a thousands separator where no function is called. What stands behind
    an equals sign is the writer's guess, and is left out.
    """
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"the expression is longer than {MAX_LENGTH} characters")
    text = expression.translate(SIGNS).replace("^", "**").lstrip("= ").partition("=")[0].strip()
    if not re.search(r"[A-Za-z]\w*\s*\(", text):
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = LEADING_ZEROS.sub("", GROUPED.sub("", text))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `3(4)` looks like a call
            tree = ast.parse(text, mode="eval")
        return as_text(_value(tree.body, text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, CalculatorError):
            raise
        raise CalculatorError("this is no arithmetic expression, such as (12 + 7.5) * 3") from error
    except ZeroDivisionError as error:
        raise CalculatorError("division by zero") from error


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _number(ast.get_source_segment(text, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        operation = OPERATIONS.get(type(node.op))
        if operation is not None:
            return _small(operation(_value(node.left, text), _value(node.right, text)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = FUNCTIONS.get(node.func.id)
        if function is None:
            raise CalculatorError(f"there is no function {node.func.id[:40]!r}: only {', '.join(FUNCTIONS)}")
        return _small(function(*[_value(one, text) for one in node.args]))
    if isinstance(node, ast.Name):
        raise CalculatorError(f"{node.id[:40]!r} is not known: write numbers")
    raise CalculatorError("only numbers, + - * / // % **, parentheses and functions can be computed")


def _number(digits: str) -> Fraction:
    """From the text itself: as a float 0.1 would not be a tenth."""
    _, _, exponent = digits.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        raise CalculatorError("the number is too large")
    return Fraction(digits)


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CalculatorError("the result is too large")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent == Fraction(1, 2):
        return _root(base)
    if exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) > MAX_EXPONENT or size * abs(exponent) > 2 * MAX_BITS:
            raise CalculatorError("the result is too large")
        return base**exponent.numerator
    if base < 0:
        raise CalculatorError("a negative number has no such power")
    try:
        return Fraction(repr(float(base) ** float(exponent)))
    except (OverflowError, ValueError) as error:
        raise CalculatorError("the result is too large") from error


def _root(value: Fraction) -> Fraction:
    """Exact where it can be."""
    if value < 0:
        raise CalculatorError("a negative number has no square root")
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if above * above == value.numerator and below * below == value.denominator:
        return Fraction(above, below)
    context = Context(prec=PRECISION)
    return Fraction(context.sqrt(context.divide(Decimal(value.numerator), Decimal(value.denominator))))


def _round(value: Fraction, places: Fraction = Fraction(0)) -> Fraction:
    if places.denominator != 1 or abs(places) > MAX_PLACES:
        raise CalculatorError(f"round takes a whole number of places, up to {MAX_PLACES}")
    scale = Fraction(10) ** places.numerator
    whole = math.floor(abs(value) * scale + Fraction(1, 2))
    return whole / scale * (-1 if value < 0 else 1)


def _of(name: str, function: Callable[..., Fraction], least: int, most: int) -> Callable[..., Fraction]:
    def checked(*values: Fraction) -> Fraction:
        if not least <= len(values) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise CalculatorError(f"{name} takes {wanted} numbers, and was given {len(values)}")
        return function(*values)

    return checked


def _floor(one: Fraction, other: Fraction) -> Fraction:
    return Fraction(one // other)


OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda one, other: one + other,
    ast.Sub: lambda one, other: one - other,
    ast.Mult: lambda one, other: one * other,
    ast.Div: lambda one, other: one / other,
    ast.FloorDiv: _floor,
    ast.Mod: lambda one, other: one % other,
    ast.Pow: _power,
}
FUNCTIONS: Mapping[str, Callable[..., Fraction]] = {
    "round": _of("round", _round, 1, 2),
    "abs": _of("abs", abs, 1, 1),
    "min": _of("min", lambda *values: min(values), 1, MAX_LENGTH),
    "max": _of("max", lambda *values: max(values), 1, MAX_LENGTH),
    "sqrt": _of("sqrt", _root, 1, 1),
}


def as_text(value: Fraction) -> str:
    """All digits where they have an end (and are few); else six behind the point at least, 15 in all."""
    exact = Context(prec=PRECISION)
    found = exact.divide(Decimal(value.numerator), Decimal(value.denominator))
    if exact.flags[Inexact] or len(found.as_tuple().digits) > PRECISION - 10:
        digits = min(PRECISION - 10, max(DIGITS, found.adjusted() + 7))
        found = Context(prec=digits, rounding=ROUND_HALF_EVEN).divide(Decimal(value.numerator), Decimal(value.denominator))
    if found.is_zero():
        return "0"
    return f"{found.normalize(exact):f}" if -DIGITS < found.adjusted() < PRECISION - 10 else str(found.normalize(exact))
