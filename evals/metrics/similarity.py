"""Embedding similarity: the cosine of answer and target, for answers that may use other words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from evals.engines.embed import Embedder
from evals.task.example import Example


class Similarity:
    """Cosine of the unit vectors of answer and target, clipped to [0, 1]; an empty answer scores 0.

    It measures what a text is about, not whether it is right: "in March" and "in May" are near each other, and texts that
    have nothing in common are rarely at 0. Embedding models read only the beginning of a long text (all-MiniLM-L6-v2: 256
    tokens). Reimers and Gurevych 2019 (1908.10084).
    """

    def __init__(self, embedder: Callable[[], Embedder], name: str = "similarity") -> None:
        self._embedder = embedder
        self.name = name

    @cached_property
    def embedder(self) -> Embedder:
        return self._embedder()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"embedder": self.embedder.fingerprint}

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        import numpy as np

        scores = [0.0] * len(pairs)
        told = [at for at, (_, answer) in enumerate(pairs) if answer.strip()]
        if not told:
            return scores
        vectors = self.embedder.encode(
            [pairs[at][1] for at in told] + [pairs[at][0].target for at in told], f"{self.name}: texts"
        )
        answers, targets = vectors[: len(told)].astype(np.float64), vectors[len(told) :].astype(np.float64)
        for at, cosine in zip(told, np.einsum("nd,nd->n", answers, targets), strict=True):
            scores[at] = min(1.0, max(0.0, float(cosine)))
        return scores
