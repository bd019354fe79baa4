"""What is believed of a gain in score, and what deciding on that belief is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

from advisor.decision.compare import Comparison
from advisor.decision.learning_curve import Forecast

NORMAL = NormalDist()
# How alike the luck of two candidates is on the same items.
SHARED = 0.5
Z = NORMAL.inv_cdf(0.975)


@dataclass(frozen=True)
class Gain:
    """The true gain is taken as normal: mean `estimate`, and [`low`, `high`] its 95% interval. At `pays` and above it pays.

    `measured`: on the candidate itself; else foreseen from smaller trainings. `better`: shown to be above 0, after Holm.
    """

    estimate: float
    low: float
    high: float
    pays: float
    measured: bool
    better: bool = False

    @property
    def error(self) -> float:
        """Standard error; never 0, since no number of items shows that there is none."""
        return max((self.high - self.low) / (2 * Z), 1e-6)

    def chance_above(self, limit: float) -> float:
        """P(gain >= limit)."""
        return NORMAL.cdf((self.estimate - limit) / self.error)

    @property
    def regret_without(self) -> float:
        """Expected score that is given away where it pays and is left: E[(gain - pays)+] (Raiffa and Schlaifer 1961)."""
        return _expected_excess(self.estimate - self.pays, self.error)

    @property
    def regret_with(self) -> float:
        """Expected score that is given away where it does not pay and is taken: E[(pays - gain)+]."""
        return _expected_excess(self.pays - self.estimate, self.error)


def measured_gain(one: Comparison, pays: float) -> Gain:
    return Gain(one.difference, one.low, one.high, pays, measured=True, better=one.better)


def foreseen_gain(one: Forecast) -> Gain:
    return Gain(one.gain, one.low, one.high, one.pays, measured=False)


def less_luck(gain: Gain, among: int) -> Gain:
    """The gain of the best of so many candidates, less what the best of as many equal ones is expected to show by luck.

    The expected greatest of K standard normals is about the quantile at (K - 3/8) / (K + 1/4) (Blom 1958); candidates that answer
    the same items share about half of their luck, which leaves sqrt(1/2) of it.
    """
    if among < 2:
        return gain
    luck = NORMAL.inv_cdf((among - 0.375) / (among + 0.25)) * (1 - SHARED) ** 0.5 * gain.error
    return replace(gain, estimate=gain.estimate - luck, low=gain.low - luck, high=gain.high - luck)


def _expected_excess(mean: float, error: float) -> float:
    """E[X+] for X of Normal(mean, error): the unit normal linear loss."""
    return error * NORMAL.pdf(mean / error) + mean * NORMAL.cdf(mean / error)
