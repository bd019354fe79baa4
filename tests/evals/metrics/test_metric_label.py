"""Labels: strict equality, and the first label mentioned."""

from __future__ import annotations

import pytest

from evals.metrics.label import accuracy, first_label

LABELS = ["A", "B", "billing_issue", "billing", "non-toxic", "toxic", "C++", "C", "正面"]


@pytest.mark.parametrize(
    ("output", "target", "value"),
    [
        ("Billing", "billing", 1.0),
        (" **billing** ", "billing", 1.0),
        ('"billing".', "billing", 1.0),
        ("(A)", "A", 1.0),
        ("", "A", 0.0),
        ("the", "A", 0.0),
        ("C++", "C", 0.0),
        ("-1", "1", 0.0),
        ("<=", ">=", 0.0),
        ("?", "!", 0.0),
        ("I say billing", "billing", 0.0),
    ],
)
def test_accuracy(output: str, target: str, value: float) -> None:
    assert accuracy(output, target) == value


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("toxic, or rather billing", "toxic"),
        ("This is a billing issue.", "billing_issue"),
        ("BILLING-ISSUE", "billing_issue"),
        ("_billing_", "billing"),
        ("Non toxic", "non-toxic"),
        ("written in C++", "C++"),
        ("a clear B", "B"),
        ("answer: b", "B"),
        ("情感是正面的", "正面"),
        ("rebilling intoxicated", None),
        ("", None),
    ],
)
def test_first_label(text: str, label: str | None) -> None:
    assert first_label(text, LABELS) == label


def test_labels_may_be_empty_or_hold_pattern_signs() -> None:
    assert first_label("anything", []) is None
    assert first_label("anything", ["", " "]) is None
    assert first_label("rated (.*) [x", ["[x", "(.*)"]) == "(.*)"
