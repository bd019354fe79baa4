"""Power: against statsmodels, against simulation, and inverses of each other."""

from __future__ import annotations

import numpy as np
import pytest

from evals.statistics.paired import paired_difference
from evals.statistics.power import TYPICAL_SD, minimum_detectable_effect, more_items, required_n


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize(("level", "power"), [(0.95, 0.8), (0.9, 0.9)])
def test_detectable_effect_against_statsmodels(n: int, level: float, power: float) -> None:
    solver = pytest.importorskip("statsmodels.stats.power").TTestPower()
    # Theirs uses the noncentral t, ours Bloom's sum of quantiles. The two-sided solver may find the negative root.
    theirs = abs(float(np.squeeze(solver.solve_power(nobs=n, alpha=1 - level, power=power)))) * 0.4
    assert minimum_detectable_effect(n, 0.4, level, power) == pytest.approx(theirs, rel=0.01)


def test_the_power_promised_is_kept() -> None:
    effect = minimum_detectable_effect(80, 0.3)
    differences = np.clip(np.random.default_rng(0).normal(effect, 0.3, (3000, 80)), -1, 1)
    zeros = np.zeros(80)
    significant = np.mean([paired_difference(row, zeros).p < 0.05 for row in differences])
    assert significant == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("effect", [0.01, 0.05, -0.2, 0.9, 1.0])
def test_required_n_is_the_smallest(effect: float) -> None:
    n = required_n(effect, 0.5)
    assert minimum_detectable_effect(n, 0.5) <= abs(effect)
    if abs(effect) < 1:
        assert minimum_detectable_effect(n - 1, 0.5) > abs(effect)


def test_typical_figures() -> None:
    # 2.8 standard errors: (2.8 sqrt(.15) / .05)^2 = 471, and a little for the t distribution.
    assert required_n(0.05) == pytest.approx(471, abs=4)
    assert minimum_detectable_effect(471) == pytest.approx(0.05, rel=0.01)
    assert pytest.approx(0.387, abs=1e-3) == TYPICAL_SD


def test_hardly_any_items_detect_hardly_anything() -> None:
    assert minimum_detectable_effect(1) == 1.0
    assert minimum_detectable_effect(2) == 1.0
    effects = [minimum_detectable_effect(n) for n in range(1, 200)]
    assert effects == sorted(effects, reverse=True)


def test_more_items_make_the_difference_significant() -> None:
    random = np.random.default_rng(1)
    a, b = np.clip(random.normal(0.53, 0.2, 60), 0, 1), np.clip(random.normal(0.5, 0.2, 60), 0, 1)
    found = paired_difference(a, b)
    assert found.low < 0 < found.high
    just = more_items(found, power=0.5)
    more = more_items(found)
    assert just is not None
    assert more is not None
    # (1.96 + 0.84)^2 / 1.96^2 = 2.04 times as many in all for four chances in five.
    assert (60 + more) / (60 + just) == pytest.approx(2.04, abs=0.01)
    index = np.arange(60 + just) % 60
    assert paired_difference(a[index], b[index]).p == pytest.approx(0.05, abs=0.02)


def test_more_items_where_there_is_nothing_to_ask() -> None:
    clear = paired_difference([0.9, 0.8, 1.0, 0.7], [0.1, 0.1, 0.1, 0.0])
    assert more_items(clear) == 0
    same = paired_difference([1, 0] * 20, [1, 0] * 20)
    assert more_items(same) is None
    # No spread was seen: planned for as if 0/1 scores differed on 10% of the items.
    assert more_items(same, 0.1) == pytest.approx(7.85 / 0.1 - 40, abs=1)
    assert more_items(paired_difference([1], [0])) == 7


def test_clusters_cost_items() -> None:
    random = np.random.default_rng(2)
    base = random.uniform(size=40)
    better = np.clip(base + random.normal(0.03, 0.3, 40), 0, 1)
    once = paired_difference(better, base)
    thrice = paired_difference(np.repeat(better, 3), np.repeat(base, 3), list(np.repeat(np.arange(40), 3)))
    few, many = more_items(once), more_items(thrice)
    assert few is not None
    assert many is not None
    assert 120 + many == pytest.approx(3 * (40 + few), abs=3)


def test_scores_all_zero_ask_for_more_only_where_an_effect_is_named() -> None:
    zeros = paired_difference([0.0] * 12, [0.0] * 12)
    assert more_items(zeros) is None
    assert more_items(zeros, -0.5) == pytest.approx(7.85 / 0.5 - 12, abs=1)
    # One cluster counts as one item, however many it has.
    assert more_items(paired_difference([1, 1, 0], [0, 0, 0], ["x"] * 3), 0.5) == pytest.approx(7.85 * 3 / 0.5 - 3, abs=1)


def test_wrong_questions_are_refused() -> None:
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="sd"):
            minimum_detectable_effect(10, wrong)
    for effect in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="effect"):
            required_n(effect)
    with pytest.raises(ValueError, match="n must"):
        minimum_detectable_effect(0)
    with pytest.raises(ValueError, match="level"):
        required_n(0.1, level=95)
