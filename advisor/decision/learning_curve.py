"""What training on all rows would gain, foreseen from short trainings on some of them.

The gain of the tuned weights on the best candidate, over D training rows, is taken as E - G * (D + L)^-beta plus what the seed of a
run does: a power law (Zhang et al. 2024, "When scaling meets LLM finetuning"), which L rows that the model need not have seen may
hold back at first (Lin et al. 2024, 2402.02314, whose rectified law has such a term, since pure power laws call curves flat that rise
late). The posterior lies on a grid, and the answer is the chance that the gain pays, not a point.

Priors, for scores in [0, 1] of which the best candidate has the mean m:
- beta is log-uniform from 0.1 to 1.5, where nearly all exponents lie that those papers fitted;
- L is 0 with probability 1/2, else 64, 256, 1,024 or 4,096;
- the score at 64 rows, and the score E + m that endless rows would reach, are uniform among all pairs of scores in [0, 1] of which
  the second is at least the first: E is at most 1 - m, and G at least 0 (more rows are never taken to hurt);
- the seed's standard deviation is log-normal around 2 points by a factor of 2 (Dodge et al. 2020, 2002.06305, saw about that),
  so that two equal runs are not taken as no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from advisor.decision.compare import signed
from advisor.decision.evidence import Evidence, Purchase, Trained, TrainingPlan
from evals.errors import AdvisorError
from evals.scores import Scores
from evals.statistics.paired import paired_difference

Answer = Literal["stop", "go", "buy"]
Array = NDArray[np.float64]

# A training on fewer rows tells nothing of one on many.
MIN_ROWS = 64
# Under this many rows in all there is nothing to train on.
FEWEST_ROWS = 8
# Under the first chance no more is paid to know; over the second the full run is worth its price.
STOP, GO = 0.1, 0.6
# More rows of the same kind that a team might still collect.
MULTIPLES = (2, 4, 8)
# Every exponent with every offset, the power law without one as likely as all with one.
OFFSETS = np.array([0.0, 64.0, 256.0, 1024.0, 4096.0])
EXPONENT, OFFSET = (one.ravel() for one in np.meshgrid(np.geomspace(0.1, 1.5, 9), OFFSETS))
SHAPE_LOG_PRIOR = np.log(np.where(OFFSET == 0, 1.0, 1 / (len(OFFSETS) - 1)))
SEED_SD = 0.02 * 2.0 ** np.arange(-2, 3)
SEED_LOG_PRIOR = -0.5 * np.arange(-2, 3) ** 2
CELLS = 801


@dataclass(frozen=True)
class Point:
    """One short training: the gain of its weights on the best candidate, with the 95% interval of the items."""

    rows: int
    seed: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What is believed of training on all `rows`, as gain in score on the best candidate.

    `gain` is the mean, [`low`, `high`] the central 95% of the posterior of the true gain: that of the recipe, on the population of
    items, over seeds. `run_low` to `run_high` are the 95% of what one full run will show on these same dev items, which is what the
    forecast is held to afterwards. `chance` is P(true gain >= `pays`).
    """

    rows: int
    pays: float
    gain: float
    low: float
    high: float
    chance: float
    answer: Answer
    run_low: float
    run_high: float
    points: tuple[Point, ...]

    def sentence(self) -> str:
        sizes = sorted({point.rows for point in self.points})
        on = f"{sizes[0]:,} rows" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,} rows"
        count = len(self.points)
        trainings = "one short training" if count == 1 else f"{count} short trainings"
        return (
            f"From {trainings} on {on}, training on all {self.rows:,} is expected to gain {signed(self.gain)} points "
            f"(95% credible {signed(self.low)} to {signed(self.high)}); the chance that it gains the {signed(self.pays)} that pay is "
            f"{self.chance:.0%}."
        )


def subsets(rows: int) -> tuple[int, ...]:
    """Sizes of the points of the curve: 1/16, 1/8, 1/4 and 1/2 of the rows, those of at least 64."""
    return tuple(sorted({rows // part for part in (16, 8, 4, 2) if rows // part >= MIN_ROWS}))


def forecast(
    trained: Sequence[Trained], best: Scores, rows: int, pays: float, groups: Sequence[str] | None = None
) -> Forecast | None:
    """The posterior of the gain of training on all `rows`, from the points of the curve; a full run is not looked at.

    None without points. Raises AdvisorError where a point and `best` were not scored on the same items.
    """
    short = [one for one in trained if not one.full]
    if not short:
        return None
    measured = _measured(short, best, groups)
    true = measured.posterior(rows)
    chance = true.chance_of(pays)
    low, high = true.quantiles((0.025, 0.975))
    run_low, run_high = measured.on_these_items.run(rows).quantiles((0.025, 0.975))
    points = tuple(_point(one, best, groups) for one in short)
    return Forecast(rows, pays, true.mean, low, high, chance, _answer(chance), run_low, run_high, points)


def more_rows(
    trained: Sequence[Trained], best: Scores, rows: int, pays: float, groups: Sequence[str] | None = None
) -> int | None:
    """The smallest multiple of `rows` at which the gain pays with a chance over 60%; None where none up to 8 times does.

    A full run is a point like the others here: it is evidence about `rows`, and the question is about more.
    """
    if not trained:
        return None
    measured = _measured(trained, best, groups)
    return next((many * rows for many in MULTIPLES if measured.posterior(many * rows).chance_of(pays) > GO), None)


def next_training(evidence: Evidence, pays: float, forecast: Forecast | None) -> Purchase | None:
    """The training that is worth its price now; None where nothing more is.

    The full run at once where it costs no more than the whole curve, and where fewer than two sizes of subset are left: one point
    tells nothing of a slope, and so few rows are trained on in a minute. Else the curve, smallest first.
    """
    plan = evidence.plan
    if plan is None or plan.rows < FEWEST_ROWS or any(one.full for one in evidence.trained):
        return None
    # What was paid for and gave nothing is not paid for again.
    asked = {(one.rows, one.seed, one.full) for one in evidence.bought if one.what == "training"}
    asked |= {(one.rows, one.seed, one.full) for one in evidence.trained}
    if len(plan.subsets) < 2:
        because = f"{plan.rows:,} rows are too few for a learning curve, and trained on at once"
        return _new(Purchase("training", because, plan.rows, full=True), asked)
    curve = _curve(plan)
    whole = sum(seconds for _, _, seconds in curve)
    if plan.full_seconds <= whole and not evidence.trained:
        because = (
            f"training on all {plan.rows:,} rows ({_minutes(plan.full_seconds)}) costs no more than the learning curve that would "
            f"foresee it ({_minutes(whole)})"
        )
        return _new(Purchase("training", because, plan.rows, full=True), asked)
    for rows, seed, _ in curve[:-1]:
        if (rows, seed, False) not in asked:
            because = f"a point of the learning curve: {rows:,} of {plan.rows:,} rows" + (", another seed" if seed else "")
            return Purchase("training", because, rows, seed)
    rows, seed, _ = curve[-1]
    if forecast is None or forecast.answer != "buy":
        return None
    because = (
        f"the chance that training gains the {signed(pays)} that pay is {forecast.chance:.0%}, which neither rules it out nor "
        f"carries it: {rows:,} of {plan.rows:,} rows"
    )
    return _new(Purchase("training", because, rows, seed), asked)


def _new(purchase: Purchase, asked: set[tuple[int, int, bool]]) -> Purchase | None:
    return None if (purchase.rows, purchase.seed, purchase.full) in asked else purchase


def _curve(plan: TrainingPlan) -> list[tuple[int, int, float]]:
    """(rows, seed, seconds) of every point: smallest first, another seed on the largest but one, and last the largest."""
    *short, largest = plan.subsets
    points = [(rows, 0, seconds) for rows, seconds in short]
    points += [(rows, 1, seconds) for rows, seconds in short[-1:]]
    return [*points, (largest[0], 0, largest[1])]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def _answer(chance: float) -> Answer:
    return "stop" if chance < STOP else "go" if chance > GO else "buy"


def _point(one: Trained, best: Scores, groups: Sequence[str] | None) -> Point:
    found = paired_difference(one.scores.values(), best.values(), groups)
    return Point(one.rows, one.seed, found.estimate, found.low, found.high)


@dataclass(frozen=True)
class _Posterior:
    """Weights that sum to 1 over `gains`, evenly spaced."""

    gains: Array
    weights: Array

    @property
    def mean(self) -> float:
        return float(self.gains @ self.weights)

    @cached_property
    def _cumulative(self) -> Array:
        # Half of a cell lies below its middle.
        return np.cumsum(self.weights) - self.weights / 2

    def chance_of(self, limit: float) -> float:
        """P(gain >= limit)."""
        below = np.interp(limit, self.gains, self._cumulative, left=0.0, right=1.0)
        # A sum of a thousand weights may end a rounding error above 1, and a chance may not.
        return float(np.clip(1 - below, 0.0, 1.0))

    def quantiles(self, at: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(one) for one in np.interp(at, self._cumulative, self.gains))


@dataclass(frozen=True)
class _Measured:
    """Mean gains (k) of trainings on `sizes` rows (k), their covariance by the items (k x k), and the best candidate's mean."""

    sizes: Array
    gains: Array
    covariance: Array
    best: float

    @property
    def on_these_items(self) -> _Measured:
        """The same with the error that all runs share taken out: it moves a further run on these items just as much.

        That part is the mean covariance of two runs, and at most what leaves a covariance.
        """
        count = len(self.gains)
        if count == 1:
            return self
        shared = (self.covariance.sum() - np.trace(self.covariance)) / (count * (count - 1))
        most = 1 / np.linalg.inv(self.covariance + 1e-9 * np.eye(count)).sum()
        return _Measured(self.sizes, self.gains, self.covariance - max(0.0, min(shared, most)), self.best)

    def posterior(self, rows: int) -> _Posterior:
        """Of E - G * (rows + L)^-beta."""
        cells, density = self._density(rows)
        return _Posterior(cells, density.sum(axis=0))

    def run(self, rows: int) -> _Posterior:
        """Of what one run shows: its seed and its own errors on the items come on top."""
        cells, density = self._density(rows)
        step = cells[1] - cells[0]
        own = float(np.trace(self.covariance)) / len(self.gains)
        wide = np.arange(cells[0] - 1.0, cells[-1] + 1.0 + step / 2, step)
        total = np.zeros(len(wide))
        reach = (len(wide) - len(cells)) // 2
        for weights, seed_sd in zip(density, SEED_SD, strict=True):
            spread = max(math.sqrt(seed_sd**2 + own), step)
            bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / spread) ** 2)
            smeared = np.convolve(weights, bell / bell.sum())
            total[: len(smeared)] += smeared[: len(total)]
        return _Posterior(wide, total / total.sum())

    def _density(self, rows: int) -> tuple[Array, Array]:
        """Gains at `rows` (c cells), and the posterior weight of each with each seed deviation (s x c), which sum to 1.

        With g the gain at `rows` and d = (E + m) - (score at 64 rows) >= 0, a point of size D expects g + d (w(rows) - w(D)), where
        w(D) = ((D + L) / (64 + L))^-beta. That is linear in d, so that d is integrated out exactly, between 0 and what keeps both
        scores in [0, 1]; beta, L, g and the seed's deviation lie on the grid. The map from (E, score at 64) to (g, d) keeps areas.
        """
        from scipy.special import log_ndtr

        floor, ceiling = -self.best, 1 - self.best
        cells = np.linspace(floor, ceiling, CELLS)
        reference = min(MIN_ROWS, rows, *self.sizes)
        here = ((rows + OFFSET) / (reference + OFFSET)) ** -EXPONENT
        there = (self.sizes[None, :] + OFFSET[:, None]) / (reference + OFFSET[:, None])
        slopes = here[:, None] - there ** -EXPONENT[:, None]
        with np.errstate(divide="ignore"):
            most = np.minimum(
                (ceiling - cells)[None, :] / here[:, None], (cells - floor)[None, :] / np.maximum(1 - here, 1e-12)[:, None]
            )
        errors = self.gains[:, None] - cells[None, :]
        logs = np.empty((len(SEED_SD), len(cells)))
        for at, seed_sd in enumerate(SEED_SD):
            covariance = self.covariance + seed_sd**2 * np.eye(len(self.gains))
            precision = np.linalg.inv(covariance)
            weighted = precision @ errors
            # A point at `rows` itself tells nothing of d: a curvature of 0, which stands for "hardly any" here.
            curvature = np.maximum(np.einsum("bi,ij,bj->b", slopes, precision, slopes), 1e-6)[:, None]
            centre = (slopes @ weighted) / curvature
            root = np.sqrt(curvature)
            below, above = -centre * root, (most - centre) * root
            # In the tail that is nearer, so that two chances near 1 are not subtracted.
            flip = below > 0
            small, large = np.where(flip, -above, below), np.where(flip, -below, above)
            first, second = log_ndtr(large), log_ndtr(small)
            with np.errstate(divide="ignore", invalid="ignore"):
                within = first + np.log1p(-np.exp(np.minimum(second - first, 0.0)))
            misfit = np.einsum("ic,ic->c", errors, weighted)[None, :] - curvature * centre**2
            each = within - np.log(root) - 0.5 * misfit + SHAPE_LOG_PRIOR[:, None]
            logs[at] = np.logaddexp.reduce(np.nan_to_num(each, nan=-np.inf), axis=0)
            logs[at] += SEED_LOG_PRIOR[at] - 0.5 * np.linalg.slogdet(covariance)[1]
        density = np.exp(logs - logs.max())
        return cells, density / density.sum()


def _measured(trained: Sequence[Trained], best: Scores, groups: Sequence[str] | None) -> _Measured:
    ids = [item.id for item in best.items]
    for one in trained:
        if [item.id for item in one.scores.items] != ids:
            raise AdvisorError(
                f"{one.scores.candidate} and {best.candidate} were not scored on the same items", where=best.split
            )
    differences = np.array([one.scores.values() for one in trained]) - np.array(best.values())
    sizes = np.array([float(one.rows) for one in trained])
    return _Measured(sizes, differences.mean(axis=1), _covariance(differences, groups), best.mean)


def _covariance(differences: Array, groups: Sequence[str] | None) -> Array:
    """Cluster-robust covariance (k x k) of the means of k rows of differences on the same n items: G/(G-1) sum_g s_g s_g' / n^2,
    with s_g the residuals of a cluster, summed (Liang and Zeger 1986). It is widened as Student's t with G - 1 degrees of freedom
    is, and each variance is at least that of a share of clusters which the data need not have shown: 2 / (G + 4), the share that
    Agresti and Coull (1998) put where none of G was seen. With one cluster nothing is known, and the spread is that of [-1, 1].
    """
    from scipy.special import ndtri, stdtrit

    count, n = differences.shape
    codes = np.arange(n) if groups is None else np.unique(np.array(groups), return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    if clusters == 1:
        return np.eye(count)
    residuals = differences - differences.mean(axis=1, keepdims=True)
    sums = np.array([np.bincount(codes, weights=row, minlength=clusters) for row in residuals])
    covariance = clusters / (clusters - 1) * (sums @ sums.T) / n**2
    covariance = covariance * float(stdtrit(clusters - 1, 0.975) / ndtri(0.975)) ** 2
    share = 2 / (clusters + 4)
    least = share * (1 - share) / clusters
    floored: Array = covariance + np.diag(np.maximum(0.0, least - np.diag(covariance)))
    return floored
