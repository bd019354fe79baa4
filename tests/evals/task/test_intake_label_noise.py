"""Planted label flips are found, copies do not vouch for each other, and labels too rare to judge are counted, not guessed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evals.engines.engine import Message
from evals.task.checks.findings import Finding
from evals.task.checks.label_noise import MIN_ROWS, label_noise
from evals.task.example import Example
from evals.task.reading.formats import Row

NAMES = ["ask", "buy", "chat", "drop"]


def made(labels: list[str], groups: list[str | None] | None = None) -> list[Row]:
    return [
        Row(
            Example(f"row-{at}", (Message("user", f"text {at}"),), label, group=groups[at] if groups else None),
            "train.jsonl",
            at,
        )
        for at, label in enumerate(labels)
    ]


def clouds(true: list[int], spread: float = 0.25, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around one direction a class."""
    draw = np.random.default_rng(seed)
    centres = np.eye(16)[: max(true) + 1]
    points = centres[true] + spread * draw.normal(size=(len(true), 16))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def rows_of(found: list[Finding]) -> list[int]:
    return [int(one.places[0].id.removeprefix("row-")) for one in found if one.places]


@pytest.fixture
def flipped() -> tuple[list[Row], NDArray[np.float32], dict[int, tuple[str, str]]]:
    """400 rows of four classes, 21 of them with another label: rows, vectors, row -> (given, true)."""
    true = [at % 4 for at in range(400)]
    labels = [NAMES[one] for one in true]
    wrong = {}
    for at in range(7, 400, 19):
        given = NAMES[(true[at] + 1 + at % 3) % 4]
        wrong[at] = (given, labels[at])
        labels[at] = given
    return made(labels), clouds(true), wrong


def test_planted_flips_come_first_with_what_they_should_be(
    flipped: tuple[list[Row], NDArray[np.float32], dict[int, tuple[str, str]]],
) -> None:
    rows, vectors, wrong = flipped
    found = label_noise(rows, vectors, 0)
    flagged = rows_of(found)
    right = len(set(flagged) & wrong.keys())
    assert right >= 0.9 * len(flagged)
    assert right >= 0.7 * len(wrong)
    for one in found[:10]:
        at = rows_of([one])[0]
        assert (one.details["given"], one.details["suggested"]) == wrong[at]
        assert (one.check, one.level, one.drop) == ("label_noise", "review", False)
        assert wrong[at][0] in one.message
        assert wrong[at][1] in one.message
    values = [one.value or 0.0 for one in found[:-1]]
    assert values == sorted(values)
    for one in found[:-1]:
        assert one.value == pytest.approx((one.details["given_probability"] - one.details["probability"] + 1) / 2)
        assert one.details["probability"] > one.details["given_probability"]


def test_the_share_of_wrong_labels_is_estimated(
    flipped: tuple[list[Row], NDArray[np.float32], dict[int, tuple[str, str]]],
) -> None:
    rows, vectors, wrong = flipped
    summary = label_noise(rows, vectors, 0)[-1]
    assert summary.level == "info"
    assert summary.value == pytest.approx(len(wrong) / len(rows), abs=0.03)
    assert summary.details == {"rows": 400, "judged": 400, "flagged": len(label_noise(rows, vectors, 0)) - 1}


def test_clean_labels_of_classes_far_apart_accuse_nobody() -> None:
    true = [at % 4 for at in range(200)]
    found = label_noise(made([NAMES[one] for one in true]), clouds(true, spread=0.05), 0)
    assert rows_of(found) == []
    assert found[0].value == pytest.approx(0.0, abs=0.01)


def test_copies_with_the_same_wrong_label_do_not_vouch_for_each_other() -> None:
    true = [at % 4 for at in range(200)]
    vectors = clouds(true)
    labels = [NAMES[one] for one in true]
    groups: list[str | None] = [None] * 200
    # A row of class 0 stands there 15 times, each time called "drop".
    labels += ["drop"] * 15
    groups += ["copy"] * 15
    vectors = np.concatenate([vectors, np.repeat(vectors[:1], 15, axis=0)])
    grouped = rows_of(label_noise(made(labels, groups), vectors, 0))
    assert set(range(200, 215)) <= set(grouped)


def test_the_same_rows_and_seed_give_the_same_findings(
    flipped: tuple[list[Row], NDArray[np.float32], dict[int, tuple[str, str]]],
) -> None:
    rows, vectors, _ = flipped
    assert label_noise(rows, vectors, 3) == label_noise(rows, vectors, 3)


def test_rare_labels_are_not_judged_and_counted() -> None:
    true = [at % 4 for at in range(200)]
    labels = [NAMES[one] for one in true] + ["rare"] * (MIN_ROWS - 1) + ["once"]
    vectors = np.concatenate([clouds(true), clouds([5] * MIN_ROWS, seed=1)])
    found = label_noise(made(labels), vectors, 0)
    assert not set(rows_of(found)) & set(range(200, 200 + MIN_ROWS))
    assert found[-1].details["judged"] == 200
    assert f"{MIN_ROWS} rows could not be judged" in found[-1].message


def test_a_label_that_one_group_holds_alone_is_not_judged() -> None:
    true = [at % 3 for at in range(150)] + [3] * 20
    groups: list[str | None] = [None] * 150 + ["one document"] * 20
    found = label_noise(made([NAMES[one] for one in true], groups), clouds(true), 0)
    assert not set(rows_of(found)) & set(range(150, 170))
    assert found[-1].details["judged"] == 150


@pytest.mark.parametrize("labels", [["a"] * 40, [f"label {at}" for at in range(40)], ["a"] * 12 + ["b"] * 3, ["a"]])
def test_what_cannot_be_judged_is_said(labels: list[str]) -> None:
    found = label_noise(made(labels), clouds([0] * len(labels)), 0)
    assert [(one.check, one.level) for one in found] == [("label_noise", "info")]
    assert "cannot be judged" in found[0].message


def test_no_rows_no_findings() -> None:
    assert label_noise([], np.zeros((0, 4), dtype=np.float32), 0) == []
