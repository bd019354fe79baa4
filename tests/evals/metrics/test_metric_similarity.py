"""Embedding similarity: the cosine of answer and target, whatever the embedding model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evals.engines.embed import Embedder
from evals.engines.engine import Message
from evals.metrics.metric import Metric
from evals.metrics.similarity import Similarity
from evals.task.example import Example

VECTORS = {"east": (1.0, 0.0), "north-east": (0.6, 0.8), "north": (0.0, 1.0), "west": (-1.0, 0.0)}


class Compass(Embedder):
    """Directions as vectors; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__("compass")
        self.calls = 0

    def encode(self, texts: Sequence[str], task: str = "embedding") -> NDArray[np.float32]:
        self.calls += 1
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def pair(answer: str, target: str) -> tuple[Example, str]:
    return Example("1", (Message("user", "where?"),), target), answer


def test_scores_are_cosines_clipped_at_zero_and_empty_answers_score_zero() -> None:
    compass = Compass()
    metric: Metric = Similarity(lambda: compass)
    scores = metric(
        [pair("east", "north-east"), pair("", "east"), pair("north", "north-east"), pair("west", "east"), pair(" \n", "east")]
    )
    assert scores == pytest.approx([0.6, 0.0, 0.8, 0.0, 0.0])
    assert compass.calls == 1
    assert metric([]) == []
    assert metric([pair("  ", "east")]) == [0.0]
    assert compass.calls == 1


def test_nothing_is_opened_before_it_is_needed() -> None:
    def fails() -> Embedder:
        raise AssertionError("opened")

    metric = Similarity(fails, "meaning")
    assert metric.name == "meaning"
    assert metric([pair("", "east")]) == [0.0]


def test_with_a_model_equal_texts_score_one_and_the_settings_name_its_weights(tiny_embeddings: Path) -> None:
    embedder = Embedder(str(tiny_embeddings))
    metric = Similarity(lambda: embedder)
    answers = ["a long answer " * 9, "Paris", "zzz"]
    first, second, third = metric(
        [pair(answer, target) for answer, target in zip(answers, [answers[0], "Paris", "Rome"], strict=True)]
    )
    assert [first, second] == pytest.approx([1, 1], abs=1e-6)
    one, two = embedder.encode(["zzz", "Rome"]).astype(float)
    assert third == pytest.approx(max(0.0, float(one @ two)), abs=1e-6)
    assert max(first, second, third) <= 1
    assert metric.settings == {"embedder": embedder.fingerprint}
