"""Prediction-powered inference: a few labels of people correct the many scores of a judge.

PPI (Angelopoulos et al. 2023, 2301.09633) with the power tuning of PPI++ (Angelopoulos, Duchi and Zrnic 2023, 2311.01453).
The labelled items must be a random draw of all items, made without looking at scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.statistics.paired import (
    FEW_EVENTS,
    NOISE,
    Floats,
    Groups,
    Interval,
    Paired,
    _check_level,
    _checked,
    _clusters,
    _finite,
    _t_lower_tail,
    _t_quantile,
    mean_interval,
    paired_difference,
)

METHOD = "PPI++ t"


@dataclass(frozen=True)
class _Corrected:
    """The judge's mean moved by what the labels say: estimate, its standard error, and the weight of the judge in (0, 1]."""

    estimate: float
    se: float
    power: float
    labelled: int
    clusters: int
    degrees: int

    @property
    def method(self) -> str:
        return f"{METHOD}, {self.labelled} of the items scored by people, weight of the judge {self.power:.2f}"


def ppi_mean(
    judged: Floats, labelled: Sequence[int], human: Floats, groups: Groups | None = None, level: float = 0.95
) -> Interval:
    """What people's mean score of all items would be, from the judge's scores of all and people's of some.

    `judged` are N scores in [-1, 1]; `labelled` are the n positions in it that people scored, and `human` their scores, in
    that order; `groups` names the cluster of each of the N. The estimate is the mean of `human` plus weight times (the
    judge's mean where nobody looked minus its mean where people did); the weight in [0, 1] is the one of least variance
    (PPI++), so a judge that knows nothing gets 0. The interval is a cluster-robust t with as many degrees of freedom as the
    labels carry (labelled clusters minus 2).

    At weight 0, and where everything is labelled, the answer is `mean_interval` of the labels alone. Where judge and people
    differ on under 10 labelled clusters, two more disagreements, one of either sign and as wide as the scores' range, are
    counted as seen (after Bonett and Price 2012, Stat Methods Med Res 21:479): fifty labels without a disagreement cannot
    show that there is none, however many items the judge has scored.

    Raises ValueError for no labels, positions that are wrong or stand there twice, other lengths, NaN, or scores outside
    [-1, 1].
    """
    scores, values = _checked(judged, "judged"), _checked(human, "human")
    at = _positions(labelled, len(values), len(scores))
    _check_level(level)
    codes = _codes(groups, len(scores))
    found = _corrected(scores, at, values, codes)
    if found is None:
        return mean_interval(values, None if groups is None else [groups[one] for one in at], level)
    floor = 0.0 if min(scores.min(), values.min()) >= 0 else -1.0
    reach = _t_quantile(found.degrees, (1 + level) / 2) * found.se
    low, estimate, high = (min(1.0, max(floor, found.estimate + step)) for step in (-reach, 0.0, reach))
    return Interval(estimate, low, high, level, len(scores), found.clusters, found.method)


def ppi_paired_difference(
    judge_a: Floats,
    judge_b: Floats,
    labelled: Sequence[int],
    human_a: Floats,
    human_b: Floats,
    groups: Groups | None = None,
    level: float = 0.95,
) -> Paired:
    """What people's mean of a minus b over all items would be: `ppi_mean` of the differences, with a t test.

    `judge_a` and `judge_b` are the judge's scores in [0, 1] of two candidates on the same N items; people scored both
    answers of the items at `labelled`. `discordant` counts the labelled items where people prefer one answer; `sd` times
    1 / sqrt(N) is the standard error, so it says how many more items would do when labels grow along. At weight 0 the
    answer is `paired_difference` of the labels alone. Raises ValueError as `ppi_mean`.
    """
    scores = _difference(judge_a, judge_b, "judge_a", "judge_b")
    values = _difference(human_a, human_b, "human_a", "human_b")
    at = _positions(labelled, len(values), len(scores))
    _check_level(level)
    found = _corrected(scores, at, values, _codes(groups, len(scores)))
    if found is None:
        return paired_difference(human_a, human_b, None if groups is None else [groups[one] for one in at], level)
    n = len(scores)
    reach = _t_quantile(found.degrees, (1 + level) / 2) * found.se
    low, estimate, high = (min(1.0, max(-1.0, found.estimate + step)) for step in (-reach, 0.0, reach))
    p = min(1.0, 2 * _t_lower_tail(found.degrees, -abs(found.estimate) / found.se))
    discordant = int((np.abs(values) > NOISE).sum())
    sd = found.se * math.sqrt(n)
    return Paired(estimate, low, high, p, n, found.clusters, discordant, found.method, METHOD, level, sd)


def _corrected(
    scores: NDArray[np.float64], at: NDArray[np.intp], values: NDArray[np.float64], codes: NDArray[np.intp]
) -> _Corrected | None:
    """None where the labels alone say as much: nothing is unlabelled, the judge tells nothing, or under 3 clusters are labelled.

    The error of the estimate is a sum over items; items of a cluster are added up before squaring, whichever side they are on.
    """
    n = len(at)
    rest = np.ones(len(scores), dtype=bool)
    rest[at] = False
    clusters = int(codes.max()) + 1
    seen = len(np.unique(codes[at]))
    if not rest.any() or seen < 3:
        return None
    # Each item's part in the error of people's mean, and in that of the judge's two means.
    people, judge = np.zeros(len(scores)), np.zeros(len(scores))
    people[at] = (values - values.mean()) / n
    judge[at] = (scores[at] - scores[at].mean()) / n
    # From the mean of all: a handful of unlabelled items that happen to be alike are not without spread.
    judge[rest] = -(scores[rest] - scores.mean()) / rest.sum()
    factor = np.where(rest, 1.0, math.sqrt(seen / (seen - 2)))
    errors = np.bincount(codes, weights=people * factor)
    moves = np.bincount(codes, weights=judge * factor)
    if len(np.unique(codes[at][np.abs(values - scores[at]) > NOISE])) < FEW_EVENTS:
        reach = min(1.0, max(float(np.ptp(values)), float(np.ptp(scores))))
        unseen = np.array([0.5, -0.5]) * reach / (seen + 2)
        errors, moves = np.append(errors, unseen), np.append(moves, -unseen)
    spread = float(moves @ moves)
    power = min(1.0, max(0.0, float(errors @ moves) / spread)) if spread > NOISE**2 else 0.0
    left = errors - power * moves
    se = math.sqrt(float(left @ left))
    if power <= NOISE or se <= NOISE:
        return None
    estimate = float(values.mean() + power * (scores[rest].mean() - scores[at].mean()))
    return _Corrected(estimate, se, power, n, clusters, seen - 2)


def _positions(labelled: Sequence[int], labels: int, items: int) -> NDArray[np.intp]:
    at = np.asarray(labelled, dtype=np.intp)
    if len(at) != labels:
        raise ValueError(f"{len(at)} labelled positions and {labels} scores of people")
    if at.min() < 0 or at.max() >= items or len(np.unique(at)) != len(at):
        raise ValueError(f"labelled positions must be different ones of 0 to {items - 1}")
    return at


def _codes(groups: Groups | None, n: int) -> NDArray[np.intp]:
    codes = _clusters(groups, n)
    return np.arange(n, dtype=np.intp) if codes is None else codes


def _difference(a: Floats, b: Floats, name_a: str, name_b: str) -> NDArray[np.float64]:
    first, second = _finite(a, name_a), _finite(b, name_b)
    if len(first) != len(second):
        raise ValueError(f"{name_a} has {len(first)} scores and {name_b} {len(second)}: they must be of the same items")
    return _checked(first - second, f"{name_a} minus {name_b}")
