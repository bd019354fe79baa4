"""Prediction-powered inference: the formula of PPI++, coverage with poor judges, and what fifty labels cannot show."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from evals.statistics import ppi
from evals.statistics.paired import Interval, Paired, mean_interval, paired_difference
from evals.statistics.ppi import ppi_mean, ppi_paired_difference

Array = NDArray[np.float64]
REPLICATIONS = 2000
# Four standard errors of a simulated coverage of 0.95, below which an interval is called too narrow.
LOWEST = 0.93


def drawn(seed: int, n: int = 300, labels: int = 60) -> tuple[Array, Array, list[int]]:
    """(people's scores, a biased judge's, labelled positions)."""
    random = np.random.default_rng(seed)
    human = random.beta(4, 2, n)
    judged = np.clip(human + 0.15 + 0.1 * random.standard_normal(n), 0, 1)
    return human, judged, [int(at) for at in random.permutation(n)[:labels]]


def test_the_estimate_is_the_formula_of_ppi_plus_plus() -> None:
    human, judged, at = drawn(1)
    n, rest = len(at), np.setdiff1d(np.arange(len(judged)), at)
    y, f, g = human[at], judged[at], judged[rest]
    # Variances over n - 2: a mean and the weight are estimated. g's is taken about the mean of all.
    cov = float(((y - y.mean()) * (f - f.mean())).sum()) / (n - 2)
    var_f = float(((f - f.mean()) ** 2).sum()) / (n - 2)
    var_g = float(((g - judged.mean()) ** 2).mean())
    weight = (cov / n) / (var_f / n + var_g / len(rest))
    assert 0.3 < weight < 1
    estimate = weight * g.mean() + (y - weight * f).mean()
    left = y - weight * f
    var_left = float(((left - left.mean()) ** 2).sum()) / (n - 2)
    reach = stats.t.ppf(0.95, n - 2) * math.sqrt(var_left / n + weight**2 * var_g / len(rest))

    found = ppi_mean(judged, at, y, level=0.9)
    assert (found.estimate, found.low, found.high) == pytest.approx((estimate, estimate - reach, estimate + reach), abs=1e-12)
    assert (found.n, found.clusters, found.level) == (300, 300, 0.9)
    assert found.method == f"PPI++ t, 60 of the items scored by people, weight of the judge {weight:.2f}"


def test_a_difference_is_the_mean_of_differences_with_its_test() -> None:
    human, judged, at = drawn(2)
    other, rival, _ = drawn(3)
    found = ppi_paired_difference(judged, rival, at, human[at], other[at])
    mean = ppi_mean(judged - rival, at, (human - other)[at])
    assert (found.estimate, found.low, found.high) == pytest.approx((mean.estimate, mean.low, mean.high))
    se = (found.high - found.low) / 2 / stats.t.ppf(0.975, len(at) - 2)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.estimate) / se, len(at) - 2))
    assert found.sd == pytest.approx(se * math.sqrt(300))
    assert isinstance(found, Paired)
    assert found.discordant == len(at)
    back = ppi_paired_difference(rival, judged, at, other[at], human[at])
    assert (back.estimate, back.low, back.high, back.p) == pytest.approx((-found.estimate, -found.high, -found.low, found.p))


@pytest.mark.parametrize("judge", ["constant", "contrary", "everything labelled"])
def test_a_judge_that_adds_nothing_leaves_the_labels_alone(judge: str) -> None:
    human, judged, at = drawn(4)
    groups: list[str | None] = [f"g{one // 3}" for one in range(300)]
    if judge == "everything labelled":
        at = list(range(300))
    scores = {"constant": np.full(300, 0.7), "contrary": 1 - judged, "everything labelled": judged}[judge]
    assert ppi_mean(scores, at, human[at]) == mean_interval(human[at])
    assert ppi_mean(scores, at, human[at], groups) == mean_interval(human[at], [groups[one] for one in at])
    rival = np.full(300, 0.5)
    assert ppi_paired_difference(scores, rival, at, human[at], rival[at], groups) == paired_difference(
        human[at], rival[at], [groups[one] for one in at]
    )


Draw = Callable[[np.random.Generator], tuple[Array, Array]]


def binary(share: float, misses: float, alarms: float, n: int = 500) -> Draw:
    """Labels of 1 with a share; a judge that misses so many of the ones and takes so many zeros for one."""

    def draw(random: np.random.Generator) -> tuple[Array, Array]:
        human = (random.random(n) < share).astype(float)
        chance = random.random(n)
        return human, np.where(human == 1, chance >= misses, chance < alarms).astype(float)

    return draw


def graded(bias: float, noise: float, n: int = 500) -> Draw:
    def draw(random: np.random.Generator) -> tuple[Array, Array]:
        human = random.beta(4, 2, n)
        return human, np.clip(human + bias + noise * random.standard_normal(n), 0, 1)

    return draw


def useless(random: np.random.Generator) -> tuple[Array, Array]:
    return random.beta(4, 2, 500), random.random(500)


def simulated(draw: Draw, truth: float, labels: int = 50) -> tuple[float, float]:
    """(coverage of the nominal 95% interval, its mean width over that of the labels alone)."""
    random = np.random.default_rng(7)
    covered, width, alone = 0, 0.0, 0.0
    for _ in range(REPLICATIONS):
        human, judged = draw(random)
        at = random.permutation(len(judged))[:labels]
        found, classical = ppi_mean(judged, at, human[at]), mean_interval(human[at])  # type: ignore[arg-type]
        covered += found.low <= truth <= found.high
        width += found.high - found.low
        alone += classical.high - classical.low
    return covered / REPLICATIONS, width / alone


@pytest.mark.parametrize(
    ("draw", "truth", "widest"),
    [
        (graded(0.15, 0.1), 2 / 3, 0.65),
        (graded(-0.3, 0.1), 2 / 3, 0.75),
        (useless, 2 / 3, 1.02),
        (binary(0.6, 0.0, 0.0), 0.6, 0.55),
        (binary(0.7, 0.05, 0.5), 0.7, 0.95),
        (binary(0.9, 0.05, 0.1), 0.9, 0.90),
    ],
    ids=["too kind", "too strict", "knows nothing", "perfect", "kind to bad answers", "mostly right answers"],
)
def test_the_interval_covers_whatever_the_judge_is_like(draw: Draw, truth: float, widest: float) -> None:
    coverage, width = simulated(draw, truth)
    assert coverage >= LOWEST
    assert width <= widest


def test_rare_errors_that_no_label_shows_are_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2% of 5,000 answers are judged too well: fifty labels mostly hold one such answer or none.
    draw = binary(0.5, 0.0, 0.04, n=5000)
    coverage, width = simulated(draw, 0.5)
    assert coverage >= LOWEST
    assert width < 0.6
    # The plain formula is sure of a bias that it cannot see.
    monkeypatch.setattr(ppi, "FEW_EVENTS", 0)
    assert simulated(draw, 0.5)[0] < 0.8


def test_differences_cover_and_reject_as_often_as_they_say() -> None:
    random = np.random.default_rng(8)
    covered = rejected = found_more = 0
    for _ in range(REPLICATIONS):
        a, b = (random.random((2, 500)) < np.array([[0.7], [0.7]])).astype(float)
        # The judge likes b's style: a bias that the labels must take out again.
        judge_a = np.where(random.random(500) < 0.15, 0.0, a)
        judge_b = np.where(random.random(500) < 0.15, 1.0, b)
        at = [int(one) for one in random.permutation(500)[:50]]
        found = ppi_paired_difference(judge_a, judge_b, at, a[at], b[at])
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
        found_more += found.high - found.low < (labels := paired_difference(a[at], b[at])).high - labels.low
    assert covered / REPLICATIONS >= LOWEST
    assert rejected / REPLICATIONS <= 1 - LOWEST
    assert found_more / REPLICATIONS > 0.95


def test_clusters_widen_the_interval_as_far_as_needed() -> None:
    random = np.random.default_rng(9)
    groups = [one // 10 for one in range(500)]
    covered = naive = 0
    for _ in range(600):
        shared = random.normal(0, 0.12, 50)[groups]
        human = np.clip(0.5 + shared + random.normal(0, 0.05, 500), 0, 1)
        judged = np.clip(human + 0.1 + random.normal(0, 0.1, 50)[groups], 0, 1)
        at = [int(one) for one in random.permutation(500)[:100]]
        found, blind = ppi_mean(judged, at, human[at], groups), ppi_mean(judged, at, human[at])
        covered += found.low <= 0.5 <= found.high
        naive += blind.low <= 0.5 <= blind.high
    assert covered / 600 >= 0.92
    assert naive / 600 < 0.75


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_scores_give_an_interval_around_the_estimate(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25))
    score = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
    judged = data.draw(st.lists(score, min_size=n, max_size=n))
    at = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    human = data.draw(st.lists(score, min_size=len(at), max_size=len(at)))
    groups = data.draw(st.none() | st.lists(st.none() | st.integers(0, 3), min_size=n, max_size=n))
    found = ppi_mean(judged, at, human, groups)
    assert isinstance(found, Interval)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    order = data.draw(st.permutations(range(len(at))))
    again = ppi_mean(judged, [at[one] for one in order], [human[one] for one in order], groups)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-6)


@pytest.mark.parametrize(
    ("judged", "at", "human", "said"),
    [
        ([0.5, 1.0], [], [], "at least one"),
        ([0.5, 1.0], [0], [0.5, 1.0], "1 labelled positions and 2 scores"),
        ([0.5, 1.0], [2], [0.5], "0 to 1"),
        ([0.5, 1.0], [-1], [0.5], "0 to 1"),
        ([0.5, 1.0], [0, 0], [0.5, 0.5], "different ones"),
        ([0.5, math.nan], [0], [0.5], "NaN"),
        ([0.5, 1.0], [0], [1.5], r"\[-1, 1\]"),
    ],
)
def test_what_cannot_be_inferred_from_is_refused(judged: list[float], at: list[int], human: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ppi_mean(judged, at, human)


def test_candidates_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        ppi_paired_difference([0.5, 1.0], [0.5], [0], [0.5], [0.5])
    with pytest.raises(ValueError, match="level"):
        ppi_paired_difference([0.5, 1.0], [0.5, 0.1], [0], [0.5], [0.5], level=95)
