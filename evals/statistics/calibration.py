"""Calibration: is a model right as often as it is sure? The expected calibration error, and whether a model has become too sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.statistics.paired import Floats, paired_difference

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Base and tuned on the same `n` items: expected calibration errors `base` and `tuned`, in [0, 1], and how much too sure they are.

    `too_sure` is the mean probability minus the mean score (base, tuned), and `difference` tuned minus base of it, paired, with its 95%
    interval. The calibration errors have none: at a few hundred items sampling alone makes them .03 or so, a bias that a bootstrap
    repeats (its percentile interval held the true change in 7% of draws of 500 items of a calibrated base).
    """

    n: int
    base: float
    tuned: float
    too_sure: tuple[float, float]
    difference: float
    low: float
    high: float


def calibration_error(sure: Floats, right: Floats) -> float:
    """The expected calibration error (Guo et al. 2017, 1706.04599) of n probabilities `sure` and scores `right`, all in [0, 1].

    The mean over ten bins of equal width, weighted by their items, of |mean score - mean probability|; bin k holds (k / 10,
    (k + 1) / 10], the first one 0 too. Few items make it too large: it compares models on the same items. Raises ValueError for no items,
    other lengths or values outside [0, 1].
    """
    p, y = np.asarray(sure, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1 or not p.size:
        raise ValueError("probabilities and scores of the same items are wanted, at least of one")
    # A NaN is in no interval.
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("probabilities and scores must lie in [0, 1]")
    bins = np.clip(np.ceil(p * BINS).astype(int) - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, weights=y - p, minlength=BINS)).sum() / len(p))


def calibration(base: tuple[Floats, Floats], tuned: tuple[Floats, Floats]) -> Calibration:
    """Two models' (`sure`, `right`) on the same items, in the same order. Raises ValueError as `calibration_error` does."""
    errors = calibration_error(*base), calibration_error(*tuned)
    before, after = (np.asarray(one[0], dtype=np.float64) - np.asarray(one[1], dtype=np.float64) for one in (base, tuned))
    # Differences of what lies in [-1, 1]: halved, for the interval.
    found = paired_difference(after / 2, before / 2)
    too_sure = (float(before.mean()), float(after.mean()))
    return Calibration(found.n, *errors, too_sure, 2 * found.estimate, 2 * found.low, 2 * found.high)
