"""Paired comparisons of candidates on the same items: the only way that two scores meet."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from evals.errors import AdvisorError
from evals.scores import Scores
from evals.statistics.paired import holm, paired_difference


@dataclass(frozen=True)
class Comparison:
    """`difference` is the mean of a minus b on the same n items, with its 95% interval; `p_adjusted` is Holm's."""

    a: str
    b: str
    split: str
    metric: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float

    @property
    def better(self) -> bool:
        """a is shown to be better than b: interval above zero, and significant after adjustment."""
        return self.low > 0 and self.p_adjusted < 0.05


def signed(value: float) -> str:
    """A difference of scores in points of 100."""
    return f"{100 * value:+.1f}"


def span_of(difference: float, low: float, high: float, n: int) -> str:
    return f"{signed(difference)} points (95% interval {signed(low)} to {signed(high)}, n = {n})"


def compare(a: Scores, b: Scores, groups: Sequence[str] | None) -> Comparison:
    """Raises AdvisorError where the two were not scored on the same items, or where a score is no number."""
    if [one.id for one in a.items] != [one.id for one in b.items] or a.split != b.split or a.metric != b.metric:
        raise AdvisorError(f"{a.candidate} and {b.candidate} were not scored on the same items", where=a.split)
    for one in (a, b):
        wrong = next((item for item in one.items if not math.isfinite(item.score)), None)
        if wrong is not None:
            raise AdvisorError(
                f"{one.candidate} has the score {wrong.score} for item {wrong.id}: a score is a number",
                where=one.split,
                do="mend the metric that gives it, then run again.",
            )
    paired = paired_difference(a.values(), b.values(), groups)
    return Comparison(
        a.candidate,
        b.candidate,
        a.split,
        a.metric,
        paired.n,
        paired.estimate,
        paired.low,
        paired.high,
        paired.p,
        paired.p,
    )


def without(scores: Scores, left_out: Collection[str]) -> Scores:
    """The same scores without some items."""
    return replace(scores, items=tuple(one for one in scores.items if one.id not in left_out))


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's adjustment across claims that are made together."""
    values = holm([one.p for one in comparisons])
    return [replace(one, p_adjusted=value) for one, value in zip(comparisons, values, strict=True)]
