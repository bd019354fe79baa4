"""The mean of independent estimates, with an interval made of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_of_intervals(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(estimate, low, high) of the mean of independent estimates, each given as (estimate, low, high) at one level.

    The squared distances from estimate to limit add up, on each side by themselves (MOVER: Zou and Donner 2008, Stat Med 27:1693), so that
    limits that lie unevenly, as score intervals do, stay so. Of symmetric t intervals it is the usual root of summed variances.

    Raises ValueError for no parts, and where an estimate lies outside its own limits.
    """
    if not parts:
        raise ValueError("there is nothing to take the mean of")
    if not all(low <= value <= high for value, low, high in parts):
        raise ValueError("an estimate must lie within its limits")
    count = len(parts)
    mean = math.fsum(value for value, _, _ in parts) / count
    below = math.sqrt(math.fsum((value - low) ** 2 for value, low, _ in parts)) / count
    above = math.sqrt(math.fsum((high - value) ** 2 for value, _, high in parts)) / count
    return mean, mean - below, mean + above
