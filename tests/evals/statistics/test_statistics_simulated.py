"""What the statistics promise, kept where the truth is known; and that simulation would find out statistics that do not.

The fast variant of `make bench-statistics`: the same simulations with fewer runs. `Rate.at_most` widens a limit by three times
what the Monte-Carlo error of a rate grows from 10,000 runs to as many as there are here, and by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from evals.statistics.betting import Floats
from evals.statistics.margin import NonInferiority, chance_of_passing, non_inferiority
from evals.statistics.paired import Paired, paired_difference
from evals.statistics.power import TYPICAL_SD, minimum_detectable_effect, required_n
from evals.statistics.race import Ask, Raced
from tests.bench.simulations import (
    COVERAGE,
    FALSE,
    Kind,
    Layout,
    Rate,
    any_claim,
    best_dropped,
    claims,
    compared,
    counted,
    draws,
    never_apart,
    passes,
    peeking,
    ppi_misses,
    racing,
    shown,
    stopped,
    winner,
)

EQUAL = [0.6] * 12
SPREAD = [float(one) for one in np.linspace(0.8, 0.3, 12)]


@pytest.mark.parametrize("layout", ["none", "equal", "unequal"])
@pytest.mark.parametrize("kind", ["binary", "graded"])
@pytest.mark.parametrize("n", [50, 100, 300])
def test_two_equal_candidates_are_claimed_to_differ_in_one_run_of_twenty(n: int, kind: Kind, layout: Layout) -> None:
    found = claims(kind, layout, n, 2000, seed=1)
    assert found.interval.at_most(FALSE)
    assert found.test.at_most(FALSE)
    assert found.both.times <= min(found.interval.times, found.test.times)
    # Not by never claiming anything.
    assert found.both.share > 0.02


def without_clusters(a: Floats, b: Floats, groups: Sequence[int] | None) -> Paired:
    return compared(a, b)


def first_order(a: Floats, b: Floats, groups: Sequence[int] | None) -> Paired:
    """The cluster-robust t interval without the adjustment to unequal clusters: CR1, G - 1 degrees of freedom."""
    from scipy.special import stdtr, stdtrit

    found = paired_difference(a, b, groups)
    sums = np.bincount(np.asarray(groups), weights=a - b - found.estimate)
    clusters = len(sums)
    se = math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / len(a)
    reach = float(stdtrit(clusters - 1, 0.975)) * se
    p = 2 * float(stdtr(clusters - 1, -abs(found.estimate) / max(se, 1e-12)))
    return replace(found, low=found.estimate - reach, high=found.estimate + reach, p=p)


@pytest.mark.parametrize("compare", [without_clusters, first_order])
def test_an_interval_that_forgets_clusters_or_their_sizes_is_found_out(compare: object) -> None:
    found = claims("graded", "unequal", 50, 4000, seed=1, compare=compare)  # type: ignore[arg-type]
    assert not found.interval.at_most(FALSE)
    assert not found.test.at_most(FALSE)


@pytest.mark.parametrize(
    ("kind", "layout", "n"),
    [("binary", "none", 50), ("binary", "none", 300), ("graded", "none", 100), ("graded", "unequal", 100)],
)
def test_twenty_equal_candidates_are_claimed_to_differ_in_one_run_of_twenty(kind: Kind, layout: Layout, n: int) -> None:
    assert any_claim(kind, layout, n, 600, seed=2).at_most(FALSE)


def test_holm_left_out_is_found_out() -> None:
    assert any_claim("binary", "none", 100, 600, seed=2, adjust=list).share > 0.25


@pytest.mark.parametrize("n", [50, 100, 300])
def test_the_best_of_twenty_equals_has_no_gain_on_fresh_items(n: int) -> None:
    found = winner("binary", n, 1000, seed=3)
    assert found.locked.at_most(FALSE)
    assert abs(found.honest) < 3.5 * found.honest_error
    # The same data would show a gain, and claim it, on the items on which the best was chosen.
    assert found.naive > 0.6 / math.sqrt(n)
    assert not found.flattered.at_most(FALSE)


@pytest.mark.parametrize(
    ("kind", "layout", "means"),
    [
        ("binary", "none", (0.65, 0.55)),
        ("binary", "unequal", (0.65, 0.55)),
        ("graded", "none", (0.6, 0.6)),
        ("graded", "equal", (0.6, 0.6)),
    ],
)
def test_the_confidence_sequence_covers_where_one_stops(kind: Kind, layout: Layout, means: tuple[float, float]) -> None:
    assert stopped(kind, layout, 300, 600, seed=4, means=means).at_least(COVERAGE)


@pytest.mark.parametrize("kind", ["binary", "graded"])
@pytest.mark.parametrize("layout", ["none", "unequal"])
def test_looking_after_every_item_does_not_tell_equals_apart(kind: Kind, layout: Layout) -> None:
    assert never_apart(kind, layout, 300, 2000, seed=5).at_least(COVERAGE)


def test_looking_at_a_fixed_interval_again_and_again_is_found_out() -> None:
    assert not never_apart("graded", "none", 300, 400, seed=5, apart=peeking).at_least(COVERAGE)


@pytest.mark.parametrize(("arms", "layout"), [(12, "none"), (12, "unequal"), (3, "none"), (2, "none")])
def test_a_race_by_e_values_keeps_the_best(arms: int, layout: Layout) -> None:
    assert best_dropped(EQUAL[:arms], layout, 300, 600, seed=6).at_most(0.05)


def test_a_bet_that_peeks_is_found_out() -> None:
    def apart(differences: Floats, groups: Sequence[int] | None) -> np.ndarray:
        """Stakes, both ways, what the mean so far makes best; and "so far" takes in the item that is bet on."""
        gained, squares = np.cumsum(differences, axis=-1), 1 + np.cumsum(differences**2, axis=-1)
        wealth = np.cumsum(np.log1p(np.clip(gained / squares, -0.5, 0.5) * differences), axis=-1)
        return np.asarray((wealth >= math.log(20)).any(axis=-1))

    assert not never_apart("binary", "none", 300, 400, seed=5, apart=apart).at_least(COVERAGE)


def test_a_race_by_fixed_intervals_is_found_out() -> None:
    def run(ask: Ask, candidates: int, items: int, *, budget: None, groups: None) -> Raced:
        alive = list(range(candidates))
        for stop in range(20, items + 1, 20):
            scores = ask(alive, 0, stop)
            leader = scores[scores.mean(axis=1).argmax()]
            alive = [at for at, one in zip(alive, scores, strict=True) if compared(leader, one).low <= 0]
        return Raced(tuple(alive), (), 0, items, ())

    assert not best_dropped(EQUAL[:3], "none", 300, 300, seed=6, run=run).at_most(0.05)


@pytest.mark.parametrize("keep", [1, 4])
def test_a_race_of_spread_arms_finds_what_full_evaluation_finds_for_less(keep: int) -> None:
    found = racing(SPREAD, 300, 300, seed=7, rounds=6, keep=keep)
    assert found.spent <= 0.6
    assert found.regret - 3 * found.regret_error <= 0.01


def test_a_race_of_equal_arms_says_so() -> None:
    found = racing(EQUAL, 300, 300, seed=7, rounds=6, keep=4)
    assert found.spent <= 0.6
    assert found.equal.at_least(COVERAGE)


@pytest.mark.parametrize("discordance", [0.06, 0.15, 0.3])
@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("n", [300, 600])
def test_the_forgetting_gate_passes_a_loss_of_the_margin_in_one_run_of_twenty(
    n: int, margin: float, discordance: float
) -> None:
    assert passes(n, margin, discordance, margin, 2000, seed=8).at_most(FALSE)


def test_a_gate_on_a_t_interval_is_found_out() -> None:
    def gate(tuned: Sequence[int], base: Sequence[int], margin: float) -> NonInferiority:
        from scipy.special import stdtrit

        differences = np.subtract(tuned, base)
        reach = float(stdtrit(len(tuned) - 1, 0.95)) * differences.std(ddof=1) / math.sqrt(len(tuned))
        found = non_inferiority(tuned, base, margin)
        return replace(found, answer="holds" if differences.mean() - reach > -margin else "undecided")

    assert not passes(300, 0.05, 0.06, 0.05, 4000, seed=8, gate=gate).at_most(FALSE)


@pytest.mark.parametrize("discordance", [0.08, 0.15, 0.3])
@pytest.mark.parametrize(("n", "margin"), [(300, 0.05), (600, 0.05), (1500, 0.02), (2500, 0.02)])
def test_the_gate_passes_without_a_loss_as_often_as_promised(n: int, margin: float, discordance: float) -> None:
    promised = chance_of_passing(n, margin, discordance)
    assert passes(n, margin, discordance, 0.0, 1500, seed=9).near(promised, 0.05)


@pytest.mark.parametrize("n", [100, 300, 1000])
def test_the_minimum_detectable_effect_is_shown_four_times_in_five(n: int) -> None:
    effect = minimum_detectable_effect(n)
    assert shown(n, effect, TYPICAL_SD**2 + effect**2, 3000, seed=10).near(0.8, 0.05)


@pytest.mark.parametrize("effect", [0.05, 0.1])
def test_the_required_items_show_the_effect_four_times_in_five(effect: float) -> None:
    n = required_n(effect)
    assert shown(n, effect, TYPICAL_SD**2 + effect**2, 3000, seed=11).near(0.8, 0.05)
    assert not shown(n // 2, effect, TYPICAL_SD**2 + effect**2, 3000, seed=11).near(0.8, 0.05)


@pytest.mark.parametrize(("labels", "agreement"), [(30, 0.6), (60, 0.9), (150, 0.0)])
def test_the_ppi_interval_misses_in_one_run_of_twenty(labels: int, agreement: float) -> None:
    assert ppi_misses(600, labels, agreement, 1000, seed=12).at_most(FALSE)


def test_tables_asked_once_are_what_the_scores_say() -> None:
    for (a, b), groups in draws("binary", "none", 60, 300, seed=13, means=(0.6, 0.7)):
        once, direct = compared(a, b, groups), paired_difference(a, b, groups)
        assert (once.low, once.high, once.p, once.discordant) == (direct.low, direct.high, direct.p, direct.discordant)
        assert once.estimate == pytest.approx(direct.estimate)


def test_simulated_scores_are_what_they_are_said_to_be() -> None:
    for kind in ("binary", "graded"):
        rows = np.array([one for one, _ in draws(kind, "unequal", 300, 400, seed=14)])  # type: ignore[arg-type]
        assert rows.mean(axis=(0, 2)) == pytest.approx([0.6, 0.6], abs=0.02)
        first, second = rows.transpose(1, 0, 2).reshape(2, -1)
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.5, abs=0.06)
    layouts = [groups for _, groups in draws("binary", "unequal", 50, 2000, seed=15) if groups is not None]
    sizes = np.concatenate([np.bincount(groups) for groups in layouts])
    assert (sizes.min(), sizes.max()) == (1, 10)
    assert np.mean([len(set(groups)) for groups in layouts]) == pytest.approx(15, abs=1)


def test_limits_are_wider_by_the_monte_carlo_error_alone() -> None:
    assert not Rate(551, 10_000).at_most(0.055)
    assert Rate(550, 10_000).at_most(0.055)
    # sqrt(.055 x .945 / 1000) is 0.72 points, of which 0.23 belong to 10,000 runs: 5.5 + 3 x 0.49 = 6.98.
    assert Rate(69, 1000).at_most(0.055)
    assert not Rate(70, 1000).at_most(0.055)
    assert Rate(9500, 10_000).at_least(0.95)
    assert not Rate(9499, 10_000).at_least(0.95)


def test_counted_scores() -> None:
    a, b = counted(3, 2, 10)
    assert (np.subtract(a, b) > 0).sum() == 3
    assert (np.subtract(a, b) < 0).sum() == 2
    assert len(a) == len(b) == 10
