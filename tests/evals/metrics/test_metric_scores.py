"""Every metric by its name: bounds, identity, tolerance, and text that was written to break them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.metrics import METRICS, OTHERS, default_metric, score, tolerant_score
from evals.metrics.options import NAMES

OUTPUT_TYPES = ["text", "label", "json", "number"]
# Lone surrogates too: a byte-level tokenizer can end inside a character.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.text(
    '{}[]":,.-+0123456789eE aAtruefalsn\\', max_size=60
)
HOSTILE = [
    "[" * 100_000,
    '{"a":' * 100_000,
    "{" * 100_000,
    "NaN",
    '{"a": NaN}',
    "9" * 100_000,
    '{"a": ' + "9" * 100_000 + "}",
    "1e999999999",
    "1," * 50_000,
    "-" * 100_000,
    "\ud800",
    '{"a": "\udfff"}',
    "\x00",
    "a " * 50_000,
    "\ufdfa" * 10_000,
]


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_scores_are_in_range_and_tolerance_costs_nothing(output: str, target: str) -> None:
    for name in METRICS:
        strict = score(name, output, target)
        assert 0.0 <= strict <= 1.0
        assert score(name, target, target) == 1.0
        for output_type in OUTPUT_TYPES:
            assert strict <= tolerant_score(output_type, name, output, target, [target, "a", "B"]) <= 1.0


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text(text: str) -> None:
    for name in METRICS:
        assert score(name, text, text) == 1.0
        assert 0.0 <= score(name, text, '{"a": 1}') <= 1.0
    for output_type in OUTPUT_TYPES:
        assert 0.0 <= tolerant_score(output_type, default_metric(output_type), text, "7", ["7", "8"]) <= 1.0


def test_every_metric_of_a_task_file_is_known_here() -> None:
    assert {*METRICS, *OTHERS} == set(NAMES)
    assert not set(METRICS) & OTHERS


def test_exact_wants_the_same_string() -> None:
    assert score("exact", " The cat.\n", "The cat.") == 1.0
    for other in ("the cat.", "The cat", "The  cat.", "The cat․", '{"a": 1}'):
        assert score("exact", other, "The cat.") == 0.0
    # The same object and the same number, otherwise written.
    assert score("exact", '{"a":1}', '{"a": 1}') == score("exact", "1.0", "1") == 0.0
    # Composed and decomposed é are different strings, but the same text.
    assert score("exact", "caf\u00e9", "cafe\u0301") == 0.0
    assert score("exact_match", "caf\u00e9", "cafe\u0301") == 1.0


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_what_is_exact_matches_by_every_metric(target: str) -> None:
    assert {score(name, f" {target}\n", target) for name in METRICS} == {1.0}


def test_metrics_without_a_tolerant_reading_leave_the_strict_score() -> None:
    for name in OTHERS:
        assert tolerant_score("text", name, "It is Paris", "Paris") == 0.0


def test_exact_match_compares_objects_as_json() -> None:
    assert score("exact_match", '{"b": 2, "a": 1.0}', '{"a": 1, "b": 2}') == 1.0
    # Equal once punctuation is gone, but not the same object; and not an object at all.
    assert score("exact_match", '{"a": 15}', '{"a": 1.5}') == 0.0
    assert score("exact_match", '{"a": 1', '{"a": 1}') == 0.0
    assert score("exact_match", "The cat.", "cat") == 1.0


@pytest.mark.parametrize(
    ("output_type", "metric", "output", "target", "strict", "tolerant"),
    [
        ("text", "exact_match", "It is Paris, I think.", "Paris", 0.0, 1.0),
        ("text", "token_f1", "Paris", "Paris France", 2 / 3, 2 / 3),
        ("label", "accuracy", "The label is spam (not ham).", "spam", 0.0, 1.0),
        ("label", "accuracy", "ham, not spam", "spam", 0.0, 0.0),
        ("json", "json_fields", 'Sure!\n```json\n{"City": "Bonn", "n": 2}\n```', '{"city": "Bonn", "n": 1}', 0.0, 0.5),
        ("json", "exact_match", 'Here: {"City": "Bonn"} done', '{"city": "Bonn"}', 0.0, 1.0),
        ("json", "exact_match", 'Here: {"City": "Bonn", "n": 2}', '{"city": "Bonn", "n": 1}', 0.0, 0.0),
        ("number", "numeric_match", "6 times 7 is $1,042.", "1042", 0.0, 1.0),
        ("number", "numeric_match", "42 or 43", "42", 0.0, 0.0),
    ],
)
def test_tolerant_scoring(output_type: str, metric: str, output: str, target: str, strict: float, tolerant: float) -> None:
    assert score(metric, output, target) == pytest.approx(strict)
    assert tolerant_score(output_type, metric, output, target, ["spam", "ham"]) == pytest.approx(tolerant)


def test_default_metrics() -> None:
    assert [default_metric(one) for one in OUTPUT_TYPES] == ["token_f1", "accuracy", "json_fields", "numeric_match"]


def test_unknown_names_say_what_was_meant() -> None:
    with pytest.raises(KeyError, match="did you mean 'token_f1'"):
        score("tokenf1", "", "")
    with pytest.raises(KeyError, match="did you mean 'label'"):
        tolerant_score("labels", "accuracy", "", "")
    with pytest.raises(KeyError, match="known: text, label, json, number"):
        default_metric("picture")


def test_metrics_need_only_the_standard_library() -> None:
    program = "import sys, evals.metrics; print([m for m in ('numpy', 'scipy', 'torch', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
