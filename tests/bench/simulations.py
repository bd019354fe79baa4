"""Simulated evaluations whose truth is known, and how often the shipped statistics are wrong about them.

Candidates answer the same items. An answer's quality is what all candidates share on the item (its difficulty) plus what is
the candidate's own; both have a part that items of one cluster share. Every function takes the statistic that it tries, so
that a test can plant a wrong one and see it found out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evals.statistics.betting import confidence_sequence, told_apart
from evals.statistics.margin import NonInferiority, non_inferiority
from evals.statistics.paired import Paired, holm, paired_difference
from evals.statistics.ppi import ppi_mean
from evals.statistics.race import Raced, race

Floats = NDArray[np.float64]
Kind = Literal["binary", "graded"]
Layout = Literal["none", "equal", "unequal"]
Compare = Callable[..., Paired]
# Runs that the limits are made for: at 10,000 the Monte-Carlo error of a rate of 5% is 0.2 points.
FULL = 10_000
ALPHA = 0.05
# What is claimed of equals, and how often the truth is within a sequence of intervals: the promises are 5% and 95%.
FALSE = 0.055
COVERAGE = 0.95
# Of the latent quality of an answer: the share that is the item's, such that scores of two candidates correlate with about 0.5,
# and of either part the share that items of one cluster have in common.
SHARED: dict[Kind, float] = {"binary": 0.7, "graded": 0.5}
WITHIN = 0.5
# Numbers drawn at once: a few dozen megabytes.
BLOCK = 4_000_000


@dataclass(frozen=True)
class Rate:
    """How often something happened in `runs` runs."""

    times: int
    runs: int

    @property
    def share(self) -> float:
        return self.times / self.runs

    def at_most(self, limit: float) -> bool:
        """Not above `limit`, which is for 10,000 runs: for fewer it is wider by three times what the Monte-Carlo error grows."""
        return self.share <= limit + self._slack(limit)

    def at_least(self, limit: float) -> bool:
        return self.share >= limit - self._slack(limit)

    def near(self, promised: float, points: float) -> bool:
        return abs(self.share - promised) <= points + self._slack(promised)

    def _slack(self, limit: float) -> float:
        return 3 * math.sqrt(limit * (1 - limit)) * max(0.0, 1 / math.sqrt(self.runs) - 1 / math.sqrt(FULL))


def layout_of(layout: Layout, n: int, random: np.random.Generator) -> list[int] | None:
    """Each item's cluster: five items each, or 1 to 10 of them, most of them few (about 15 clusters of 50 items)."""
    if layout == "none":
        return None
    if layout == "equal":
        return [at // 5 for at in range(n)]
    sizes = np.minimum(random.geometric(0.27, n), 10)
    return [int(one) for one in np.repeat(np.arange(n), sizes)[:n]]


def scored(
    kind: Kind, runs: int, means: Sequence[float], n: int, groups: Sequence[int] | None, random: np.random.Generator
) -> Floats:
    """Scores in [0, 1], (runs, candidates, n), of candidates with these `means`; binary ones, or graded with 0s and 1s among them."""
    shared = SHARED[kind]
    codes = None if groups is None else np.asarray(groups)

    def part(candidates: int) -> Floats:
        each = random.standard_normal((runs, candidates, n))
        if codes is None:
            return each
        common = random.standard_normal((runs, candidates, int(codes.max()) + 1))[:, :, codes]
        return math.sqrt(WITHIN) * common + math.sqrt(1 - WITHIN) * each

    quality = math.sqrt(shared) * part(1) + math.sqrt(1 - shared) * part(len(means))
    where = np.asarray(means)[None, :, None]
    if kind == "graded":
        return np.clip(where + 0.35 * quality, 0, 1)
    from scipy.special import ndtri

    return np.asarray(quality < ndtri(where), dtype=float)


def draws(
    kind: Kind, layout: Layout, n: int, runs: int, seed: int, means: Sequence[float] = (0.6, 0.6)
) -> Iterator[tuple[Floats, list[int] | None]]:
    """`runs` evaluations, (candidates, n) each, with the clusters of its items: of unequal ones new ones every tenth run."""
    random = np.random.default_rng(seed)
    left = runs
    while left:
        groups = layout_of(layout, n, random)
        most = 10 if layout == "unequal" else max(1, BLOCK // (n * len(means)))
        block = scored(kind, min(left, most), means, n, groups, random)
        yield from ((one, groups) for one in block)
        left -= len(block)


@functools.cache
def _of_counts(wins: int, losses: int, n: int, level: float) -> Paired:
    a, b = counted(wins, losses, n)
    return paired_difference(a, b, level=level)


def counted(wins: int, losses: int, n: int) -> tuple[list[int], list[int]]:
    """0/1 scores of n items, of which the first candidate alone has `wins` and the second alone `losses`."""
    rest = n - wins - losses
    return [1] * wins + [0] * losses + [1] * rest, [0] * wins + [1] * losses + [1] * rest


def compared(a: Floats, b: Floats, groups: Sequence[int] | None = None, level: float = 0.95) -> Paired:
    """`paired_difference`, which for ungrouped 0/1 scores depends on the discordant pairs alone, so that each table is asked once."""
    if groups is None and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return _of_counts(int((a > b).sum()), int((a < b).sum()), len(a), level)
    return paired_difference(a, b, groups, level)


def excludes_none(found: Paired) -> bool:
    return found.low > 0 or found.high < 0


@dataclass(frozen=True)
class Claims:
    """Of two equal candidates: the interval excludes 0; the p-value is under 0.05; both, which is the claim that is made."""

    interval: Rate
    test: Rate
    both: Rate


def claims(kind: Kind, layout: Layout, n: int, runs: int, seed: int, compare: Compare = compared) -> Claims:
    """Two equal candidates."""
    interval, test, both = 0, 0, 0
    for (a, b), groups in draws(kind, layout, n, runs, seed):
        found = compare(a, b, groups)
        apart, significant = excludes_none(found), found.p < ALPHA
        interval, test, both = interval + apart, test + significant, both + (apart and significant)
    return Claims(Rate(interval, runs), Rate(test, runs), Rate(both, runs))


def any_claim(
    kind: Kind,
    layout: Layout,
    n: int,
    runs: int,
    seed: int,
    candidates: int = 20,
    adjust: Callable[[Sequence[float]], Sequence[float]] = holm,
) -> Rate:
    """Equal candidates against the one that was named beforehand: how often any is claimed to be different."""
    wrong = 0
    for scores, groups in draws(kind, layout, n, runs, seed, [0.6] * candidates):
        found = [compared(one, scores[0], groups) for one in scores[1:]]
        adjusted = adjust([one.p for one in found])
        wrong += any(excludes_none(one) and p < ALPHA for one, p in zip(found, adjusted, strict=True))
    return Rate(wrong, runs)


@dataclass(frozen=True)
class Winner:
    """The best on dev of equal candidates. `locked`: claimed to differ from the runner-up on fresh items. `flattered`: claimed on
    dev itself to be better than the candidate that was named beforehand. The gains on that one, on dev and on fresh items."""

    locked: Rate
    flattered: Rate
    naive: float
    honest: float
    honest_error: float


def winner(kind: Kind, n: int, runs: int, seed: int, candidates: int = 20) -> Winner:
    """Dev and locked test of n items each. The reference is no contestant, so that there is always a gain to report."""
    means = [0.6] * (candidates + 1)
    dev, test = draws(kind, "none", n, runs, seed, means), draws(kind, "none", n, runs, seed + 1, means)
    locked, flattered = 0, 0
    naive, honest = np.zeros(runs), np.zeros(runs)
    for at, ((seen, _), (fresh, _)) in enumerate(zip(dev, test, strict=True)):
        # Of equal means the first.
        second, first = np.argsort(-seen[1:].mean(axis=1), kind="stable")[[1, 0]] + 1
        found = compared(fresh[first], fresh[second])
        locked += excludes_none(found) and found.p < ALPHA
        found = compared(seen[first], seen[0])
        flattered += found.low > 0 and found.p < ALPHA
        naive[at] = seen[first].mean() - seen[0].mean()
        honest[at] = fresh[first].mean() - fresh[0].mean()
    error = float(honest.std(ddof=1)) / math.sqrt(runs)
    return Winner(Rate(locked, runs), Rate(flattered, runs), float(naive.mean()), float(honest.mean()), error)


def stopped(kind: Kind, layout: Layout, n: int, runs: int, seed: int, means: tuple[float, float], grid: int = 200) -> Rate:
    """How often the confidence sequence of a difference holds the truth where one stops as soon as it leaves out 0, else after n.

    For graded candidates the truth is known only where they are equal, since their scores are clipped.
    """
    if kind == "graded" and means[0] != means[1]:
        raise ValueError("the difference of clipped scores is not that of their means")
    truth, random = means[0] - means[1], np.random.default_rng(seed)
    held, left = 0, runs
    while left:
        some = min(left, 200)
        groups = layout_of(layout, n, random)
        scores = scored(kind, some, means, n, groups, random)
        lows, highs = confidence_sequence(scores[:, 0] - scores[:, 1], groups, grid=grid)
        apart = (lows > 0) | (highs < 0)
        at = np.where(apart.any(axis=1), apart.argmax(axis=1), n - 1)
        rows = np.arange(some)
        held += int(((lows[rows, at] <= truth) & (truth <= highs[rows, at])).sum())
        left -= some
    return Rate(held, runs)


def never_apart(
    kind: Kind, layout: Layout, n: int, runs: int, seed: int, apart: Callable[..., NDArray[np.bool_]] = told_apart
) -> Rate:
    """How often two equal candidates are not told apart by a look after every one of n items."""
    random = np.random.default_rng(seed)
    held, left = 0, runs
    while left:
        some = min(left, 200)
        groups = layout_of(layout, n, random)
        scores = scored(kind, some, (0.6, 0.6), n, groups, random)
        held += int((~apart(scores[:, 0] - scores[:, 1], groups)).sum())
        left -= some
    return Rate(held, runs)


def peeking(differences: Floats, groups: Sequence[int] | None = None) -> NDArray[np.bool_]:
    """(runs,): whether the fixed-n interval of `differences` (runs, n) excludes 0 at any look, one every ten items: the wrong way."""
    runs, n = differences.shape
    apart = np.zeros(runs, dtype=bool)
    for stop in range(10, n + 1, 10):
        some = None if groups is None else groups[:stop]
        for at in np.flatnonzero(~apart):
            apart[at] = excludes_none(paired_difference(differences[at, :stop], np.zeros(stop), some))
    return apart


Race = Callable[..., Raced]


def best_dropped(
    means: Sequence[float], layout: Layout, n: int, runs: int, seed: int, run: Race = race, kind: Kind = "binary"
) -> Rate:
    """How often the first candidate, of which none is better, leaves a race by e-values alone."""
    dropped = 0
    for scores, groups in draws(kind, layout, n, runs, seed, means):
        found = run(_ask(scores), len(means), n, budget=None, groups=groups)
        dropped += 0 not in found.through
    return Rate(dropped, runs)


@dataclass(frozen=True)
class Racing:
    """`regret`: by how much the true mean of full evaluation's pick is above that of the race's, on average; `worse` than one point:
    how often. `spent` is the share of full evaluation's answers, those that follow the race on all items included.
    `equal`: how often all that came through were said to be equal, and there were two or more."""

    regret: float
    regret_error: float
    worse: Rate
    spent: float
    equal: Rate


def racing(means: Sequence[float], n: int, runs: int, seed: int, *, rounds: float, keep: int, run: Race = race) -> Racing:
    """A race with a budget of `rounds` evaluations of all n items; those that come through it answer all items."""
    spent, equal, worse = 0, 0, 0
    regrets = np.zeros(runs)
    for at, (scores, _) in enumerate(draws("binary", "none", n, runs, seed, means)):
        found = run(_ask(scores), len(means), n, budget=int(rounds * n), keep=keep)
        through = list(found.through)
        pick = through[int(scores[through].mean(axis=1).argmax())]
        regrets[at] = means[int(scores.mean(axis=1).argmax())] - means[pick]
        worse += bool(regrets[at] > 0.01 + 1e-9)
        spent += found.spent + len(through) * (n - found.items)
        equal += len(through) > 1 and len(found.equal) == len(through)
    share = spent / (runs * n * len(means))
    error = float(regrets.std(ddof=1)) / math.sqrt(runs)
    return Racing(float(regrets.mean()), error, Rate(worse, runs), share, Rate(equal, runs))


def _ask(scores: Floats) -> Callable[[Sequence[int], int, int], Floats]:
    return lambda alive, start, stop: scores[list(alive), start:stop]


Gate = Callable[..., NonInferiority]


def passes(n: int, margin: float, discordance: float, loss: float, runs: int, seed: int, gate: Gate = non_inferiority) -> Rate:
    """How often the forgetting gate holds on n 0/1 items, of which tuning changes a share `discordance`, with a true `loss`."""
    chances = [(discordance - loss) / 2, (discordance + loss) / 2, 1 - discordance]
    tables = np.random.default_rng(seed).multinomial(n, chances, runs)
    unique, times = np.unique(tables[:, :2], axis=0, return_counts=True)
    held = [gate(*counted(int(wins), int(losses), n), margin).answer == "holds" for wins, losses in unique]
    return Rate(int(times[held].sum()), runs)


def shown(n: int, effect: float, discordance: float, runs: int, seed: int) -> Rate:
    """How often an `effect` on n 0/1 items, of which a share `discordance` changes, is claimed."""
    chances = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    tables = np.random.default_rng(seed).multinomial(n, chances, runs)
    unique, times = np.unique(tables[:, :2], axis=0, return_counts=True)
    found = [_of_counts(int(wins), int(losses), n, 0.95) for wins, losses in unique]
    return Rate(int(times[[one.low > 0 and one.p < ALPHA for one in found]].sum()), runs)


def ppi_misses(n: int, labels: int, agreement: float, runs: int, seed: int) -> Rate:
    """How often the interval of `ppi_mean` misses people's mean (0.6, 0/1 scores), where the judge copies people's score for a
    share `agreement` of items, and of the others passes 7 of 10 whatever people say."""
    random = np.random.default_rng(seed)
    missed = 0
    for _ in range(runs):
        people = (random.uniform(size=n) < 0.6).astype(float)
        alone = (random.uniform(size=n) < 0.7).astype(float)
        judge = np.where(random.uniform(size=n) < agreement, people, alone)
        at = random.choice(n, labels, replace=False)
        found = ppi_mean(judge, at.tolist(), people[at])
        missed += not found.low <= 0.6 <= found.high
    return Rate(missed, runs)
