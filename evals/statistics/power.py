"""What n can show: the smallest effect that a comparison finds, the items that an effect needs, and how many more."""

from __future__ import annotations

import math
from statistics import NormalDist

from evals.statistics.paired import Paired

# Paired 0/1 scores that differ on 15% of the items, either way alike: the spread assumed before anything is measured.
TYPICAL_SD = math.sqrt(0.15)


def minimum_detectable_effect(n: int, sd: float = TYPICAL_SD, level: float = 0.95, power: float = 0.8) -> float:
    """The mean paired difference, in [0, 1], that n items show (two-sided, at `level`) with chance `power`.

    (t_(1+level)/2 + t_power) sd / sqrt(n), with n - 1 degrees of freedom (Bloom 1995, Evaluation Review 19:547).
    `sd` is the standard deviation of one item's difference; for clustered items give G for n and the spread of cluster
    means. 1, the greatest effect there is, where n cannot show less. Raises ValueError for n < 1 or sd <= 0.
    """
    _check(sd, level, power)
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if n == 1:
        return 1.0
    return min(1.0, _detectable(n, sd, level, power))


def required_n(effect: float, sd: float = TYPICAL_SD, level: float = 0.95, power: float = 0.8) -> int:
    """The fewest items that show a mean paired difference of `effect` with chance `power`: the inverse of the above.

    The sign of `effect` does not matter. Raises ValueError for an effect of 0 or beyond 1, or sd <= 0.
    """
    _check(sd, level, power)
    effect = abs(effect)
    if not 0 < effect <= 1:
        raise ValueError(f"effect must not be 0 and lie in [-1, 1], not {effect}")
    # The normal quantiles give a lower bound, within a few items of the answer.
    n = max(2, math.ceil((_quantiles(level, power) * sd / effect) ** 2))
    while _detectable(n, sd, level, power) > effect:
        n += 1
    return n


def more_items(paired: Paired, effect: float | None = None, power: float = 0.8) -> int | None:
    """About how many more items make the present difference (or `effect`) significant, with chance `power`.

    0 where the interval excludes 0 already (and no other effect is asked about); None where the effect is 0, which no
    number of items can show. Assumes more items of the same spread in clusters of the same size. Power 0.5 gives the
    number at which the interval would just touch 0 if the estimate stayed as it is.
    """
    if effect is None:
        if paired.low > 0 or paired.high < 0:
            return 0
        effect = paired.estimate
    if effect == 0:
        return None
    needed = (_quantiles(paired.level, power) * spread(paired, effect) / effect) ** 2
    return max(0, math.ceil(needed) - paired.n)


def spread(paired: Paired, effect: float) -> float:
    """The standard deviation of one item's difference to plan with.

    Where the data show none, that of 0/1 differences with mean `effect`, with every cluster counted as one item.
    """
    return paired.sd or math.sqrt(abs(effect) * paired.n / paired.clusters)


def _detectable(n: int, sd: float, level: float, power: float) -> float:
    from scipy.special import stdtrit

    return (float(stdtrit(n - 1, (1 + level) / 2)) + float(stdtrit(n - 1, power))) * sd / math.sqrt(n)


def _quantiles(level: float, power: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)


def _check(sd: float, level: float, power: float) -> None:
    if not (0 < sd < math.inf):
        raise ValueError(f"sd must be above 0, not {sd}")
    if not (0 < level < 1 and 0 < power < 1):
        raise ValueError(f"level and power must lie between 0 and 1, not {level} and {power}")
