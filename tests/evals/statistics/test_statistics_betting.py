"""Betting: fair games that do not peek, by enumeration; bounds that hold wherever one stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.statistics.betting import confidence_sequence, log_wealth, told_apart

SIGNS = np.array(list(product((-1.0, 1.0), repeat=14)))


def wealth_in_words(differences: Sequence[float], null: float, largest: int = 1) -> float:
    """Ten players, each with a tenth of the money and a stake of its own."""
    money = []
    for share in np.linspace(0.05, 0.95, 10):
        own = 0.1
        for one in differences:
            own *= 1 + share / (largest * (1 + null)) * (one - null)
        money.append(own)
    return sum(money)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-0.9, 0.9))
def test_wealth_is_that_of_ten_players(differences: list[float], null: float) -> None:
    found = np.exp(log_wealth(differences, null))
    expected = [wealth_in_words(differences[: at + 1], null) for at in range(len(differences))]
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_fair_game_stays_fair_whenever_one_stops() -> None:
    # Every one of the 2^14 sequences of fair coins, with equal weight: expectations without simulation.
    wealth = np.exp(log_wealth(SIGNS))
    assert wealth.mean(axis=0) == pytest.approx(np.ones(14), rel=1e-12)
    # Stopping when it looks best, or at the end, gains nothing.
    for threshold in (1.5, 3.0, 20.0):
        reached = wealth >= threshold
        stop = np.where(reached.any(axis=1), reached.argmax(axis=1), 13)
        assert wealth[np.arange(len(wealth)), stop].mean() == pytest.approx(1.0, rel=1e-12)
        assert reached.any(axis=1).mean() <= 1 / threshold


def test_a_mean_below_the_null_loses_and_one_above_it_wins() -> None:
    coins = np.repeat([[1.0, -1.0, 0.0]], 60, axis=0).T.ravel()
    steady = np.tile([1.0, 0.0, 0.0, -1.0, 1.0], 40)
    assert log_wealth(coins - coins.mean())[-1] < 0
    assert log_wealth(steady)[-1] > math.log(20)
    assert log_wealth(-steady)[-1] < 0
    assert log_wealth(steady, null=0.3)[-1] < 0


def test_clusters_are_fair_where_their_size_tells_their_sum() -> None:
    # One item that is won in 2 of 3 clusters, two that are lost in the third: the item-weighted mean is 0.
    kinds = [((1.0,), 2 / 3), ((-1.0, -1.0), 1 / 3)]
    bet, naive = 0.0, 0.0
    for clusters in product(kinds, repeat=6):
        chance = math.prod(weight for _, weight in clusters)
        values = [one for items, _ in clusters for one in items]
        groups = [at for at, (items, _) in enumerate(clusters) for _ in items]
        bet += chance * math.exp(log_wealth(values, groups=groups, largest=2)[-1])
        naive += chance * math.exp(log_wealth(values)[-1])
    assert bet == pytest.approx(1.0, rel=1e-12)
    # The same items as bets of their own are no fair game: two that always go together win too much.
    assert naive > 1.1


def test_clusters_without_a_known_largest_take_it_from_the_data() -> None:
    values = [1.0, 1.0, -1.0, 1.0, 0.0]
    found = np.exp(log_wealth(values, groups=["a", "a", None, "b", "b"]))
    # The first item of a cluster changes nothing yet.
    expected = [1.0, *(wealth_in_words(sums, 0.0, 2) for sums in ([2.0], [2.0, -1.0], [2.0, -1.0], [2.0, -1.0, 1.0]))]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_cluster_is_settled_by_its_last_item() -> None:
    apart = log_wealth([1.0, 0.5, 1.0], groups=["a", "b", "a"])
    assert np.exp(apart) == pytest.approx([1.0, wealth_in_words([0.5], 0, 2), wealth_in_words([0.5, 2.0], 0, 2)])


VALUES = st.lists(st.floats(-1, 1), min_size=2, max_size=40)


@settings(deadline=None)
@given(VALUES, VALUES, st.data())
def test_later_items_change_nothing_that_was_said(first: list[float], later: list[float], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=len(first), max_size=len(first)))
    more = [*groups, *(["c"] * len(later))]
    most = len(first) + len(later)
    n = len(first)
    before, after = log_wealth(first, groups=groups, largest=most), log_wealth([*first, *later], groups=more, largest=most)
    assert (after[:n] == before).all()
    said = confidence_sequence(first, groups, largest=most, grid=50)
    repeated = confidence_sequence([*first, *later], more, largest=most, grid=50)
    assert all((again[:n] == once).all() for once, again in zip(said, repeated, strict=True))


def in_the_papers_words(values: Sequence[float], alpha: float, grid: int) -> list[tuple[float, float]]:
    """Waudby-Smith and Ramdas 2023, hedged capital with the predictable plug-in, on [0, 1]: item by item and mean by mean."""
    total = squares = 0.0
    variance = 0.25
    up, down = [1.0] * (grid + 1), [1.0] * (grid + 1)
    refused: set[int] = set()
    bounds = []
    for t, x in enumerate(values, 1):
        stake = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        for at in range(grid + 1):
            m = at / grid
            up[at] *= 1 + min(stake, 0.5 / m if m else math.inf) * (x - m)
            down[at] *= 1 - min(stake, 0.5 / (1 - m) if m < 1 else math.inf) * (x - m)
            if max(up[at], down[at]) / 2 >= 1 / alpha:
                refused.add(at)
        total += x
        squares += (x - (0.5 + total) / (t + 1)) ** 2
        variance = (0.25 + squares) / (t + 1)
        left = [at for at in range(grid + 1) if at not in refused]
        bounds.append((max(0, left[0] - 1) / grid, min(grid, left[-1] + 1) / grid))
    return bounds


@pytest.mark.parametrize(("mean", "graded"), [(0.5, False), (0.1, False), (0.25, True), (0.97, False)])
def test_the_sequence_is_the_papers(mean: float, graded: bool) -> None:
    rng = np.random.default_rng(3)
    values = rng.beta(10 * mean, 10 * (1 - mean), 150) if graded else (rng.random(150) < mean).astype(float)
    lows, highs = confidence_sequence(values, low=0.0, high=1.0, level=0.9, grid=100)
    expected = np.array(in_the_papers_words(values.tolist(), 0.1, 100)).T
    assert lows == pytest.approx(expected[0], abs=1e-12)
    assert highs == pytest.approx(expected[1], abs=1e-12)
    assert (np.diff(lows) >= 0).all()
    assert (np.diff(highs) <= 0).all()
    assert highs[-1] - lows[-1] < 0.3


def test_other_ranges_are_the_same_game() -> None:
    values = np.random.default_rng(5).random((3, 80))
    lows, highs = confidence_sequence(values, low=0.0, high=1.0)
    wide = confidence_sequence(2 * values - 1)
    assert wide[0] == pytest.approx(2 * lows - 1)
    assert wide[1] == pytest.approx(2 * highs - 1)
    assert lows.shape == (3, 80)
    alone = confidence_sequence(values[1], low=0.0, high=1.0)
    assert (alone[0] == lows[1]).all()


@pytest.mark.parametrize("clustered", [False, True])
def test_it_covers_at_every_item_at_once(clustered: bool) -> None:
    rng = np.random.default_rng(11)
    runs, n, mean = 1000, 120, 0.1
    groups = None
    if clustered:
        sizes = rng.integers(1, 6, n)
        groups = list(np.repeat(np.arange(n), sizes)[:n])
    of = np.arange(n) if groups is None else np.array(groups)
    # Items of a cluster have the same difference.
    values = rng.choice([1.0, 0.0, -1.0], (runs, n), p=[0.25, 0.6, 0.15])[:, of]
    lows, highs = confidence_sequence(values, groups, grid=200)
    covered = ((lows <= mean) & (mean <= highs)).all(axis=1)
    # 0.95 less three standard errors of 1,000 runs.
    assert covered.mean() >= 0.93
    if clustered:
        # As bets of their own the same items claim too much.
        lows, highs = confidence_sequence(values, grid=200)
        assert ((lows <= mean) & (mean <= highs)).all(axis=1).mean() < 0.85


def test_a_peeking_stake_is_caught() -> None:
    # What the games above would look like with a stake that knows its own item: no fair game at all.
    stakes = np.where(SIGNS > 0, 0.5, 0.05)
    assert np.cumprod(1 + stakes * SIGNS, axis=1).mean(axis=0)[-1] > 10


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_told_apart_is_the_sequence_that_leaves_out_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shift = rng.choice([-0.5, -0.2, 0.0, 0.2, 0.5])
    values = np.clip(rng.uniform(-1, 1, (4, 60)) + shift, -1, 1)
    groups = list(np.repeat(np.arange(40), rng.integers(1, 4, 40))[:60]) if seed % 2 else None
    lows, highs = confidence_sequence(values, groups, level=0.9, grid=100)
    # Bounds are rounded outwards: one that is 0 says that 0 itself was refused.
    assert (told_apart(values, groups, 0.9) == (lows[:, -1] >= 0) | (highs[:, -1] <= 0)).all()


def test_nothing_known_is_said_to_be_nothing() -> None:
    assert log_wealth([]).shape == (0,)
    lows, highs = confidence_sequence([1.0])
    assert (lows[0], highs[0]) == (-1.0, 1.0)
    lows, highs = confidence_sequence([0.0] * 200)
    assert lows[-1] < 0 < highs[-1]
    assert not told_apart([0.0] * 200)


@pytest.mark.parametrize("values", [[math.nan], [1.5], [0.0, -1.01]])
def test_values_that_are_no_differences_are_refused(values: list[float]) -> None:
    for game in (log_wealth, confidence_sequence, told_apart):
        with pytest.raises(ValueError, match=r"\[-1, 1\]"):
            game(values)  # type: ignore[operator]


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        log_wealth([0.0], null=1.0)
    with pytest.raises(ValueError, match="level"):
        confidence_sequence([0.0], level=1.0)
    with pytest.raises(ValueError, match="low"):
        confidence_sequence([0.0], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="2 groups for 1 items"):
        log_wealth([0.0], groups=["a", "b"])
    with pytest.raises(ValueError, match="a cluster has 2 items"):
        log_wealth([0.0, 0.0], groups=["a", "a"], largest=1)
