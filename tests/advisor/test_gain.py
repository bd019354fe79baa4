"""What deciding on a belief gives away, against integration and against drawn numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.decision.gain import SHARED, Gain, Z, less_luck


def normal(mean: float, error: float, pays: float = 0.03) -> Gain:
    return Gain(mean, mean - Z * error, mean + Z * error, pays, measured=True)


@pytest.mark.parametrize(
    ("mean", "error", "pays"), [(0.0, 0.04, 0.03), (0.05, 0.02, 0.03), (-0.2, 0.05, 0.0), (0.3, 0.01, 0.1)]
)
def test_regrets_are_the_integrals_that_they_stand_for(mean: float, error: float, pays: float) -> None:
    gains = np.linspace(mean - 10 * error, mean + 10 * error, 200_001)
    density = np.exp(-0.5 * ((gains - mean) / error) ** 2) / (error * np.sqrt(2 * np.pi))
    found = normal(mean, error, pays)
    step = gains[1] - gains[0]
    assert found.regret_without == pytest.approx(float((np.maximum(gains - pays, 0) * density).sum() * step), abs=1e-6)
    assert found.regret_with == pytest.approx(float((np.maximum(pays - gains, 0) * density).sum() * step), abs=1e-6)
    assert found.chance_above(pays) == pytest.approx(float(density[gains >= pays].sum() * step), abs=1e-4)


@given(st.floats(-1, 1), st.floats(0.001, 0.5), st.floats(0, 0.5))
def test_both_regrets_differ_by_what_the_gain_is_away_from_paying(mean: float, error: float, pays: float) -> None:
    """E[(g - c)+] - E[(c - g)+] = E[g] - c."""
    found = normal(mean, error, pays)
    assert found.regret_without - found.regret_with == pytest.approx(mean - pays, abs=1e-9)
    assert min(found.regret_without, found.regret_with) >= -1e-12


@pytest.mark.parametrize("among", [2, 5, 10, 20])
def test_luck_is_what_the_best_of_equal_ones_shows(among: int) -> None:
    chance = np.random.default_rng(among)
    shared = chance.normal(size=(40_000, 1)) * np.sqrt(SHARED)
    own = chance.normal(size=(40_000, among)) * np.sqrt(1 - SHARED)
    shown = float((shared + own).max(axis=1).mean())
    taken = normal(0.0, 0.05).estimate - less_luck(normal(0.0, 0.05), among).estimate
    assert taken == pytest.approx(0.05 * shown, abs=0.05 * 0.03)


def test_one_candidate_has_no_luck_taken_away() -> None:
    one = replace(normal(0.1, 0.02), better=True)
    assert less_luck(one, 1) == one
    assert less_luck(one, 8).better
