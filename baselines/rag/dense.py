"""Dense retrieval: the chunks whose vectors have the highest cosine with the question's.

Up to `EXACT_UP_TO` chunks every vector is looked at. Beyond that a FAISS index picks candidates, whose cosines are then computed
exactly from the vectors themselves; so scores are exact in both, and only a chunk that is no candidate can be missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from baselines.rag.index import Index, readable
from baselines.rag.inverted import Inverted, open_inverted
from baselines.rag.questions import say_cut
from baselines.rag.retriever import Found
from evals.events import OnEvent, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_UP_TO = 50_000
QUESTIONS_AT_ONCE = 64
# By how much a cosine in float32 may change with the order of its sum.
ROUNDING = 1e-5


class Dense:
    """Finds by cosine; equals come in the order of the documents. Where a search is not exact, a Note says what it misses."""

    name = "dense"

    def __init__(self, index: Index, on_event: OnEvent = ignore) -> None:
        self.index = index
        self.on_event = on_event

    @property
    def settings(self) -> Mapping[str, Any]:
        how = self._inverted.settings if self._inverted else {"kind": "exact"}
        return {"retriever": self.name, "index": self.index.hash, **how}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        if not questions or count < 1 or not len(self.index.chunks):
            return [[] for _ in questions]
        questions = [readable(one) for one in questions]
        say_cut(questions, self.index.embedder, self.on_event)
        vectors = self.index.embedder.encode(questions, "embedding the questions")
        return [
            self._found(vector, rows, count) for vector, rows in zip(vectors, self._candidates(vectors, count), strict=True)
        ]

    @cached_property
    def _inverted(self) -> Inverted | None:
        if len(self.index.chunks) <= EXACT_UP_TO:
            return None
        return open_inverted(self.index, self.on_event)

    def _candidates(self, vectors: NDArray[np.float32], count: int) -> list[NDArray[np.int64]]:
        if self._inverted:
            return self._inverted.candidates(vectors, count)
        return [
            rows
            for start in range(0, len(vectors), QUESTIONS_AT_ONCE)
            for rows in _nearest(self.index.vectors, vectors[start : start + QUESTIONS_AT_ONCE], count)
        ]

    def _found(self, vector: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> list[Found]:
        scores = cosines(self.index.vectors, vector, rows)
        best = sorted(range(len(rows)), key=lambda at: (-scores[at], rows[at]))[:count]
        return [Found(self.index.chunks[int(rows[at])], float(scores[at])) for at in best]


def cosines(vectors: NDArray[np.float32], vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosine of each of these rows with one unit vector. Equal rows get equal numbers to the last bit, whichever others
    are asked for: each row is summed by itself, which a matrix product does not promise."""
    found: NDArray[np.float32] = (vectors[rows] * vector).sum(axis=1)
    return found


def _nearest(vectors: NDArray[np.float32], some: NDArray[np.float32], count: int) -> list[NDArray[np.int64]]:
    """For each of some unit vectors the rows of the `count` highest cosines, with all that equal the last of them."""
    import numpy as np

    scores = some @ vectors.T
    count = min(count, len(vectors))
    last = np.partition(scores, len(vectors) - count, axis=1)[:, len(vectors) - count]
    return [np.flatnonzero(row >= least - ROUNDING) for row, least in zip(scores, last, strict=True)]
