"""Means and paired differences of scores: intervals that respect clusters and few items, and the tests beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = Sequence[float] | NDArray[np.float64]
Groups = Sequence[Hashable | None]

FEW_ITEMS = 30
FEW_EVENTS = 10  # under this many events (discordant pairs; passes or failures) the normal approximation is not trusted
CLUSTER_T = "cluster-robust t"
NOISE = 1e-12  # a standard error under this is rounding, not spread
ALL_ALIKE = "score bound, all clusters alike"
NO_SPREAD = "one cluster: nothing is known of the spread"


@dataclass(frozen=True)
class Interval:
    """A mean of scores with its two-sided interval. `n` items in `clusters` clusters; `method` names the interval."""

    estimate: float
    low: float
    high: float
    level: float
    n: int
    clusters: int
    method: str


@dataclass(frozen=True)
class Paired:
    """The mean of a minus b on the same items, in [-1, 1], with its two-sided interval and p-value.

    `discordant` counts the items where a and b differ. `method` names the interval and `test` the test. `sd` is the
    spread of one item's difference that the interval rests on, clusters included: standard error times sqrt(n); 0 where
    the data show no spread.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    discordant: int
    method: str
    test: str
    level: float = 0.95
    sd: float = 0.0


def mean_interval(scores: Floats, groups: Groups | None = None, level: float = 0.95) -> Interval:
    """The mean of `scores` (n values, each in [-1, 1]) with its interval.

    Cluster-robust t (Miller 2024, 2411.00640; `_ClusterMean` says which); Wilson's interval (1927) for ungrouped 0/1
    scores with under 30 items, or under 10 passes or failures. `groups` names each item's cluster; None, for all or for
    one item, is a cluster of its own. Clipped to [0, 1], or to [-1, 1] where a score is negative. Raises ValueError for
    no items, NaN, scores outside [-1, 1], or groups of another length.
    """
    values = _checked(scores, "scores")
    _check_level(level)
    n = len(values)
    codes = _clusters(groups, n)
    found = _cluster_mean(values, codes)
    mean, se, clusters = found.mean, found.se, found.clusters
    floor = 0.0 if values.min() >= 0 else -1.0
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    if binary and clusters == n and (n < FEW_ITEMS or min(values.sum(), n - values.sum()) < FEW_EVENTS):
        low, high = wilson_interval(round(values.sum()), n, level)
        return Interval(mean, low, high, level, n, clusters, "Wilson score")
    if clusters == 1:
        return Interval(mean, floor, 1.0, level, n, clusters, NO_SPREAD)
    if se <= NOISE:
        low, high = _alike_bound(mean, clusters, level, floor)
        return Interval(mean, low, high, level, n, clusters, ALL_ALIKE)
    reach = _t_quantile(found.degrees, (1 + level) / 2) * se
    return Interval(mean, max(floor, mean - reach), min(1.0, mean + reach), level, n, clusters, CLUSTER_T)


def paired_difference(a: Floats, b: Floats, groups: Groups | None = None, level: float = 0.95) -> Paired:
    """The item-weighted mean of a minus b: two candidates' scores on the same n items, in the same order.

    Interval: cluster-robust t (Miller 2024, 2411.00640; `_ClusterMean` says which). Tango's score interval (1998) where
    every score is 0 or 1 and no two items share a cluster, however many they are: where one kind of discordant pair is
    rare, the t interval is too sure even at thousands of items (a true loss of 0.05 from 6% discordant pairs looks like
    less at the one-sided 95% level in 7% of draws of 300, in 6.5% of 600). Test: McNemar's for ungrouped 0/1 scores,
    mid-p from 10 discordant pairs on and exact below (Fagerland, Lydersen and Laake 2013); else the cluster-robust t test.

    Where nothing can be told the answer is wide, never NaN: one cluster gives [-1, 1] and p = 1; clusters that all have
    the same mean difference give the bound of `_alike_bound`, with the p-value that agrees with it (1 at a mean of 0).

    Raises ValueError for no items, different lengths, NaN, or differences outside [-1, 1].
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} scores and b {len(second)}: they must be of the same items")
    differences = _checked(first - second, "differences")
    _check_level(level)
    n = len(differences)
    codes = _clusters(groups, n)
    found = _cluster_mean(differences, codes)
    mean, se, clusters = found.mean, found.se, found.clusters
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    discordant = wins + losses

    if clusters == 1:
        return Paired(mean, -1.0, 1.0, 1.0, n, 1, discordant, NO_SPREAD, "none", level)
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()) and clusters == n
    alike = se <= NOISE
    sd = 0.0 if alike else se * math.sqrt(n)
    if binary:
        low, high = tango_interval(wins, losses, n, level)
        method = "Tango score"
    elif alike:
        low, high = _alike_bound(mean, clusters, level, -1.0)
        method = ALL_ALIKE
    else:
        reach = _t_quantile(found.degrees, (1 + level) / 2) * se
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
        method = CLUSTER_T

    if binary:
        exact = discordant < FEW_EVENTS
        p = mcnemar_exact(wins, losses) if exact else mcnemar(wins, losses)
        test = "McNemar exact" if exact else "McNemar mid-p"
    elif alike:
        # The bound excludes 0 exactly when z^2 < G |mean|.
        p = 2 * NormalDist().cdf(-math.sqrt(clusters * abs(mean)))
        test = ALL_ALIKE
    else:
        p = 2 * _t_lower_tail(found.degrees, -abs(mean) / se)
        test = CLUSTER_T
    return Paired(mean, low, high, min(1.0, p), n, clusters, discordant, method, test, level, sd)


def mcnemar(b: int, c: int) -> float:
    """Two-sided mid-p of McNemar's test for b and c discordant pairs of either kind; 1 where there are none.

    Under the null, b of b + c is Binomial(1/2); the mid-p counts half the probability of results as extreme as the
    observed one (Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91). Raises ValueError below 0.
    """
    n = _discordant(b, c)
    if n == 0:
        return 1.0
    fewer = min(b, c)
    if b == c:
        return 1 - (_coin_cdf(fewer, n) - _coin_cdf(fewer - 1, n)) / 2
    return _coin_cdf(fewer, n) + _coin_cdf(fewer - 1, n)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact conditional p of McNemar's test: twice the binomial tail, at most 1. ValueError below 0."""
    n = _discordant(b, c)
    return min(1.0, 2 * _coin_cdf(min(b, c), n))


def tango_interval(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for the difference (b - c) / n of paired proportions: b and c discordant of n pairs.

    The limits are where the score statistic, with the nuisance probability at its restricted maximum likelihood,
    equals the normal quantile (Tango 1998, Stat Med 17:891-908). Raises ValueError for impossible counts.
    """
    _check_level(level)
    if n < 1 or _discordant(b, c) > n:
        raise ValueError(f"{b} and {c} discordant pairs of {n}")
    z_squared = NormalDist().inv_cdf((1 + level) / 2) ** 2
    estimate = (b - c) / n

    def inside(delta: float) -> bool:
        linear = delta * (2 * n - b + c) - b - c
        constant = -c * delta * (1 - delta)
        root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
        q = (root - linear) / (4 * n)  # restricted maximum likelihood of the probability of the c cell
        variance = n * max(0.0, 2 * q + delta * (1 - delta))
        return (b - c - n * delta) ** 2 <= z_squared * variance

    return _edge(estimate, -1.0, inside), _edge(estimate, 1.0, inside)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927, JASA 22:209) for `successes` of `n`. Raises ValueError for impossible counts."""
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the limit is the end itself, but for rounding.
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == n else (centre + reach) / scale
    return low, high


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979, Scand J Stat 6:65), in the order given. ValueError outside [0, 1]."""
    if not all(0 <= p <= 1 for p in pvalues):
        raise ValueError("p-values must lie in [0, 1]")
    adjusted = [0.0] * len(pvalues)
    reached = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        reached = max(reached, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = reached
    return adjusted


def _alike_bound(mean: float, clusters: int, level: float, floor: float) -> tuple[float, float]:
    """Interval for a mean of values in [floor, 1] where all G clusters have the same mean: a rule of three.

    A share of at most z^2 / (G + z^2) of clusters (Wilson's bound at 0 of G) may be of another kind, unseen, and each
    of those may have any mean at all. At means of 0 and 1 this is Wilson's interval, at -1, 0 and 1 Tango's.
    """
    z_squared = NormalDist().inv_cdf((1 + level) / 2) ** 2
    unseen = z_squared / (clusters + z_squared)
    return (1 - unseen) * mean + unseen * floor, (1 - unseen) * mean + unseen


@dataclass(frozen=True)
class _ClusterMean:
    """The mean of n items in G clusters, its standard error, and the degrees of freedom of a t statistic made of them.

    Clusters of one size: the usual G / (G - 1) correction and G - 1 degrees of freedom (Liang and Zeger 1986). Of unequal
    sizes: CR2, in which each cluster's squared sum of residuals counts 1 / (1 - its share of the items) times, since a
    cluster pulls the mean towards itself, and the degrees of freedom of Bell and McCaffrey (2002; Pustejovsky and Tipton
    2018, 1601.01981) under the correlation within clusters that the residuals show (Imbens and Kolesar 2016, REStat
    98:701). With a dozen unequal clusters the usual way claims a difference of equal candidates in 7 to 8% of runs. One
    cluster: nothing is known of the spread, and the error is given as 0.
    """

    mean: float
    se: float
    clusters: int
    degrees: float


def _cluster_mean(values: NDArray[np.float64], codes: NDArray[np.intp] | None) -> _ClusterMean:
    n = len(values)
    mean = float(values.mean())
    residuals = values - mean
    sums = residuals if codes is None else np.asarray(np.bincount(codes, weights=residuals), dtype=np.float64)
    count = len(sums)
    if count == 1:
        return _ClusterMean(mean, 0.0, 1, 0.0)
    sizes = np.ones(n) if codes is None else np.bincount(codes).astype(np.float64)
    if sizes.min() == sizes.max():
        return _ClusterMean(mean, math.sqrt(count / (count - 1) * float(sums @ sums)) / n, count, count - 1.0)
    se = math.sqrt(float((sums / (1 - sizes / n)) @ sums)) / n
    return _ClusterMean(mean, se, count, _degrees(sizes, _correlation(residuals, sums, sizes)))


def _correlation(residuals: NDArray[np.float64], sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """The correlation of two items of a cluster, in [0, 1]: their mean product over the mean square. 0 where none differ."""
    squares = float(residuals @ residuals)
    if squares <= NOISE**2:
        return 0.0
    products = (float(sums @ sums) - squares) / float(sizes @ (sizes - 1))
    return min(1.0, max(0.0, products * len(residuals) / squares))


def _degrees(sizes: NDArray[np.float64], correlation: float) -> float:
    """Satterthwaite's degrees of freedom, (sum of eigenvalues)^2 / (sum of their squares), of the CR2 variance of a mean.

    The eigenvalues are those of M, M_gh = sqrt(b_g b_h) Cov(r_g, r_h): r_g is the sum of the residuals of cluster g, b_g =
    1 / (1 - w_g), and w_g its share of the items. Where v_g is the variance of a cluster's sum, Cov(r_g, r_h) is
    v_g [g = h] - w_h v_g - w_g v_h + w_g w_h sum(v). Worked out, so that no G x G matrix is needed. From 1 to G - 1.
    """
    shares = sizes / sizes.sum()
    variances = sizes * (1 + (sizes - 1) * correlation)
    whole = float(variances.sum())
    weights = 1 / (1 - shares)
    one, mixed, two = (float(weights @ part) for part in (shares**2, shares * variances, variances**2))
    # All pairs without the term [g = h], then what that adds on the diagonal.
    squares = 2 * one * two + 2 * mixed**2 + (whole * one) ** 2 - 4 * whole * one * mixed
    off = shares * (shares * whole - 2 * variances)
    squares += float(weights**2 @ ((off + variances) ** 2 - off**2))
    return float(weights @ (off + variances)) ** 2 / squares


def _clusters(groups: Groups | None, n: int) -> NDArray[np.intp] | None:
    """Each item's cluster as a number from 0; None where every item is its own."""
    if groups is None:
        return None
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items")
    seen: dict[Hashable, int] = {}
    # A pair cannot collide with a user's own group names.
    codes = [seen.setdefault((index, None) if group is None else (group,), len(seen)) for index, group in enumerate(groups)]
    return None if len(seen) == n else np.array(codes, dtype=np.intp)


def _finite(values: Floats, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a list of at least one number")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity")
    return array


def _checked(values: Floats, name: str) -> NDArray[np.float64]:
    array = _finite(values, name)
    if np.abs(array).max() > 1 + NOISE:
        raise ValueError(f"{name} must lie in [-1, 1]")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")


def _discordant(b: int, c: int) -> int:
    if b < 0 or c < 0:
        raise ValueError(f"counts cannot be negative: {b}, {c}")
    return b + c


def _edge(inner: float, outer: float, inside: Callable[[float], bool]) -> float:
    """The last point from `inner` (inside) towards `outer` that is inside, by bisection to a float's precision."""
    if inside(outer):
        return outer
    for _ in range(60):
        middle = (inner + outer) / 2
        if inside(middle):
            inner = middle
        else:
            outer = middle
    return inner


# scipy.special rather than scipy.stats: the same functions without its second of import.


def _t_quantile(degrees: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def _t_lower_tail(degrees: float, t: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(degrees, t))


def _coin_cdf(k: int, n: int) -> float:
    """P(X <= k) for X of Binomial(n, 1/2)."""
    from scipy.special import bdtr

    return float(bdtr(k, n, 0.5)) if k >= 0 else 0.0
