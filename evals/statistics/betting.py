"""Betting on the mean of bounded scores: evidence that may be looked at after every item, and stopped at any of them.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2023 (2010.09686). A gambler starts
with 1, and before each item stakes a share of the wealth on what the item will be; where the null hypothesis holds the game is
fair or worse, so that the wealth ever reaches 1/alpha with probability alpha at most (Ville). What is staked depends on earlier
items only.

Items of one cluster are one bet, on the sum of what they have over the null: the expectation of that sum is 0 where the
item-weighted mean E[sum] / E[size] is the null, whatever the sizes have to do with the scores. The stake is set before the size
is known, so it is limited by the largest cluster that there can be.

All functions take arrays (..., n) and work along the last axis; leading axes are separate games with the same clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Groups = Sequence[Hashable | None]

# What each player of the e-process stakes, as shares of the most that cannot make the wealth negative.
SHARES = np.linspace(0.05, 0.95, 10)
# The confidence sequence never stakes a larger share than this (the paper's c).
STAKE = 0.5
# Means that a confidence sequence tells apart, over the range of the values.
GRID = 1000
# Elements that are worked on at once: more would leave the processor's cache.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Clusters:
    """The bets of n items: a cluster is settled when its last item has come.

    `order` (n,) puts the items of each cluster together, clusters in the order in which they are settled; `starts` and `sizes`
    (bets,) are their places in it; `settled` (n,) counts the clusters settled after each item, and `largest` is the most items
    that any cluster may have.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: Floats
    settled: NDArray[np.intp]
    largest: int

    def sums(self, values: Floats) -> Floats:
        """(..., n) -> (..., bets)."""
        return (
            values if len(self.starts) == values.shape[-1] else np.add.reduceat(values[..., self.order], self.starts, axis=-1)
        )

    def after_each_item(self, after_each_bet: Floats, before: float) -> Floats:
        """(..., bets) -> (..., n); `before` where no bet is settled yet."""
        first = np.full((*after_each_bet.shape[:-1], 1), before)
        return np.concatenate([first, after_each_bet], axis=-1)[..., self.settled]


def clusters_of(groups: Groups | None, n: int, largest: int | None = None) -> Clusters:
    """`groups` names each item's cluster; None, for all or for one item, is a cluster of its own. `largest` is the size that no
    cluster exceeds, where more clusters are to come than these; left out, the largest of these.

    Raises ValueError for groups of another length and for a cluster above `largest`.
    """
    if groups is None:
        each = np.arange(n)
        return Clusters(each, each, np.ones(n), each + 1, largest or 1)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items")
    last: dict[Hashable, int] = {}
    keys: list[Hashable] = [("", at) if one is None else ("named", one) for at, one in enumerate(groups)]
    for at, key in enumerate(keys):
        last[key] = at
    ends = np.array([last[key] for key in keys], dtype=np.intp)
    order = np.argsort(ends, kind="stable")
    unique, starts, sizes = np.unique(ends[order], return_index=True, return_counts=True)
    most = int(sizes.max(initial=1))
    if largest is not None and most > largest:
        raise ValueError(f"a cluster has {most} items, but the largest was to have {largest}")
    settled = np.searchsorted(unique, np.arange(n), side="right")
    return Clusters(order, starts, sizes.astype(float), settled, largest or most)


def log_wealth(
    differences: ArrayLike, null: float = 0.0, groups: Groups | None = None, *, largest: int | None = None
) -> Floats:
    """The log of the wealth of the bet that the mean of `differences` (..., n), each in [-1, 1], exceeds `null`, after each item.

    exp of it is an e-process for "the mean is `null` or less": its expectation at any stopping time is 1 at most. Items count in
    the order in which they came; an item that does not complete its cluster changes nothing yet.

    Raises ValueError for values that are not in [-1, 1], a `null` outside of (-1, 1), or groups that do not fit.
    """
    values = _within(differences, -1.0, 1.0)
    if not -1 < null < 1:
        raise ValueError(f"null must be between -1 and 1, not {null}")
    clusters = clusters_of(groups, values.shape[-1], largest)
    return clusters.after_each_item(bet(clusters.sums(values), clusters.sizes, clusters.largest, null), 0.0)


def bet(sums: Floats, sizes: Floats, largest: int, null: float = 0.0) -> Floats:
    """The log-wealth of `log_wealth` after each bet: `sums` (..., bets) of clusters of `sizes`, none above `largest`.

    Diversified Kelly betting (in the paper's appendix): the gambler splits the wealth evenly among players who each stake a
    constant share of what is allowed, so that the best of them is soon most of it. What it comes to does not depend on the
    order of the items. A cluster of size 0 is no bet.
    """
    over = sums - null * sizes
    return pooled([np.cumsum(won, axis=-1) for won in gains(over, largest, null)])


def gains(over: Floats, largest: int, null: float = 0.0) -> Iterator[Floats]:
    """By how much the log-wealth of each player grows at each bet; `over` is what the sums are over the null, (..., bets)."""
    for share in SHARES:
        yield np.log1p(share / (largest * (1 + null)) * over)


def pooled(players: Sequence[Floats]) -> Floats:
    """The log of the players' mean wealth."""
    return np.asarray(np.logaddexp.reduce(players, axis=0) - math.log(len(players)))


def confidence_sequence(
    values: ArrayLike,
    groups: Groups | None = None,
    level: float = 0.95,
    low: float = -1.0,
    high: float = 1.0,
    *,
    largest: int | None = None,
    grid: int = GRID,
) -> tuple[Floats, Floats]:
    """Bounds (lows, highs), each (..., n), of the item-weighted mean of `values` (..., n), each in [low, high], after each item.

    With probability `level` the mean is within the bounds after all items at once, so they hold wherever one stops and for
    whatever reason. The paper's hedged capital with predictable plug-in stakes and running intersection; means are told apart
    on a grid of `grid` steps, rounded outwards. Should nothing be left between the bounds, which a fair sample allows with
    probability 1 - level at most, both are the same number.

    Raises ValueError for values that are not in [low, high], a level outside of (0, 1), or groups that do not fit.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if not low < high:
        raise ValueError(f"low ({low}) must be below high ({high})")
    given = (_within(values, low, high) - low) / (high - low)
    clusters = clusters_of(groups, given.shape[-1], largest)
    lows, highs = hedged(clusters.sums(given), clusters.sizes, clusters.largest, level, grid)
    after = clusters.after_each_item
    return low + (high - low) * after(lows, 0.0), low + (high - low) * after(highs, 1.0)


def hedged(sums: Floats, sizes: Floats, largest: int, level: float, grid: int = GRID) -> tuple[Floats, Floats]:
    """The bounds of `confidence_sequence` after each bet, for values in [0, 1]: `sums` (..., bets) of clusters of `sizes`.

    The wealth of the bet that the mean is above m falls in m, and that it is below m rises in m: the means that are refused from
    below are a run of the grid that starts at 0, and from above one that ends at 1. So it is enough to count them.
    """
    flat = sums.reshape(-1, sums.shape[-1])
    each = np.broadcast_to(sizes, sums.shape).reshape(flat.shape)
    stakes = _plug_in(flat, each, level)
    means = np.linspace(0.0, 1.0, grid + 1)
    below, above = (np.zeros(flat.shape, dtype=np.int32) for _ in range(2))
    step = max(1, BLOCK // max(1, flat.size))
    rows = max(1, BLOCK // max(1, flat.shape[-1]))
    for first in range(0, len(flat), rows):
        part = slice(first, first + rows)
        for at in range(0, grid + 1, step):
            some = means[at : at + step]
            below[part] += _refused(flat[part], each[part], stakes[part], largest, some, level).sum(axis=0)
            # The other side is the same game with 1 - value: the counts start at the other end of the grid.
            above[part] += _refused(each[part] - flat[part], each[part], stakes[part], largest, some, level).sum(axis=0)
    # The last mean that is refused, not the first that is not.
    lows, highs = np.maximum(below - 1, 0) / grid, 1 - np.maximum(above - 1, 0) / grid
    return lows.reshape(sums.shape), np.maximum(lows, highs).reshape(sums.shape)


def _refused(sums: Floats, sizes: Floats, stakes: Floats, largest: int, means: Floats, level: float) -> NDArray[np.bool_]:
    """(means, runs, bets): which `means` are refused as too small after each bet, with half of alpha spent on this side."""
    m = means[:, None, None]
    with np.errstate(divide="ignore"):
        limited = np.minimum(stakes, STAKE / (largest * m))
    wealth = np.cumsum(np.log1p(limited * (sums - m * sizes)), axis=-1)
    return np.maximum.accumulate(wealth, axis=-1) >= math.log(2 / (1 - level))


def _plug_in(sums: Floats, sizes: Floats, level: float) -> Floats:
    """The stakes before each bet, without their limit: sqrt(2 log(2/alpha) / (v t log(1+t))), v the variance so far.

    The paper's predictable plug-in, whose made-up first item has mean 1/2 and variance 1/4; of clusters it is the
    variance of the sum around what the mean so far makes of the size.
    """
    counted = np.cumsum(sizes > 0, axis=-1)
    mean = (0.5 + np.cumsum(sums, axis=-1)) / (1 + np.cumsum(sizes, axis=-1))
    seen = 0.25 + _before((sums - mean * sizes) ** 2)
    # v is what was seen over t, which leaves one t of the formula's two.
    return np.asarray(np.sqrt(2 * math.log(2 / (1 - level)) / (seen * np.log1p(np.maximum(counted, 1)))))


def told_apart(
    differences: ArrayLike, groups: Groups | None = None, level: float = 0.95, *, largest: int | None = None
) -> NDArray[np.bool_]:
    """(...): whether the confidence sequence of the mean of `differences` (..., n), each in [-1, 1], has left out 0.

    The same as asking `confidence_sequence`, without its grid.
    """
    values = (_within(differences, -1.0, 1.0) + 1) / 2
    clusters = clusters_of(groups, values.shape[-1], largest)
    sums = clusters.sums(values).reshape(-1, len(clusters.sizes))
    sizes = np.broadcast_to(clusters.sizes, sums.shape)
    stakes = _plug_in(sums, sizes, level)
    half = np.array([0.5])
    up = _refused(sums, sizes, stakes, clusters.largest, half, level)
    down = _refused(sizes - sums, sizes, stakes, clusters.largest, half, level)
    return np.asarray((up | down)[0].any(axis=-1)).reshape(values.shape[:-1])


def _before(values: Floats) -> Floats:
    """Sums of all that came before each one, to the last bit untouched by it."""
    none = np.zeros((*values.shape[:-1], 1))
    return np.cumsum(np.concatenate([none, values[..., :-1]], axis=-1), axis=-1)


def _within(values: ArrayLike, low: float, high: float) -> Floats:
    found = np.asarray(values, dtype=float)
    # A NaN is not within anything.
    if not np.all((found >= low) & (found <= high)):
        raise ValueError(f"values must be in [{low:g}, {high:g}]")
    return found
