"""Labels: strict equality, and the first label mentioned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.metrics.label import accuracy, first_label, macro_f1_shares

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


BREAKFAST = ["spam", "ham", "eggs", "toast"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*BREAKFAST, "Spam.", "no label", ""]), st.sampled_from(BREAKFAST)), min_size=1, max_size=40
    )
)
def test_macro_f1_is_the_mean_of_its_shares(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score

    given, wanted = [output.lower().strip(".") for output, _ in rows], [target for _, target in rows]
    shares = macro_f1_shares([output for output, _ in rows], wanted, BREAKFAST)
    present = [label for label in BREAKFAST if label in {*given, *wanted}]
    expected = f1_score(wanted, given, labels=present, average="macro", zero_division=0)
    assert sum(shares) / len(shares) == pytest.approx(expected, abs=1e-12)
    assert [share > 0 for share in shares] == [accuracy(output, target) == 1 for output, target in rows]


def test_macro_f1_by_hand() -> None:
    # F1 of spam 2/3 (1 of 2 found, 1 of 1 right), of ham 2/3 (1 of 1, 1 of 2): mean 2/3; N/L is 3/2.
    assert macro_f1_shares(["spam", "ham", "ham"], ["spam", "spam", "ham"]) == pytest.approx([1.0, 0.0, 1.0])
    # A label that was answered and is nobody's target counts with F1 0, but only where it is one of the task's.
    assert sum(macro_f1_shares(["a", "b"], ["a", "a"], ["a", "b", "c"])) / 2 == pytest.approx((2 / 3 + 0) / 2)
    assert sum(macro_f1_shares(["a", "b"], ["a", "a"], [])) / 2 == pytest.approx(2 / 3)
    # One label in ten rows weighs as much as the other nine: a single share may be over 1.
    assert macro_f1_shares(["a"] * 9 + ["b"], ["a"] * 9 + ["b"]) == pytest.approx([10 / 18] * 9 + [5.0])
    assert macro_f1_shares([], []) == []
