"""Two texts, word piece by word piece: does each piece of one find its like in the other?

An embedding of a whole text says what it is about; questions about one thing look alike in it. Matching pieces sees the one word
that has no counterpart: "why was it declined" is not "why is it pending". After BERTScore (Zhang et al. 2020, 1904.09675).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Pieces(Protocol):
    """What an embedding model reads: the word pieces of each text by number, and a unit vector (n, d) for each of them."""

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]: ...
    def piece_vectors(self, texts: Sequence[str]) -> list[NDArray[np.float32]]: ...


def matched(pairs: Sequence[tuple[str, str]], every: Sequence[str], pieces: Pieces) -> list[float]:
    """For each pair the share of its pieces' weight that finds a like in the other text, of the text where it is less: up to 1.

    A piece counts by its highest cosine with the other's pieces, weighted by its inverse document frequency in `every`: what
    stands in all questions of a task tells nothing.
    """
    texts = sorted({text for pair in pairs for text in pair}, key=lambda text: (len(text), text))
    if not texts:
        return []
    frequency = Counter(piece for ids in pieces.piece_ids(every) for piece in set(ids))
    weight = {piece: math.log((len(every) + 1) / (count + 1)) for piece, count in frequency.items()}
    ids = dict(zip(texts, pieces.piece_ids(texts), strict=True))
    vectors = dict(zip(texts, pieces.piece_vectors(texts), strict=True))
    rarest = math.log(len(every) + 1)
    found = []
    for first, second in pairs:
        cosines = vectors[first] @ vectors[second].T
        if not cosines.size:
            found.append(0.0)
            continue
        sides = ((ids[first], cosines.max(axis=1)), (ids[second], cosines.max(axis=0)))
        found.append(min(_weighted(some, best, weight, rarest) for some, best in sides))
    return found


def _weighted(ids: Sequence[int], best: NDArray[np.float32], weight: Mapping[int, float], rarest: float) -> float:
    import numpy as np

    weights = np.array([weight.get(piece, rarest) for piece in ids])
    total = float(weights.sum())
    return float(best @ weights) / total if total else float(best.mean())
