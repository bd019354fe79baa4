"""Numbers: what is one, which was the last, and when two are the same."""

from __future__ import annotations

import pytest

from evals.metrics.number import last_number, numeric_match, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42.0),
        (" 42. ", 42.0),
        ("-1,234,567.5", -1234567.5),
        ("$1,234.50", 1234.5),
        ("-$5", -5.0),
        ("$-5", -5.0),
        ("12 €", 12.0),
        ("1 234 567", 1234567.0),
        ("1\u00a0234", 1234.0),
        ("1'000", 1000.0),
        ("1_000", 1000.0),
        ("\u22127", -7.0),
        ("１２", 12.0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("", None),
        (".", None),
        ("-", None),
        ("3,14", None),
        ("1,2345", None),
        ("1,234 567", None),
        ("1.2.3", None),
        ("42 apples", None),
        ("45%", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("1e999", None),
    ],
)
def test_parse_number(text: str, value: float | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("first 3, then 4.", 4.0),
        ("#### 1,234.5", 1234.5),
        ("it costs $1,234,567!", 1234567.0),
        ("from 3-4", 4.0),
        ("from -5 to -7", -7.0),
        ("5 kg of H2O by v1.5", 5.0),
        ("1,2,3", 3.0),
        ("A...5", 5.0),
        ("5kg", 5.0),
        ("none", None),
        ("9" * 400, None),
    ],
)
def test_last_number(text: str, value: float | None) -> None:
    assert last_number(text) == value


def test_relative_tolerance() -> None:
    assert numeric_match("1000000.9", "1,000,000") == 1.0
    assert numeric_match("1000002", "1000000") == 0.0
    assert numeric_match("0.0000001", "0") == 0.0
    assert numeric_match("42", "41") == 0.0
    assert numeric_match("forty-two", "42") == 0.0


def test_a_target_that_is_no_number_is_compared_as_text() -> None:
    assert numeric_match("Forty two", "forty two.") == 1.0
    assert numeric_match("42", "forty two") == 0.0


def test_tolerances_are_relative_or_absolute_and_the_wider_counts() -> None:
    assert numeric_match("101", "100", relative=0.01) == 1.0
    # Of the larger of the two: 0.01 * 101.1 is 1.011, under 1.1.
    assert numeric_match("101.1", "100", relative=0.01) == 0.0
    assert numeric_match("100", "101", relative=0.01) == numeric_match("101", "100", relative=0.01)
    assert numeric_match("0.4", "0", absolute=0.5) == 1.0
    assert numeric_match("0.4", "0", relative=0.5) == 0.0
    assert numeric_match("105", "100", relative=0.01, absolute=5) == 1.0
    assert numeric_match("1.000001", "1", relative=0) == 0.0
    assert numeric_match("$1,000", "1000.0", relative=0) == 1.0
