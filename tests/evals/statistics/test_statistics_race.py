"""Races: the numbers of the paper's schedule, e-values that keep the best, and what both together find for fewer answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from evals.statistics.betting import Floats, confidence_sequence, log_wealth
from evals.statistics.race import STEP, Ask, lowest, race, rejects_schedule

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


def asking(scores: Floats, log: list[tuple[int, int]] | None = None) -> Ask:
    """From a table of scores, (candidates, items); `log` keeps the rounds."""

    def ask(alive: Sequence[int], start: int, stop: int) -> Floats:
        if log is not None:
            log.append((start, stop))
        return np.asarray(scores[list(alive), start:stop])

    return ask


def planted(means: Sequence[float], items: int, seed: int) -> Floats:
    """0/1 scores of candidates that find the same items hard: half of the spread is the item's."""
    rng = np.random.default_rng(seed)
    latent = np.sqrt(0.5) * (rng.standard_normal(items) + rng.standard_normal((len(means), items)))
    return np.asarray(latent < ndtri(np.array(means))[:, None], dtype=float)


SPREAD = tuple(np.linspace(0.3, 0.8, 12))


@given(
    st.integers(1, 12),
    st.integers(1, 80),
    st.none() | st.integers(0, 500),
    st.integers(1, 5),
    st.integers(0, 999),
    st.booleans(),
)
@settings(deadline=None)
def test_everyone_comes_through_or_leaves_within_the_budget(
    candidates: int, items: int, budget: int | None, keep: int, seed: int, clustered: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = [int(one) for one in np.sort(rng.integers(0, max(1, items // 3), items))] if clustered else None
    log: list[tuple[int, int]] = []
    found = race(asking(rng.random((candidates, items)), log), candidates, items, budget=budget, keep=keep, groups=groups)
    assert sorted([*found.through, *(one.candidate for one in found.left)]) == list(range(candidates))
    assert found.through
    assert found.spent == len(found.through) * found.items + sum(one.items for one in found.left)
    assert found.spent <= (candidates * items if budget is None else budget)
    # Rounds follow each other, and none ends within a cluster.
    assert [start for start, _ in log] == [0, *(stop for _, stop in log)][: len(log)]
    assert all(stop == items or groups is None or groups[stop - 1] != groups[stop] for _, stop in log)
    assert [one.items for one in found.left] == sorted(one.items for one in found.left)
    if budget is None:
        assert not any(one.why == "schedule" for one in found.left)
        assert candidates == 1 or len(found.through) == 1 or found.items == items
    elif found.items:
        assert len(found.through) <= keep
    else:
        assert not found.left


@given(st.integers(2, 12), st.integers(30, 900), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None)
def test_where_nothing_is_proven_they_leave_about_when_the_schedule_says(
    candidates: int, budget: int, keep: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).random((candidates, 300))
    found = race(asking(scores), candidates, 300, budget=budget, keep=keep, alpha=1e-9)
    schedule = rejects_schedule(candidates, budget, 300)
    # In few rounds: phases wait for later ones, which costs something, so that those after them may come a little early.
    assert len({one.items for one in found.left}) <= 6
    assert all(due / STEP <= one.items <= 1.1 * STEP * due for one, due in zip(found.left, schedule, strict=False))
    assert len(found.left) == candidates - len(found.through) == max(0, candidates - keep)
    assert {one.why for one in found.left} <= {"schedule"}


def test_the_schedule_drawn_up_anew_is_the_same_schedule() -> None:
    # Phase by phase: those that are left, with what is left and what they have had.
    for candidates, budget in ((12, 600), (20, 1800), (5, 300)):
        schedule = rejects_schedule(candidates, budget, 10**6)
        spent, before = 0, 0
        for gone, items in enumerate(schedule):
            alive = candidates - gone
            anew = rejects_schedule(alive, budget - spent + alive * before, 10**6)
            assert items <= anew[0] <= 1.03 * items + 1
            spent, before = spent + alive * (items - before), items


def test_who_leaves_as_proven_is_whom_the_mean_of_the_others_e_values_says() -> None:
    scores = planted([0.35, 0.5, 0.7, 0.75, 0.9], 200, seed=4)
    log: list[tuple[int, int]] = []
    found = race(asking(scores, log), 5, 200, budget=None)
    alive, kept, expected = list(range(5)), {}, []
    for _, stop in log:
        for one, other in permutations(alive, 2):
            kept[one, other] = math.exp(log_wealth(scores[one, :stop] - scores[other, :stop])[-1])
        means = {at: sum(kept[one, at] for one in range(5) if one != at) / 4 for at in alive}
        out = sorted((at for at in alive if means[at] >= 20), key=lambda at: scores[at, :stop].mean())
        expected += [(at, stop, float(scores[at, :stop].mean())) for at in out]
        alive = [at for at in alive if at not in out]
    assert [(one.candidate, one.items, one.mean) for one in found.left] == expected
    assert len({items for _, items, _ in expected}) > 1
    assert found.through == tuple(alive)


def test_the_clusters_of_the_race_are_those_of_the_bets() -> None:
    # 12 items that all say the same: one cluster of them is one bet, which proves nothing.
    scores = np.array([[1.0] * 12, [0.0] * 12])
    assert race(asking(scores), 2, 12, budget=None).through == (0,)
    assert race(asking(scores), 2, 12, budget=None, groups=["one"] * 12).left == ()
    with pytest.raises(ValueError, match="together"):
        race(asking(scores), 2, 12, budget=None, groups=["a", "b"] * 6)


@pytest.mark.parametrize("rest", [[0.6], [0.6] * 5, [0.55] * 11])
def test_a_best_one_is_hardly_ever_called_proven_worse(rest: list[float]) -> None:
    runs = 400
    gone = 0
    for seed in range(runs):
        found = race(asking(planted([0.6, *rest], 100, seed)), 1 + len(rest), 100, budget=None)
        gone += any(one.candidate == 0 for one in found.left)
    assert gone / runs <= 0.05


def test_a_peeking_race_is_caught() -> None:
    # The same count for what an eager reader does: drop whoever is significantly behind after any round.
    gone = 0
    for seed in range(200):
        scores = planted([0.6] * 6, 100, seed)
        for stop in (10, 16, 26, 42, 68, 100):
            behind = scores[1:, :stop] - scores[0, :stop]
            error = behind.std(axis=1, ddof=1) / math.sqrt(stop)
            if (behind.mean(axis=1) > 1.96 * error).any():
                gone += 1
                break
    assert gone / 200 > 0.2


@pytest.mark.parametrize(("items", "budget"), [(100, 600), (300, 1800), (300, None)])
def test_the_pick_is_that_of_full_evaluation_for_less(items: int, budget: int | None) -> None:
    regret, spent = [], []
    for seed in range(60):
        scores = planted(SPREAD, items, seed)
        found = race(asking(scores), 12, items, budget=budget)
        pick = max(found.through, key=lambda at: scores[at, : found.items].mean())
        regret.append(SPREAD[int(scores.mean(axis=1).argmax())] - SPREAD[pick])
        spent.append(found.spent / scores.size)
    assert np.mean(regret) <= 0.01
    assert np.mean(spent) <= 0.6


def test_equal_arms_are_said_to_be_equal_and_a_clear_winner_is_not() -> None:
    said = []
    for seed in range(60):
        found = race(asking(planted([0.5] * 20, 100, seed)), 20, 100, budget=600, keep=4)
        said.append(found.equal == found.through and len(found.equal) == 4)
    assert np.mean(said) >= 0.9
    winner = np.vstack([np.ones(200), planted([0.5] * 3, 200, 0)])
    found = race(asking(winner), 4, 200, budget=800, keep=4)
    assert (found.through, found.equal) == ((0,), ())


def test_equal_are_those_whose_difference_from_the_best_may_be_none() -> None:
    split = 0
    for seed in range(40):
        scores = planted(SPREAD, 300, seed)
        found = race(asking(scores), 12, 300, budget=None)
        now = scores[list(found.through), : found.items]
        lows, highs = confidence_sequence(now[now.mean(axis=1).argmax()] - now, level=1 - 0.05 / 11, grid=100)
        # Bounds are rounded outwards: one that is 0 says that 0 itself was refused.
        none = (lows[:, -1] < 0) & (highs[:, -1] > 0)
        expected = tuple(at for at, one in zip(found.through, none, strict=True) if one)
        assert found.equal == (expected if len(expected) > 1 else ())
        split += 1 < len(expected) < len(found.through)
    assert split


def test_what_hopeless_ones_do_not_cost_the_others_are_asked_more() -> None:
    scores = np.vstack([planted([0.6, 0.62, 0.64, 0.66], 400, 1), np.zeros((8, 400))])
    frugal = race(asking(scores), 12, 400, budget=900, keep=1)
    slow = race(asking(scores), 12, 400, budget=900, keep=1, alpha=1e-9)
    assert {one.candidate for one in frugal.left if one.why == "proven"} >= set(range(4, 12))
    assert frugal.items > 1.2 * slow.items
    assert max(frugal.spent, slow.spent) <= 900


def test_of_equal_ones_the_dearer_leaves_then_the_later() -> None:
    scores = np.tile(np.random.default_rng(0).random(40), (4, 1))
    assert race(asking(scores), 4, 40, budget=100).through == (0,)
    price = [3.0, 1.0, 2.0, 1.0]
    found = race(asking(scores), 4, 40, budget=100, dear=lambda at: price[at])
    assert [one.candidate for one in found.left] == [0, 2, 3]


@pytest.mark.parametrize(("candidates", "budget"), [(5, 5), (5, 0), (1, 100), (0, 10)])
def test_a_race_that_cannot_be_run_asks_nothing_and_drops_nobody(candidates: int, budget: int) -> None:
    log: list[tuple[int, int]] = []
    found = race(asking(np.zeros((candidates, 30)), log), candidates, 30, budget=budget)
    assert (found.through, found.left, found.spent, log) == (tuple(range(candidates)), (), 0, [])


@pytest.mark.parametrize("score", [math.nan, 1.5, -0.1])
def test_scores_that_are_none_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        race(asking(np.full((2, 20), score)), 2, 20, budget=None)
    with pytest.raises(ValueError, match="keep"):
        race(asking(np.zeros((2, 20))), 2, 20, budget=None, keep=0)
