"""A linear support vector machine on words and pieces of words, weighted by TF-IDF: no model is downloaded for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from baselines.classic.folds import FOLDS, MOST_ROWS, choose
from baselines.classic.labels import Predict, Predicted

STRENGTHS = (0.1, 0.3, 1.0, 3.0)
USUAL = 1.0
WORDS = (1, 2)
PIECES = (2, 5)
# Characters of a text that are read: pieces of long documents would fill the memory.
READ = 4000
SEED = 0


class TfidfLinear:
    """Words and pairs of words, and runs of characters within words (Joachims 1998); the strength is chosen by folds."""

    name = "tfidf_linear"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "words": WORDS,
            "pieces": PIECES,
            "read": READ,
            "strengths": STRENGTHS,
            "folds": FOLDS,
            "chosen_on": MOST_ROWS,
            "seed": SEED,
        }

    def learn(self, texts: Sequence[str], fields: Mapping[str, Sequence[str]], clusters: Sequence[str]) -> Predict:
        read = _Reader(texts)
        # One reading for all folds: the weights of words hang on no label, so nothing of the answers leaks.
        known = read(texts)
        models = {key: _fit(known, values, clusters) for key, values in fields.items()}

        def predict(questions: Sequence[str]) -> Predicted:
            started = time.perf_counter()
            asked = read(questions)
            values = {key: [str(value) for value in model.predict(asked)] for key, model in models.items()}
            return Predicted(values, (time.perf_counter() - started) / max(1, len(questions)))

        return predict


class _Reader:
    """Texts -> a sparse matrix of the terms that the training texts have."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.parts: list[Any] = []
        for form in ({"ngram_range": WORDS, "token_pattern": r"\w+"}, {"ngram_range": PIECES, "analyzer": "char_wb"}):
            part = TfidfVectorizer(sublinear_tf=True, **form)
            try:
                part.fit(self._short(texts))
            except ValueError:  # no text has a term: all are empty, or nothing but signs
                continue
            self.parts.append(part)

    def __call__(self, texts: Sequence[str]) -> Any:
        from scipy.sparse import csr_matrix, hstack

        found = [part.transform(self._short(texts)) for part in self.parts]
        # A column of nothing: there is a matrix even where there are no terms.
        return hstack([*found, csr_matrix((len(texts), 1))], format="csr")

    @staticmethod
    def _short(texts: Sequence[str]) -> list[str]:
        return [text[:READ] for text in texts]


def _fit(known: Any, values: Sequence[str], clusters: Sequence[str]) -> Any:
    import numpy as np

    wanted = np.asarray(values, dtype=object)

    def right(strength: float, learn: Any, ask: Any) -> int:
        return int((_model(known[learn], wanted[learn], strength).predict(known[ask]) == wanted[ask]).sum())

    return _model(known, wanted, choose(STRENGTHS, USUAL, values, clusters, right))


def _model(known: Any, wanted: Any, strength: float) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        # Labels that the words do not tell are fitted for ever; the folds say what that is worth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LinearSVC(C=strength, random_state=SEED, dual=True).fit(known, wanted)
