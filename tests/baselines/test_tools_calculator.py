"""The calculator: exact, short, and within limits whatever a model writes."""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.tools.calculator import CalculatorError, as_text, calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("7 * 36", "252"),
        ("0.1 + 0.2", "0.3"),
        ("1,234.50 + 1", "1235.5"),
        ("1,234,567 * 2", "2469134"),
        ("1 / 3", "0.333333333333333"),
        ("2 / 3", "0.666666666666667"),
        ("10 / 4", "2.5"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7.5 % 2", "1.5"),
        ("2 ** 10", "1024"),
        ("2 ^ 10", "1024"),
        ("-2 ** 2", "-4"),
        ("2 ** -2", "0.25"),
        ("9 ** 0.5", "3"),
        ("sqrt(2)", "1.4142135623731"),
        ("sqrt(0.25)", "0.5"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(2.675, 2)", "2.68"),
        ("round(1234, -2)", "1200"),
        ("max(1,200)", "200"),
        ("min(3, 2, 1) + abs(-4)", "5"),
        ("$36 × 7 = ?", "252"),
        ("=120 - 36 = 64", "84"),
        ("(12 ÷ 4) − 1", "2"),
        ("007 * 2", "14"),
        ("10.05 + 0.95", "11"),
        ("1e3 + 1", "1001"),
        ("1_000 * 3", "3000"),
        ("100000000000000000000 + 0.5", "100000000000000000000.5"),
        ("5 - 5", "0"),
        ("-(2 - 2)", "0"),
        ("1 / 8", "0.125"),
        ("12345678901234567890 * 98765432109876543210", "1219326311370217952237463801111263526900"),
    ],
)
def test_values(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9 ** 9", "too large"),
        ("10 ** 1000 ** 2", "too large"),
        ("1e999999999", "too large"),
        ("(9 ** 999) ** 99", "too large"),
        ("(10 ** 300) ** 1.5", "too large"),
        ("(-8) ** (1 / 3)", "negative"),
        ("sqrt(-1)", "negative"),
        ("sqrt(2, 3)", "takes 1 numbers"),
        ("round(1, 234)", "places"),
        ("round(1, 0.5)", "places"),
        ("price * 3", "'price' is not known"),
        ("log(3)", "no function 'log'"),
        ("__import__('os').system('true')", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("[1] * 3", "only numbers"),
        ("'a' * 3", "only numbers"),
        ("1 if 2 else 3", "only numbers"),
        ("True + 1", "only numbers"),
        ("3j * 3j", "only numbers"),
        ("1 < 2", "only numbers"),
        ("max(*[1])", "only numbers"),
        ("lambda: 1", "only numbers"),
        ("f(x=1)", "no arithmetic expression"),
        ("7 apples * 3", "no arithmetic expression"),
        ("", "no arithmetic expression"),
        ("1 +", "no arithmetic expression"),
        ("1; 2", "no arithmetic expression"),
        ("0x10", "no arithmetic expression"),
        ("(" * 199, "no arithmetic expression"),
        ("1" * 201, "longer than 200"),
        ("\x00", "no arithmetic expression"),
    ],
)
def test_what_has_no_value_says_why(expression: str, part: str) -> None:
    with pytest.raises(CalculatorError, match=r"^.+$") as caught:
        calculate(expression)
    assert part in str(caught.value)


EXACT = st.recursive(
    st.decimals(0, 9999, places=2).map(lambda one: (str(one), Fraction(one))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda one: (
            f"({one[0][0]} {one[1]} {one[2][0]})",
            {"+": one[0][1] + one[2][1], "-": one[0][1] - one[2][1], "*": one[0][1] * one[2][1]}[one[1]],
        )
    ),
    max_leaves=5,
)


@given(EXACT)
def test_sums_and_products_of_decimals_are_exact(pair: tuple[str, Fraction]) -> None:
    text, value = pair
    assert Fraction(calculate(text)) == value


@given(st.fractions())
def test_a_shown_number_is_the_number_to_fifteen_digits(value: Fraction) -> None:
    assert abs(Fraction(as_text(value)) - value) <= abs(value) * Fraction(1, 10**14)


@given(st.text(alphabet="0123456789.,+-*/%()^ abeinmqrstxou_'[]", max_size=200))
def test_no_text_breaks_it_or_takes_long(text: str) -> None:
    started = time.perf_counter()
    with suppress(CalculatorError):
        assert calculate(text)
    assert time.perf_counter() - started < 1
