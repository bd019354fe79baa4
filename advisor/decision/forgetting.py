"""Forgetting: what general scores of base and tuned weights say, pooled and benchmark by benchmark. Pure.

One question is decided: over the pooled items, is "no greater loss than the margin" shown, refuted, or open? Everything else explains the
answer: single benchmarks (called broken only after Holm's adjustment over all of them), the items that were lost and won, calibration,
and how the answers changed in kind. "Not significant" is nowhere "no loss".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from evals.errors import AdvisorError
from evals.general.divergence import Divergence
from evals.general.drift import Drift, drift
from evals.general.lm_eval import GeneralItem, GeneralScores
from evals.general.suites import Suite
from evals.statistics.calibration import Calibration, calibration
from evals.statistics.margin import Answer, NonInferiority, non_inferiority, p_beyond
from evals.statistics.paired import holm

ALPHA = 0.05
Pair = tuple[GeneralItem, GeneralItem]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark on its `n` items: mean scores, tuned minus base against the margin, and how many items turned.

    `p_adjusted` is Holm's, over all benchmarks, of "the loss is the margin or less". `chance` is the score of guessing. `excluded` items
    stand in the training rows and are counted nowhere else; where none is left, `change` is None.
    """

    task: str
    pooled: bool
    chance: float
    n: int
    base: float
    tuned: float
    change: NonInferiority | None
    p_adjusted: float
    lost: int
    won: int
    excluded: int
    calibration: Calibration | None

    @property
    def answer(self) -> Answer:
        """As `change` has it, but broken only after the adjustment."""
        if self.change is None or (self.change.answer == "broken" and self.p_adjusted >= ALPHA):
            return "undecided"
        return self.change.answer

    @property
    def at_chance(self) -> bool:
        """Whether the base scores hardly more than by guessing: such a benchmark cannot show a loss."""
        return self.n > 0 and self.base < self.chance + 0.1


@dataclass(frozen=True)
class Turned:
    """An item that one of the two answered better, with both outputs; `asked` is what was asked, where that is known."""

    id: str
    task: str
    asked: str
    base: str
    tuned: str
    by: float


@dataclass(frozen=True)
class Forgetting:
    """`pooled` is the verdict, over the items of the pooled benchmarks; `base` and `tuned` are the mean scores on them.

    `lost` and `won` are all items that turned, the greatest difference first. `excluded` counts those left out since they stand in the
    training rows. `drift` is of the answers that were generated, over all benchmarks.
    """

    suite: str
    pooled: NonInferiority
    base: float
    tuned: float
    benchmarks: tuple[Benchmark, ...]
    lost: tuple[Turned, ...]
    won: tuple[Turned, ...]
    excluded: int
    calibration: Calibration | None
    drift: Drift | None
    divergences: tuple[Divergence, ...] = ()

    @property
    def broken(self) -> tuple[Benchmark, ...]:
        return tuple(one for one in self.benchmarks if one.answer == "broken")


def forgetting(
    base: GeneralScores,
    tuned: GeneralScores,
    suite: Suite,
    margin: float,
    *,
    excluded: Collection[str] = (),
    asked: Mapping[str, str] | None = None,
    divergences: Sequence[Divergence] = (),
) -> Forgetting:
    """What the two say of the margin. `excluded` are ids of items that stand in the training rows, `asked` the items' texts by id.

    Raises AdvisorError where base and tuned did not answer the same items.
    """
    pairs = _paired(base, tuned)
    kept = [pair for pair in pairs if pair[0].id not in excluded]
    counted = [pair for pair in kept if pair[0].task in suite.pooled]
    turned = [_turned(pair, asked or {}) for pair in kept if pair[0].score != pair[1].score]
    written = _written(pairs)
    generated = [pair for pair in kept if pair[0].task in written]
    return Forgetting(
        suite.name,
        _change(counted, margin) or NonInferiority(0.0, -1.0, 1.0, margin, "undecided", 0, None),
        *_means(counted),
        _benchmarks(pairs, suite, margin, excluded),
        tuple(sorted((one for one in turned if one.by < 0), key=lambda one: one.by)),
        tuple(sorted((one for one in turned if one.by > 0), key=lambda one: -one.by)),
        len(pairs) - len(kept),
        _calibration(counted),
        drift([a.output for a, _ in generated], [b.output for _, b in generated]),
        tuple(divergences),
    )


def _paired(base: GeneralScores, tuned: GeneralScores) -> list[Pair]:
    of_tuned = {(one.task, one.id): one for one in tuned.items}
    if {(one.task, one.id) for one in base.items} != {*of_tuned} or len(base.items) != len(tuned.items):
        raise AdvisorError(
            f"{base.model} and {tuned.model} were not asked the same general items",
            where=base.suite,
            do="delete the run's `general` folder and run again.",
        )
    return [(one, of_tuned[one.task, one.id]) for one in base.items]


def _written(pairs: Sequence[Pair]) -> set[str]:
    """The benchmarks whose answers are generated: without options, and with words (where one text is scored, a number stands)."""
    options = {a.task for pair in pairs for a in pair if a.probability is not None}
    return {a.task for pair in pairs for a in pair if any(map(str.isalpha, a.output))} - options


def _benchmarks(pairs: Sequence[Pair], suite: Suite, margin: float, excluded: Collection[str]) -> tuple[Benchmark, ...]:
    found, values = [], []
    for task in suite.tasks:
        own = [pair for pair in pairs if pair[0].task == task.name]
        some = [pair for pair in own if pair[0].id not in excluded]
        before, after = _scores(some)
        values.append(p_beyond(after, before, margin) if some else 1.0)
        found.append(
            Benchmark(
                task.name,
                task.pooled,
                task.chance,
                len(some),
                *_means(some),
                _change(some, margin),
                values[-1],
                sum(a > b for a, b in zip(before, after, strict=True)),
                sum(a < b for a, b in zip(before, after, strict=True)),
                len(own) - len(some),
                _calibration(some),
            )
        )
    return tuple(replace(one, p_adjusted=p) for one, p in zip(found, holm(values), strict=True))


def _scores(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    return [a.score for a, _ in pairs], [b.score for _, b in pairs]


def _means(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Of base and tuned; 0 where there are no items."""
    before, after = (sum(values) / max(1, len(values)) for values in _scores(pairs))
    return before, after


def _change(pairs: Sequence[Pair], margin: float) -> NonInferiority | None:
    before, after = _scores(pairs)
    return non_inferiority(after, before, margin) if pairs else None


def _calibration(pairs: Sequence[Pair]) -> Calibration | None:
    """Over the items for which both have a probability; None where there are none."""
    both = [
        (a.probability, a.score, b.probability, b.score)
        for a, b in pairs
        if a.probability is not None and b.probability is not None
    ]
    if not both:
        return None
    sure, right, sure_now, right_now = zip(*both, strict=True)
    return calibration((sure, right), (sure_now, right_now))


def _turned(pair: Pair, asked: Mapping[str, str]) -> Turned:
    a, b = pair
    return Turned(a.id, a.task, asked.get(a.id, ""), a.output, b.output, b.score - a.score)
