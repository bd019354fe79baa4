"""Intervals and tests against enumeration, published tables, statsmodels and simulation."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from evals.statistics.paired import (
    _degrees,
    holm,
    mcnemar,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    tango_interval,
    wilson_interval,
)

# Complete response before and after consolidation therapy (Cavo et al. 2012), the worked example of chapter 8 of
# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), as their R package prints it.
CAVO = (6, 16, 161)
# A level far from the usual ones, so that a hard-wired 1.96 fails.
LEVELS = [0.8, 0.95, 0.99]


def tosses(n: int) -> list[int]:
    """How far from even each of the 2^n equally likely sequences of discordant pairs is."""
    return [abs(2 * sum(signs) - n) for signs in product((0, 1), repeat=n)]


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 1), (0, 5), (1, 4), (3, 3), (2, 9), (6, 6), (0, 12), (5, 7)])
def test_mcnemar_by_enumeration(b: int, c: int) -> None:
    distances = tosses(b + c)
    beyond = sum(one > abs(b - c) for one in distances) / len(distances)
    at = sum(one == abs(b - c) for one in distances) / len(distances)
    assert mcnemar(b, c) == pytest.approx(beyond + at / 2)
    assert mcnemar_exact(b, c) == pytest.approx(beyond + at)


def test_mcnemar_on_the_published_example() -> None:
    b, c, _ = CAVO
    assert mcnemar_exact(b, c) == pytest.approx(0.052479, abs=1e-6)
    assert mcnemar(b, c) == pytest.approx(0.034690, abs=1e-6)


def test_mcnemar_at_the_ends() -> None:
    assert mcnemar(0, 0) == mcnemar_exact(0, 0) == 1.0
    assert 0 < mcnemar(5000, 5200) < 0.05
    for test in (mcnemar, mcnemar_exact):
        with pytest.raises(ValueError, match="negative"):
            test(-1, 2)


def test_tango_on_the_published_example() -> None:
    assert tango_interval(*CAVO) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


def score_statistic(delta: float, b: int, c: int, n: int) -> float:
    """Tango's statistic with the nuisance probability found by maximising the likelihood numerically."""

    def loss(q: float) -> float:
        rest = 1 - 2 * q - delta
        cells = [(b, q + delta), (c, q), (n - b - c, rest)]
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in cells if count)

    found = optimize.minimize_scalar(
        loss, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
    )
    return float((b - c - n * delta) / math.sqrt(n * (2 * found.x + delta - delta**2)))


@pytest.mark.parametrize(("b", "c", "n"), [(6, 2, 25), (1, 7, 21), (3, 3, 40), (9, 1, 12), (4, 0, 200), (0, 2, 9)])
@pytest.mark.parametrize("level", LEVELS)
def test_tango_inverts_the_score_test(b: int, c: int, n: int, level: float) -> None:
    z = stats.norm.ppf((1 + level) / 2)
    low, high = tango_interval(b, c, n, level)
    assert score_statistic(low, b, c, n) == pytest.approx(z, abs=2e-4)
    assert score_statistic(high, b, c, n) == pytest.approx(-z, abs=2e-4)
    # No second crossing: all between is inside, all beyond is outside.
    for delta in np.linspace(-0.99, 0.99, 67):
        if min(abs(delta - low), abs(delta - high)) > 0.01:
            assert (abs(score_statistic(float(delta), b, c, n)) < z) == (low < delta < high)


def test_tango_at_the_ends() -> None:
    z_squared = stats.norm.ppf(0.975) ** 2
    assert tango_interval(0, 0, 50) == pytest.approx((-z_squared / (50 + z_squared), z_squared / (50 + z_squared)))
    assert tango_interval(10, 0, 10)[1] == 1.0
    assert tango_interval(0, 10, 10) == pytest.approx([-one for one in tango_interval(10, 0, 10)[::-1]])
    with pytest.raises(ValueError, match="of 5"):
        tango_interval(4, 2, 5)


@pytest.mark.parametrize("level", LEVELS)
def test_wilson_against_scipy(level: float) -> None:
    for successes, n in [(0, 7), (3, 10), (29, 29), (81, 263)]:
        theirs = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
        assert wilson_interval(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_is_used_where_the_normal_approximation_is_not() -> None:
    few = mean_interval([1] * 9 + [0] * 11)
    assert few.method == "Wilson score"
    assert (few.low, few.high) == pytest.approx(wilson_interval(9, 20))
    assert mean_interval([1] * 500).low == pytest.approx(wilson_interval(500, 500)[0])
    assert mean_interval([1] * 195 + [0] * 5).method == "Wilson score"
    assert mean_interval([1] * 20 + [0] * 20).method == "cluster-robust t"


def test_holm_on_a_worked_example() -> None:
    # By hand: 4 x .005, then 3 x .01 = .03, then 2 x .03 = .06, and .04 raised to .06; in the order given.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    for wrong in ([1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="p-values"):
            holm(wrong)


def test_holm_against_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    pvalues = np.random.default_rng(1).uniform(0, 0.2, 30)
    assert holm(list(pvalues)) == pytest.approx(multitest.multipletests(pvalues, method="holm")[1])


@pytest.mark.parametrize("level", LEVELS)
def test_ungrouped_is_the_paired_t_test(level: float) -> None:
    random = np.random.default_rng(2)
    a, b = random.uniform(size=(2, 40))
    ours, theirs = paired_difference(a, b, level=level), stats.ttest_rel(a, b)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(level)))
    assert (ours.method, ours.test, ours.n, ours.clusters) == ("cluster-robust t", "cluster-robust t", 40, 40)
    assert ours.sd == pytest.approx(np.std(a - b, ddof=1))


def test_equal_clusters_against_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(17), 6)
    shift = random.normal(0, 0.2, 17)[groups]
    a, b = np.clip(random.uniform(0.3, 0.9, 102) + shift, 0, 1), random.uniform(0, 1, 102)
    for level in LEVELS:
        fit = api.OLS(a - b, np.ones(102)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        ours = paired_difference(a, b, [f"document {one}" for one in groups], level)
        assert ours.estimate == pytest.approx(fit.params[0])
        assert (ours.low, ours.high) == pytest.approx(tuple(fit.conf_int(1 - level)[0]))
        assert ours.p == pytest.approx(fit.pvalues[0])
        assert ours.clusters == 17
        fit = api.OLS(a, np.ones(102)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        mean = mean_interval(a, list(groups), level)
        assert (mean.low, mean.high) == pytest.approx(tuple(fit.conf_int(1 - level)[0]))


def cr2(values: np.ndarray, groups: np.ndarray, correlation: float | None) -> tuple[float, float]:
    """Standard error and degrees of freedom by the matrices of Pustejovsky and Tipton (2018), sections 2.1 and 3.2.

    Least squares of `values` on a constant; the working model of the adjustment is the identity, that of the degrees of freedom
    has `correlation` within clusters (None: what residuals show, by the sum over all pairs of items).
    """
    n = len(values)
    design = np.ones((n, 1))
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    residuals = values - hat @ values
    same = groups[:, None] == groups[None]
    pairs = same & ~np.eye(n, dtype=bool)
    if correlation is None:
        correlation = min(1.0, max(0.0, np.outer(residuals, residuals)[pairs].mean() / (residuals**2).mean()))
    working = np.where(same, correlation, 0.0) + (1 - correlation) * np.eye(n)
    variance, columns = 0.0, []
    for name in np.unique(groups):
        mine = groups == name
        eigenvalues, vectors = np.linalg.eigh((np.eye(n) - hat)[np.ix_(mine, mine)])
        adjusted = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T @ np.ones(mine.sum()) / n
        variance += (adjusted @ residuals[mine]) ** 2
        columns.append((np.eye(n) - hat)[:, mine] @ adjusted)
    quadratic = np.array(columns) @ working @ np.array(columns).T
    return math.sqrt(variance), np.trace(quadratic) ** 2 / (quadratic**2).sum()


@pytest.mark.parametrize("seed", range(6))
def test_unequal_clusters_by_matrices(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(12, 70))
    groups = random.integers(0, random.integers(3, 15), n)
    luck = random.normal(0, 0.1 * seed, 15)[groups]
    a, b = np.clip(np.stack((luck, -luck)) + random.uniform(0.2, 0.8, (2, n)), 0, 1)
    se, degrees = cr2(a - b, groups, None)
    reach = stats.t.ppf(0.975, degrees) * se
    ours = paired_difference(a, b, list(groups))
    assert (ours.low, ours.high) == pytest.approx((ours.estimate - reach, ours.estimate + reach))
    assert ours.p == pytest.approx(2 * stats.t.sf(abs(ours.estimate) / se, degrees))
    assert ours.sd == pytest.approx(se * math.sqrt(n))
    se, degrees = cr2(a, groups, None)
    mean = mean_interval(a, list(groups), 0.8)
    assert mean.high - mean.estimate == pytest.approx(stats.t.ppf(0.9, degrees) * se)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [[1, 9], [1, 2, 3, 10, 10], [4, 4, 4, 5], [50, 1, 1]])
def test_degrees_of_freedom_by_matrices(sizes: list[int], correlation: float) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(7).uniform(size=len(groups))
    _, expected = cr2(values, groups, correlation)
    degrees = _degrees(np.array(sizes, dtype=float), correlation)
    assert degrees == pytest.approx(expected)
    assert 1 - 1e-9 <= degrees <= len(sizes) - 1 + 1e-9


def test_clusters_of_one_size_keep_all_degrees_of_freedom() -> None:
    for correlation in (0.0, 0.4, 1.0):
        assert _degrees(np.full(9, 4.0), correlation) == pytest.approx(8)


def test_thousands_of_unequal_clusters() -> None:
    # 3,000 clusters: a G x G matrix would be 72 MB.
    random = np.random.default_rng(8)
    groups = np.repeat(np.arange(3000), random.integers(1, 4, 3000))
    values = random.uniform(size=len(groups))
    found = paired_difference(values, np.zeros(len(groups)), list(groups))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(len(groups)), rel=0.05)


def test_repeating_every_item_in_its_cluster_tells_nothing_new() -> None:
    random = np.random.default_rng(4)
    a, b = random.uniform(size=(2, 30))
    once = paired_difference(a, b)
    thrice = paired_difference(np.repeat(a, 3), np.repeat(b, 3), list(np.repeat(np.arange(30), 3)))
    assert (thrice.low, thrice.high, thrice.p) == pytest.approx((once.low, once.high, once.p))
    assert (thrice.n, thrice.clusters) == (90, 30)


def test_items_without_a_group_are_clusters_of_their_own() -> None:
    a, b = [0.1, 0.9, 0.4, 0.6, 0.3], [0.2, 0.3, 0.4, 0.1, 0.5]
    assert paired_difference(a, b, [None] * 5) == paired_difference(a, b)
    assert paired_difference(a, b, ["x", "x", None, None, None]).clusters == 4
    # A name that looks like what None becomes inside.
    assert paired_difference(a, b, [(2, None), "x", None, "y", "z"]).clusters == 5


def binary(both: int, b: int, c: int, neither: int) -> tuple[list[int], list[int]]:
    return [1] * (both + b) + [0] * (c + neither), [1] * both + [0] * b + [1] * c + [0] * neither


@pytest.mark.parametrize(
    ("table", "method", "test"),
    [
        ((10, 6, 5, 8), "Tango score", "McNemar mid-p"),  # 29 items, 11 discordant
        ((60, 6, 3, 31), "Tango score", "McNemar exact"),  # 100 items, 9 discordant
        ((60, 7, 3, 30), "Tango score", "McNemar mid-p"),  # 100 items, 10 discordant
        ((1200, 3, 150, 1147), "Tango score", "McNemar mid-p"),  # thousands of items, and hardly a win
        ((4, 2, 1, 2), "Tango score", "McNemar exact"),
        ((50, 0, 0, 50), "Tango score", "McNemar exact"),
        ((0, 50, 0, 0), "Tango score", "McNemar mid-p"),  # n >= 30, no spread: t would have no width
    ],
)
def test_which_interval_and_which_test(table: tuple[int, int, int, int], method: str, test: str) -> None:
    a, b = binary(*table)
    found = paired_difference(a, b)
    _, wins, losses, _ = table
    assert (found.method, found.test, found.discordant) == (method, test, wins + losses)
    p = mcnemar_exact(wins, losses) if test == "McNemar exact" else mcnemar(wins, losses)
    assert found.p == p
    assert (found.low, found.high) == pytest.approx(tango_interval(wins, losses, len(a)))


def test_graded_scores_take_the_t_interval_however_few() -> None:
    assert paired_difference([0.5, 1, 0, 1], [0, 1, 0, 0]).method == "cluster-robust t"


def test_tango_and_t_agree_where_there_is_much_of_everything() -> None:
    a, b = binary(2000, 400, 350, 2250)
    ours, theirs = paired_difference(a, b), stats.ttest_rel(a, b).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_binary_scores_in_clusters_take_the_cluster_robust_way() -> None:
    a, b = binary(10, 6, 3, 6)
    found = paired_difference(a, b, [index // 2 for index in range(25)])
    assert (found.method, found.test, found.clusters) == ("cluster-robust t", "cluster-robust t", 13)


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [([1], [0], None), ([0.4], [0.3], None), ([1, 0, 1], [0, 0, 1], ["x"] * 3), ([0.1] * 4, [0.1] * 4, ["x"] * 4)],
)
def test_one_cluster_tells_nothing(a: list[float], b: list[float], groups: list[str] | None) -> None:
    found = paired_difference(a, b, groups)
    assert (found.low, found.high, found.p, found.clusters) == (-1.0, 1.0, 1.0, 1)
    assert found.estimate == pytest.approx(np.mean(np.subtract(a, b)))


def test_no_difference_at_all_is_not_certainty() -> None:
    z_squared = stats.norm.ppf(0.975) ** 2
    for scores, groups, clusters in [
        ([1.0, 0.0] * 50, None, 100),
        ([0.3, 0.7] * 50, None, 100),
        ([1.0, 0.0] * 50, [index // 5 for index in range(100)], 20),
    ]:
        found = paired_difference(scores, scores, groups)
        assert (found.estimate, found.p) == (0.0, 1.0)
        assert found.high == pytest.approx(z_squared / (clusters + z_squared))
        assert found.low == -found.high


def test_differences_all_alike_have_width_and_a_p_value_that_agrees() -> None:
    for difference, n in [(0.3, 9), (0.3, 14), (-0.05, 60), (-0.05, 90), (1.0, 3), (1.0, 5)]:
        b = np.full(n, 0.0 if difference > 0 else 1.0)
        # Two items a cluster: otherwise differences of 1 would be McNemar's.
        found = paired_difference(np.repeat(b + difference, 2), np.repeat(b, 2), [index // 2 for index in range(2 * n)])
        assert found.low < difference <= found.high
        assert -1 <= found.low <= found.high <= 1
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert paired_difference([1.0] * 200, [0.0] * 200, [index // 2 for index in range(200)]).p < 1e-6


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [
        ([], [], None),
        ([1, 0], [1], None),
        ([1, math.nan], [1, 0], None),
        ([1, 0], [math.inf, 0], None),
        ([1, 0], [0, 1], ["x"]),
        ([3, 0], [0, 1], None),
    ],
)
def test_wrong_input_is_refused(a: list[float], b: list[float], groups: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r".+"):
        paired_difference(a, b, groups)


def test_wrong_means_and_levels_are_refused() -> None:
    for wrong in ([], [math.nan], [1.5], [-2.0]):
        with pytest.raises(ValueError, match=r".+"):
            mean_interval(wrong)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level"):
            mean_interval([1, 0], level=level)
        with pytest.raises(ValueError, match="level"):
            paired_difference([1, 0], [0, 0], level=level)


def test_means_with_little_to_go_on() -> None:
    assert dataclasses.astuple(mean_interval([0.4]))[:3] == (0.4, 0.0, 1.0)
    assert dataclasses.astuple(mean_interval([-0.4]))[1:3] == (-1.0, 1.0)
    alike = mean_interval([0.4] * 20)
    unseen = stats.norm.ppf(0.975) ** 2 / (20 + stats.norm.ppf(0.975) ** 2)
    assert (alike.low, alike.high) == pytest.approx((0.4 * (1 - unseen), 0.4 * (1 - unseen) + unseen))


SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(SCORES, st.booleans(), st.sampled_from(LEVELS))
def test_always_an_interval_around_the_estimate(rows: list[tuple[float, float, int]], grouped: bool, level: float) -> None:
    a, b, names = [[row[index] for row in rows] for index in range(3)]
    groups = names if grouped else None
    found, turned = paired_difference(a, b, groups, level), paired_difference(b, a, groups, level)
    assert -1 <= found.low <= found.estimate + 1e-9
    assert found.estimate - 1e-9 <= found.high <= 1
    assert found.high > found.low
    assert 0 <= found.p <= 1
    assert (turned.low, turned.high, turned.p) == pytest.approx((-found.high, -found.low, found.p), abs=1e-9)
    mean = mean_interval(a, groups, level)
    assert 0 <= mean.low <= mean.estimate + 1e-9
    assert mean.estimate - 1e-9 <= mean.high <= 1
    assert mean.high > mean.low


RUNS = 4000


def null_runs(kind: str) -> tuple[np.ndarray, np.ndarray, list[int] | None]:
    """RUNS pairs of score vectors of two equal candidates on 100 items: [RUNS, 100] each, and the items' clusters."""
    random = np.random.default_rng(5)
    if kind == "binary":
        difficulty = random.beta(2, 2, (RUNS, 100))
        a, b = (random.uniform(size=(2, RUNS, 100)) < difficulty).astype(float)
        return a, b, None
    if kind == "graded":
        difficulty = random.uniform(0.5, 4, (RUNS, 100))
        a, b = random.beta(difficulty, 1.5, (2, RUNS, 100))
        return a, b, None
    # 25 documents of 3 to 5 items; within a document both candidates' luck is largely shared by its items.
    groups = np.repeat(np.arange(25), [3, 4, 5, 4, 4] * 5)
    luck = random.normal(0, 1, (2, RUNS, 25))[:, :, groups]
    noise = random.normal(0, 1, (2, RUNS, 100))
    a, b = stats.norm.cdf(0.8 * luck + 0.6 * noise)
    if kind == "binary clusters":
        a, b = (a > 0.4).astype(float), (b > 0.4).astype(float)
    return a, b, [int(one) for one in groups]


@pytest.mark.parametrize("kind", ["binary", "graded", "graded clusters", "binary clusters"])
def test_two_equal_candidates_differ_significantly_one_time_in_twenty(kind: str) -> None:
    a, b, groups = null_runs(kind)
    found = [paired_difference(a[run], b[run], groups) for run in range(RUNS)]
    assert 0.03 <= np.mean([one.p < 0.05 for one in found]) <= 0.065
    assert 0.03 <= np.mean([not one.low <= 0 <= one.high for one in found]) <= 0.065


def test_ignoring_clusters_would_show() -> None:
    a, b, _ = null_runs("graded clusters")
    assert np.mean([paired_difference(a[run], b[run]).p < 0.05 for run in range(500)]) > 0.15


def test_tango_covers_a_small_true_difference_on_few_items() -> None:
    # 40 items, wins 6%, losses 1%: exact coverage over every table, where a t interval covers 91%.
    n, win, loss = 40, 0.06, 0.01
    covered = 0.0
    for b, c in product(range(n + 1), repeat=2):
        if b + c > 12:
            continue
        low, high = tango_interval(b, c, n)
        chance = stats.multinomial.pmf([b, c, n - b - c], n, [win, loss, 1 - win - loss])
        covered += chance * (low <= win - loss <= high)
    assert 0.95 <= covered <= 0.99


def test_importing_the_package_does_not_load_scipy() -> None:
    program = (
        "import sys, evals.statistics, evals.statistics.paired, evals.statistics.power, evals.statistics.margin\n"
        "print([m for m in ('scipy', 'scipy.stats', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
