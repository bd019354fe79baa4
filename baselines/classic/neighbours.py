"""Nearest neighbours on sentence embeddings: the label that most of the similar training rows have."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baselines.classic.folds import MOST_ROWS, sample
from baselines.classic.labels import Predict, Predicted
from evals.engines.embed import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNTS = (1, 3, 5, 10)
# Questions that are compared with all rows at once: 512 by 100,000 similarities are 200 MB.
BLOCK = 512


@dataclass(frozen=True)
class Neighbours:
    """Votes of the k nearest rows, each weighted by its cosine; k is the one that is right most often about training rows
    whose own cluster is left out (ties: the smallest)."""

    embedder: Embedder
    name: str = "nearest_neighbour"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"embeddings": self.embedder.fingerprint, "counts": COUNTS, "chosen_on": MOST_ROWS}

    def learn(self, texts: Sequence[str], fields: Mapping[str, Sequence[str]], clusters: Sequence[str]) -> Predict:
        import numpy as np

        rows = self.embedder.encode(texts, "embedding the training rows")
        names, codes = {}, {}
        for key, values in fields.items():
            names[key], codes[key] = np.unique(np.asarray(values, dtype=object), return_inverse=True)
        counts = _choose(rows, codes, clusters)

        def predict(questions: Sequence[str]) -> Predicted:
            seconds = self.embedder.seconds_each(questions)
            asked = self.embedder.encode(questions, "embedding the questions")
            started = time.perf_counter()
            found: dict[str, list[str]] = {key: [] for key in fields}
            for near, weights, _ in _nearest(asked, rows):
                for key in fields:
                    won = _vote(codes[key][near], weights, counts[key], len(names[key]))
                    found[key] += [str(names[key][one]) for one in won]
            return Predicted(found, seconds + (time.perf_counter() - started) / max(1, len(questions)))

        return predict


def _choose(rows: NDArray[np.float32], codes: Mapping[str, NDArray[np.int64]], clusters: Sequence[str]) -> dict[str, int]:
    """Of each field, the k that is right most often."""
    import numpy as np

    asked = np.asarray(sample(clusters))
    cluster = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)[1]
    right = {key: dict.fromkeys(COUNTS, 0) for key in codes}
    for near, weights, part in _nearest(rows[asked], rows, cluster[asked], cluster):
        for key, code in codes.items():
            for count in COUNTS:
                won = _vote(code[near], weights, count, int(code.max()) + 1)
                right[key][count] += int((won == code[asked[part]]).sum())
    return {key: max(COUNTS, key=lambda count: (some[count], -count)) for key, some in right.items()}


def _nearest(
    asked: NDArray[np.float32],
    rows: NDArray[np.float32],
    own: NDArray[np.int64] | None = None,
    cluster: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], slice]]:
    """Block by block, the nearest rows of each question (best first), their cosines (none under 0), and which questions.

    With `own` and `cluster`, a question's own cluster is no neighbour.
    """
    import numpy as np

    most = min(max(COUNTS), len(rows))
    for start in range(0, len(asked), BLOCK):
        part = slice(start, min(start + BLOCK, len(asked)))
        cosines = asked[part] @ rows.T
        if own is not None and cluster is not None:
            cosines[own[part, None] == cluster] = -np.inf
        near = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        found = np.take_along_axis(cosines, near, axis=1)
        # Rows that are equally near: the first of them, so that the answer does not hang on the order of partition.
        order = np.lexsort((near, -found), axis=1)
        near, found = np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1)
        yield near, np.maximum(found, 0), part


def _vote(codes: NDArray[np.int64], weights: NDArray[np.float32], count: int, labels: int) -> NDArray[np.int64]:
    """The label with the greatest sum of weights among the first `count` neighbours of each question."""
    import numpy as np

    votes = np.zeros((len(codes), labels))
    # A row that is nearest breaks ties, and stands where no neighbour has a weight.
    np.add.at(votes, (np.arange(len(codes)), codes[:, 0]), 1e-9)
    for at in range(min(count, codes.shape[1])):
        np.add.at(votes, (np.arange(len(codes)), codes[:, at]), weights[:, at])
    won: NDArray[np.int64] = votes.argmax(axis=1)
    return won
