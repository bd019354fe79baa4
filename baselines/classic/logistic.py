"""Logistic regression on sentence embeddings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baselines.classic.folds import FOLDS, MOST_ROWS, choose
from baselines.classic.labels import Predict, Predicted
from evals.engines.embed import Embedder

# Inverse regularisation strengths: the variance of the prior on a weight, whatever the number of rows.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
USUAL = 10.0
# Steps of the optimiser. Unit vectors need few: later ones change probabilities and hardly ever the likeliest label.
ROUNDS = 200


@dataclass(frozen=True)
class Logistic:
    embedder: Embedder
    name: str = "classifier_on_embeddings"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "embeddings": self.embedder.fingerprint,
            "strengths": STRENGTHS,
            "rounds": ROUNDS,
            "folds": FOLDS,
            "chosen_on": MOST_ROWS,
        }

    def learn(self, texts: Sequence[str], fields: Mapping[str, Sequence[str]], clusters: Sequence[str]) -> Predict:
        vectors = self.embedder.encode(texts, "embedding the training rows")
        models = {key: _fit(vectors, values, clusters) for key, values in fields.items()}

        def predict(questions: Sequence[str]) -> Predicted:
            seconds = self.embedder.seconds_each(questions)
            asked = self.embedder.encode(questions, "embedding the questions")
            started = time.perf_counter()
            values = {key: [str(value) for value in model.predict(asked)] for key, model in models.items()}
            return Predicted(values, seconds + (time.perf_counter() - started) / max(1, len(questions)))

        return predict


def _fit(vectors: Any, values: Sequence[str], clusters: Sequence[str]) -> Any:
    import numpy as np

    wanted = np.asarray(values, dtype=object)

    def right(strength: float, learn: Any, ask: Any) -> int:
        return int((_model(vectors[learn], wanted[learn], strength).predict(vectors[ask]) == wanted[ask]).sum())

    return _model(vectors, wanted, choose(STRENGTHS, USUAL, values, clusters, right))


def _model(vectors: Any, wanted: Any, strength: float) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `ROUNDS` says why
        return LogisticRegression(C=strength, max_iter=ROUNDS, tol=1e-3).fit(vectors, wanted)
