"""The schedule of a race: within its budget, and the numbers of the paper's formula."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.statistics.race import lowest, rejects_schedule

CANDIDATES = st.integers(0, 40)
BUDGET = st.integers(-5, 3000)
ITEMS = st.integers(0, 500)


def cost(schedule: tuple[int, ...], candidates: int) -> int:
    """Requests: everyone who is left answers what is new in each phase."""
    total, before = 0, 0
    for left, after in enumerate(schedule):
        total += (candidates - left) * (after - before)
        before = after
    return total


@given(CANDIDATES, BUDGET, ITEMS)
def test_a_schedule_never_decreases_and_never_costs_more_than_the_budget(candidates: int, budget: int, items: int) -> None:
    schedule = rejects_schedule(candidates, budget, items)
    assert len(schedule) == max(0, candidates - 1)
    assert list(schedule) == sorted(schedule)
    assert all(0 <= one <= items for one in schedule)
    assert cost(schedule, candidates) <= max(0, budget)


@given(st.integers(2, 12), st.integers(13, 2000))
def test_the_phases_are_those_of_the_formula_in_exact_fractions(candidates: int, budget: int) -> None:
    logbar = Fraction(1, 2) + sum(Fraction(1, i) for i in range(2, candidates + 1))
    exact = [math.ceil(Fraction(budget - candidates) / (logbar * (candidates + 1 - k))) for k in range(1, candidates)]
    assert list(rejects_schedule(candidates, budget, 10**6)) == exact


def test_numbers_worked_by_hand() -> None:
    # logbar(4) = 1/2 + 1/2 + 1/3 + 1/4 = 19/12; (42-4) / (19/12) = 24; 24/4, 24/3, 24/2.
    assert rejects_schedule(4, 42, 100) == (6, 8, 12)
    assert cost((6, 8, 12), 4) == 4 * 6 + 3 * 2 + 2 * 4
    assert rejects_schedule(4, 42, 7) == (6, 7, 7)
    assert rejects_schedule(2, 20, 100) == (9,)


@pytest.mark.parametrize(("candidates", "budget"), [(5, 5), (5, 3), (5, 0), (3, -1)])
def test_a_budget_that_does_not_go_round_asks_nothing(candidates: int, budget: int) -> None:
    assert set(rejects_schedule(candidates, budget, 100)) == {0}


def test_fewer_than_two_candidates_do_not_race() -> None:
    assert rejects_schedule(1, 100, 100) == rejects_schedule(0, 100, 100) == ()


def test_the_lowest_leaves_and_of_equal_ones_the_last() -> None:
    assert lowest([0.5, 0.2, 0.9]) == 1
    assert lowest([0.2, 0.5, 0.2]) == 2
    assert lowest([0.0]) == 0
    with pytest.raises(ValueError, match="empty"):
        lowest([])


@given(st.lists(st.floats(0, 1), min_size=1))
def test_nobody_after_the_one_that_leaves_is_as_low(means: list[float]) -> None:
    at = lowest(means)
    assert means[at] == min(means)
    assert means[at] not in means[at + 1 :]
