"""The mean of independent estimates: exact where all is symmetric, uneven where the parts are, and it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.statistics.combined import mean_of_intervals
from evals.statistics.paired import paired_difference


def test_symmetric_parts_give_the_root_of_summed_variances() -> None:
    parts = [(0.2, 0.2 - 0.1, 0.2 + 0.1), (-0.4, -0.4 - 0.2, -0.4 + 0.2), (0.5, 0.5 - 0.2, 0.5 + 0.2)]
    reach = math.sqrt(0.1**2 + 0.2**2 + 0.2**2) / 3
    assert mean_of_intervals(parts) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))
    assert mean_of_intervals(parts[:1]) == pytest.approx(parts[0])


def test_each_side_has_its_own_distances() -> None:
    mean, low, high = mean_of_intervals([(0.0, -0.3, 0.0), (0.0, -0.4, 0.1)])
    assert (mean, low, high) == pytest.approx((0.0, -0.25, 0.05))


@pytest.mark.parametrize("parts", [[], [(0.5, 0.6, 0.7)], [(math.nan, 0.0, 1.0)]])
def test_what_is_no_interval_is_refused(parts: list[tuple[float, float, float]]) -> None:
    with pytest.raises(ValueError, match=r"nothing|within"):
        mean_of_intervals(parts)


def test_the_mean_over_three_tasks_is_covered_as_often_as_it_says() -> None:
    """Paired 0/1 scores of 40, 60 and 80 items with a true loss of 10, 0 and 20 points."""
    drawn = np.random.default_rng(7)
    truth, held, draws = (-0.1 + 0.0 - 0.2) / 3, 0, 400
    for _ in range(draws):
        parts = []
        for n, lost, won in ((40, 0.2, 0.1), (60, 0.1, 0.1), (80, 0.25, 0.05)):
            sign = drawn.choice([-1, 1, 0], size=n, p=[lost, won, 1 - lost - won])
            found = paired_difference((sign == 1).astype(float), (sign == -1).astype(float))
            parts.append((found.estimate, found.low, found.high))
        _, low, high = mean_of_intervals(parts)
        held += low <= truth <= high
    # Three standard errors of a share of 0.95.
    assert abs(held / draws - 0.95) < 3 * math.sqrt(0.95 * 0.05 / draws)
