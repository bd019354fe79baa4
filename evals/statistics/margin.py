"""Non-inferiority: has the tuned model lost no more than a margin? "Not significant" is not "no loss"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from evals.statistics.paired import Floats, Groups, paired_difference
from evals.statistics.power import spread

Answer = Literal["holds", "broken", "undecided"]


@dataclass(frozen=True)
class NonInferiority:
    """The mean of tuned minus base with its one-sided bounds: above `low` at the level, and below `high` at it.

    `answer` says whether "no greater loss than `margin`" holds. `more_items`: about how many more items settle it; 0
    where it is settled, None where no number would (the estimate is at minus the margin).
    """

    estimate: float
    low: float
    high: float
    margin: float
    answer: Answer
    n: int
    more_items: int | None


def non_inferiority(
    tuned: Floats, base: Floats, margin: float, groups: Groups | None = None, level: float = 0.95
) -> NonInferiority:
    """Holds only if the one-sided lower bound of tuned minus base is above -margin; broken if the upper is below it.

    Each bound has confidence `level`, so together they are the paired interval at 2 level - 1 (two one-sided tests,
    Schuirmann 1987; Piaggio et al. 2012, CONSORT). Scores of the same items in the same order; `margin` in (0, 1].
    Raises ValueError as `paired_difference` does, and for other margins or levels.
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin must lie in (0, 1], not {margin}")
    if not 0.5 < level < 1:
        raise ValueError(f"level must lie between 0.5 and 1, not {level}")
    paired = paired_difference(tuned, base, groups, 2 * level - 1)
    answer: Answer = "holds" if paired.low > -margin else "broken" if paired.high < -margin else "undecided"
    more: int | None = 0
    if answer == "undecided":
        distance = paired.estimate + margin
        quantiles = NormalDist().inv_cdf(level) + NormalDist().inv_cdf(0.8)
        more = None
        if abs(distance) > 1e-9:
            # With this many, an estimate and a spread like these settle it four times in five.
            needed = math.ceil((quantiles * spread(paired, distance) / distance) ** 2)
            more = max(1, needed - paired.n)
    return NonInferiority(paired.estimate, paired.low, paired.high, margin, answer, paired.n, more)


def p_beyond(tuned: Floats, base: Floats, margin: float, groups: Groups | None = None) -> float:
    """One-sided p-value of "the loss is `margin` or less": small where the loss is greater.

    The smallest error at which `non_inferiority` answers broken (and one minus the smallest at which it answers holds), found by
    bisection, so that test and interval agree whatever the interval's method. Raises ValueError as `non_inferiority` does.
    """
    found = non_inferiority(tuned, base, margin, groups)
    beyond = found.estimate < -margin

    def settled(error: float) -> bool:
        at = non_inferiority(tuned, base, margin, groups, 1 - error)
        return at.answer == ("broken" if beyond else "holds")

    low, high = 0.0, 0.5
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high if beyond else 1 - high


def chance_of_passing(n: int, margin: float, discordance: float = 0.15, true_loss: float = 0.0, level: float = 0.95) -> float:
    """The chance, in [0, 1], that `non_inferiority` will hold on n items, told before a run.

    Normal approximation for 0/1 scores of which a share `discordance` changes: an item's difference has variance
    discordance - true_loss^2 (Nam 1997, Biometrics 53:1422). `true_loss` is base minus tuned. Raises ValueError for
    n < 1, a margin outside (0, 1], or a loss greater than the discordance that makes it.
    """
    if n < 1 or not 0 < margin <= 1 or not 0.5 < level < 1:
        raise ValueError(f"n {n} must be at least 1, margin {margin} in (0, 1] and level {level} between 0.5 and 1")
    if not 0 < discordance <= 1 or abs(true_loss) > discordance:
        raise ValueError(f"a loss of {true_loss} cannot come from a discordance of {discordance}")
    sd = math.sqrt(discordance - true_loss**2)
    if sd == 0:
        return float(true_loss < margin)
    return NormalDist().cdf((margin - true_loss) * math.sqrt(n) / sd - NormalDist().inv_cdf(level))


def loss_found(n: int, margin: float, discordance: float = 0.15, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true loss, in (margin, 1], that n items show to be broken with chance `power`, told before a run.

    As `chance_of_passing`; a loss changes items beside the share `discordance` that change either way. 1 where n cannot show less.
    Raises ValueError for the same arguments.
    """
    if n < 1 or not 0 < margin <= 1 or not 0.5 < level < 1 or not 0 < discordance <= 1 or not 0 < power < 1:
        raise ValueError(f"n {n}, margin {margin}, discordance {discordance}, level {level} or power {power} is out of range")
    quantiles = NormalDist().inv_cdf(level) + NormalDist().inv_cdf(power)
    low, high = margin, 1.0
    for _ in range(50):
        loss = (low + high) / 2
        sd = math.sqrt(max(0.0, min(1.0, discordance + loss) - loss**2))
        low, high = (low, loss) if (loss - margin) * math.sqrt(n) >= quantiles * sd else (loss, high)
    return high
