"""The conditional random field against sums over all sequences of tags."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from baselines.classic.crf import FORBIDDEN, Crf, _expected, _pack, train_crf

RANDOM = np.random.default_rng(0)
TAGS = 3
LENGTHS = [2, 4, 1, 3]


def path_score(emissions: Any, steps: Any, starts: Any, path: tuple[int, ...]) -> float:
    moves = sum(steps[one, other] for one, other in pairwise(path))
    return float(starts[path[0]] + moves + sum(emissions[at, tag] for at, tag in enumerate(path)))


def likelihood(emissions: Any, steps: Any, starts: Any, gold: tuple[int, ...]) -> float:
    """The log-likelihood of one sequence, its normaliser summed path by path."""
    every = [path_score(emissions, steps, starts, path) for path in product(range(TAGS), repeat=len(emissions))]
    return path_score(emissions, steps, starts, gold) - float(np.logaddexp.reduce(every))


def test_expectations_are_those_of_all_paths() -> None:
    emissions = [RANDOM.normal(scale=3, size=(length, TAGS)) for length in LENGTHS]
    steps, starts = RANDOM.normal(size=(TAGS, TAGS)), RANDOM.normal(size=TAGS)
    steps[0, 2] = FORBIDDEN
    packed = _pack(LENGTHS)
    total, shares, moved, began = _expected(packed, np.vstack(emissions)[packed.order], steps, starts)

    wanted_total = 0.0
    wanted_shares, wanted_moves, wanted_began = np.zeros((sum(LENGTHS), TAGS)), np.zeros((TAGS, TAGS)), np.zeros(TAGS)
    first = 0
    for emission in emissions:
        paths = list(product(range(TAGS), repeat=len(emission)))
        scores = np.array([path_score(emission, steps, starts, path) for path in paths])
        total_here = np.logaddexp.reduce(scores)
        wanted_total += total_here
        for path, chance in zip(paths, np.exp(scores - total_here), strict=True):
            wanted_began[path[0]] += chance
            for at, tag in enumerate(path):
                wanted_shares[first + at, tag] += chance
            for one, other in pairwise(path):
                wanted_moves[one, other] += chance
        first += len(emission)
    assert total == pytest.approx(wanted_total)
    assert shares == pytest.approx(wanted_shares[packed.order])
    assert moved == pytest.approx(wanted_moves, abs=1e-9)
    assert began == pytest.approx(wanted_began)


def test_the_best_path_is_the_best_of_all() -> None:
    for _ in range(30):
        emissions, steps, starts = RANDOM.normal(size=(4, TAGS)), RANDOM.normal(size=(TAGS, TAGS)), RANDOM.normal(size=TAGS)
        best = Crf(np.zeros((1, TAGS)), steps, starts).best(emissions)
        wanted = max(product(range(TAGS), repeat=4), key=lambda path: path_score(emissions, steps, starts, path))
        assert tuple(best) == wanted
    assert Crf(np.zeros((1, TAGS)), steps, starts).best(np.zeros((0, TAGS))) == []


def test_training_finds_the_peak_of_the_likelihood() -> None:
    from scipy.sparse import csr_matrix

    # The last column never occurs: it is no unknown and keeps the weight 0.
    dense = np.hstack([RANDOM.integers(0, 2, size=(sum(LENGTHS), 4)), np.zeros((sum(LENGTHS), 1))]).astype(float)
    gold = np.array([0, 1, 0, 2, 2, 1, 2, 1, 0, 0])
    allowed = np.ones((TAGS + 1, TAGS), dtype=bool)
    penalty = 0.3
    found = train_crf(csr_matrix(dense), gold, LENGTHS, allowed, penalty, 500)

    def worth(weights: Any, steps: Any, starts: Any) -> float:
        first, total = 0, 0.0
        for length in LENGTHS:
            rows = slice(first, first + length)
            total += likelihood(dense[rows] @ weights, steps, starts, tuple(gold[rows]))
            first += length
        squares = (weights**2).sum() + (steps**2).sum() + (starts**2).sum()
        return total - penalty / 2 * float(squares)

    best = worth(found.weights, found.steps, found.starts)
    assert not found.weights[4].any()
    for _ in range(50):
        other = [part + RANDOM.normal(scale=0.02, size=part.shape) for part in (found.weights, found.steps, found.starts)]
        assert worth(*other) < best


def test_what_is_not_allowed_is_never_said() -> None:
    from scipy.sparse import csr_matrix

    # Tag 2 may only follow tag 1; the features shout for it everywhere.
    allowed = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=bool)
    features = csr_matrix(np.ones((9, 1)))
    found = train_crf(features, np.array([0, 1, 2, 1, 2, 2, 1, 2, 2]), [3, 3, 3], allowed, 0.1, 50)
    assert found.steps[0, 2] == found.starts[2] == FORBIDDEN
    for emissions in RANDOM.normal(size=(20, 5, 3)) + np.array([0, 0, 3]):
        tags = [0, *found.best(emissions)]
        assert all(before != 0 for before, tag in pairwise(tags) if tag == 2)
