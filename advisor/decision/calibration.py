"""How well forecasts held: what was foreseen of full trainings beside what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics.paired import wilson_interval

# Bounds of the bins of the chance: those at which the learning curve stops and goes on, and between them.
BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.0))


@dataclass(frozen=True)
class Held:
    """One forecast of a full training, and the gain that its run showed on the same dev items.

    `low` and `high` are the 95% that one run was to show, `chance` that of a gain of at least `pays`.
    """

    run: str
    task: str
    model: str
    rows: int
    points: int
    pays: float
    gain: float
    low: float
    high: float
    chance: float
    observed: float
    date: str

    @property
    def inside(self) -> bool:
        return self.low <= self.observed <= self.high

    @property
    def paid(self) -> bool:
        return self.observed >= self.pays


@dataclass(frozen=True)
class Bin:
    """Forecasts with a chance from `low` to `high`: how many, their mean chance, and how many then paid, with Wilson's 95%."""

    low: float
    high: float
    n: int
    chance: float
    paid: int
    paid_low: float
    paid_high: float


@dataclass(frozen=True)
class Calibration:
    """`inside` of the n forecasts had what came of them in their 95%; `error` is the mean of foreseen minus observed gain, and
    `absolute` that of its size. `bins` are those that hold a forecast."""

    n: int
    inside: int
    error: float
    absolute: float
    bins: tuple[Bin, ...]

    def sentence(self) -> str:
        low, high = wilson_interval(self.inside, self.n)
        several = "forecast was" if self.n == 1 else "forecasts were"
        lean = "too high" if self.error > 0 else "too low"
        few = "" if self.n >= 20 else " So few carry hardly any claim."
        return (
            f"{self.n} {several} followed by a full training: {self.inside} of them had its gain inside their 95% "
            f"({low:.0%} to {high:.0%}). On average they were {100 * abs(self.error):.1f} points {lean}, and "
            f"{100 * self.absolute:.1f} points off.{few}"
        )


def calibration(past: Sequence[Held]) -> Calibration | None:
    """None where no forecast was followed by a full training."""
    if not past:
        return None
    errors = [one.gain - one.observed for one in past]
    return Calibration(
        len(past),
        sum(one.inside for one in past),
        sum(errors) / len(past),
        sum(map(abs, errors)) / len(past),
        tuple(_bin(low, high, some) for low, high in BINS if (some := [one for one in past if _within(one.chance, low, high)])),
    )


def _within(chance: float, low: float, high: float) -> bool:
    return low <= chance < high or chance == high == 1.0


def _bin(low: float, high: float, some: Sequence[Held]) -> Bin:
    paid = sum(one.paid for one in some)
    paid_low, paid_high = wilson_interval(paid, len(some))
    return Bin(low, high, len(some), sum(one.chance for one in some) / len(some), paid, paid_low, paid_high)
