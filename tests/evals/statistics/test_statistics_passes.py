"""pass@k against the published formula and against counting every draw."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from evals.statistics.passes import pass_at_k


def test_binary_scores_give_the_published_formula() -> None:
    m = 8
    for right in range(m + 1):
        samples = [[1.0] * right + [0.0] * (m - right)]
        for k in range(1, m + 1):
            assert pass_at_k(samples, k)[0] == pytest.approx(1 - comb(m - right, k) / comb(m, k))


def test_graded_scores_are_the_mean_best_of_every_draw() -> None:
    scores = np.random.default_rng(0).random((20, 6)).round(1)
    for k in range(1, 7):
        counted = [np.mean([max(draw) for draw in combinations(row, k)]) for row in scores]
        np.testing.assert_allclose(pass_at_k(scores, k), counted)


def test_the_order_of_samples_does_not_count_and_more_draws_are_never_worse() -> None:
    scores = np.random.default_rng(1).random((50, 5))
    shuffled = np.random.default_rng(2).permuted(scores, axis=1)
    np.testing.assert_allclose(pass_at_k(scores, 3), pass_at_k(shuffled, 3))
    values = np.stack([pass_at_k(scores, k) for k in range(1, 6)])
    assert (np.diff(values, axis=0) >= 0).all()
    np.testing.assert_allclose(values[0], scores.mean(axis=1))
    np.testing.assert_allclose(values[-1], scores.max(axis=1))


@pytest.mark.parametrize(("samples", "k"), [([[1.0, 0.0]], 0), ([[1.0, 0.0]], 3), (np.zeros((0, 4)), 1)])
def test_what_cannot_be_told_is_refused(samples: object, k: int) -> None:
    with pytest.raises(ValueError, match="cannot be told"):
        pass_at_k(samples, k)  # type: ignore[arg-type]
