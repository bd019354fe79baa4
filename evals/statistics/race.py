"""Races: which of several candidates is best, without asking each the same number of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evals.statistics.betting import SHARES, Clusters, Floats, Groups, clusters_of, gains, pooled, told_apart

# Nobody is looked at on fewer items, and by how much the items grow from round to round: a model asked in batches is quicker.
FIRST = 10
STEP = 1.6
# Asks candidates about items start..stop of the shuffled ones: scores in [0, 1], (len(alive), stop - start).
Ask = Callable[[Sequence[int], int, int], NDArray[np.float64]]


def rejects_schedule(candidates: int, budget: int, items: int) -> tuple[int, ...]:
    """How many items the survivors have answered, all the same ones, at the end of each of the phases 1..K-1.

    Synchronized successive rejects (Lyu et al. 2026, 2606.07726; the phases of Audibert et al. 2010): for K candidates and
    B requests n_k = ceil((B-K) / (logbar(K) (K+1-k))), logbar(K) = 1/2 + sum_{i=2..K} 1/i. One candidate leaves after
    each phase, so that phase k costs (K+1-k) (n_k - n_{k-1}) requests: never more than B in all. No n_k is above `items`.
    All are 0 where the budget does not go round (B <= K); there are no phases for fewer than two candidates.
    """
    logbar = 0.5 + sum(1 / i for i in range(2, candidates + 1))
    phases = range(1, candidates)
    # The tiny part keeps a quotient that is whole from being rounded up by the last bit.
    wanted = (math.ceil((budget - candidates) / (logbar * (candidates + 1 - k)) - 1e-9) for k in phases)
    return tuple(max(0, min(one, items)) for one in wanted)


def lowest(means: Sequence[float]) -> int:
    """Which candidate leaves: the one with the lowest mean; of equal ones the last, so list what is simpler or cheaper first.

    Raises ValueError where there is none.
    """
    return min(range(len(means)), key=lambda at: (means[at], -at))


@dataclass(frozen=True)
class Gone:
    """A candidate that left after `items` items with `mean` on them. `proven`: the others' e-values say that it is not the best;
    `schedule`: it was lowest when the budget had no more for so many, which proves nothing."""

    candidate: int
    items: int
    mean: float
    why: Literal["proven", "schedule"]


@dataclass(frozen=True)
class Raced:
    """`through` came through, in the order in which they were given, and answered the first `items` items; `left` in the order in
    which they left. `spent` counts answers. `equal`: the best of those that came through and all that cannot be told apart from
    it; empty where it stands alone."""

    through: tuple[int, ...]
    left: tuple[Gone, ...]
    spent: int
    items: int
    equal: tuple[int, ...]


def race(
    ask: Ask,
    candidates: int,
    items: int,
    *,
    budget: int | None,
    keep: int = 1,
    alpha: float = 0.05,
    groups: Groups | None = None,
    dear: Callable[[int], float] | None = None,
) -> Raced:
    """Which candidates are worth every item. All that are left answer the same items, in rounds; after each round leave

    - those that are proven worse: of each candidate the e-values that the others beat it (`log_wealth` of the paired
      differences; of one that has left, as it was then) are averaged; at 1/`alpha` it leaves. The average is an e-process too
      while the candidate is a best one, so that it ever leaves so with probability `alpha` at most (each one of several);
    - by `rejects_schedule`, while more than `keep` are left, those that are lowest when the `budget` (in answers; None: no limit,
      and nobody leaves so) says that it is time. The schedule is drawn up anew for those that are left and what is left, which
      gives the same phases where nobody left early, and more items to the others where somebody did.

    It ends when one is left, all items are answered, or the budget is spent; then the lowest above `keep` leave by the schedule.
    Where the budget does not go round, nobody is asked and all come through.

    The caller has shuffled the items, and those of one cluster (`groups`, of all items) stand together: no round ends within a
    cluster, and the budget is not exceeded for that. Of equal means the dearer leaves (`dear`: what a candidate costs, asked
    after the round), then the later one.

    Raises ValueError for scores outside [0, 1], clusters that do not stand together, or `keep` under 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 or more, not {keep}")
    going = _Going(candidates, items, clusters_of(groups, items), groups, budget, keep, dear or (lambda _: 0.0))
    while (stop := going.next_stop()) > going.answered:
        going.answer(ask, stop)
        going.drop_proven(alpha)
        going.drop_lowest(going.to_leave())
    if going.answered and budget is not None:
        going.drop_lowest(len(going.alive) - keep)
    return Raced(tuple(going.alive), tuple(going.left), going.spent, going.answered, going.equal(alpha))


class _Going:
    """A race while it goes on."""

    def __init__(
        self,
        candidates: int,
        items: int,
        clusters: Clusters,
        groups: Groups | None,
        budget: int | None,
        keep: int,
        dear: Callable[[int], float],
    ) -> None:
        self.items, self.clusters, self.groups, self.keep, self.dear = items, clusters, groups, keep, dear
        if (clusters.order != np.arange(items)).any():
            raise ValueError("the items of a cluster must stand together")
        self.budget = candidates * items if budget is None else budget
        self.scheduled = budget is not None
        self.ends = (clusters.starts + clusters.sizes).astype(int)
        self.alive = list(range(candidates))
        self.left: list[Gone] = []
        self.scores = np.full((candidates, items), np.nan)
        # [player, one, other]: the log-wealth of each player's bet that one beats the other, on `settled` clusters.
        self.wealth = np.zeros((len(SHARES), candidates, candidates))
        self.settled = 0
        self.answered = 0
        self.spent = 0

    def next_stop(self) -> int:
        """How many items are to be answered after the next round; `answered` where there is none."""
        if len(self.alive) < 2 or (self.scheduled and self.budget <= len(self.left) + len(self.alive)):
            return self.answered
        affordable = self.answered + (self.budget - self.spent) // len(self.alive)
        wanted = max(FIRST, math.ceil(STEP * self.answered))
        due = [one for one in self._schedule() if one > self.answered]
        if due and due[0] <= wanted:
            # Phases that nearly meet are one round: nobody leaves on fewer items than scheduled.
            wanted = max(one for one in due if one < STEP * due[0])
        return self._whole_clusters(min(wanted, affordable, self.items), min(affordable, self.items))

    def _schedule(self) -> Sequence[int]:
        """The phases for those that are left, as if only they had run from the start: the same ones where nobody left early."""
        many = len(self.alive)
        if not self.scheduled or many <= self.keep:
            return ()
        left = self.budget - self.spent + many * self.answered
        return rejects_schedule(many, left, self.items)[: many - self.keep]

    def _whole_clusters(self, wanted: int, most: int) -> int:
        """The first end of a cluster from `wanted` on; where that is above `most`, the last before it."""
        after = self.ends[self.ends >= wanted]
        if len(after) and after[0] <= most:
            return int(after[0])
        return int(max((end for end in self.ends if self.answered < end <= most), default=self.answered))

    def to_leave(self) -> int:
        return sum(one <= self.answered for one in self._schedule())

    def answer(self, ask: Ask, stop: int) -> None:
        found = np.asarray(ask(tuple(self.alive), self.answered, stop), dtype=float)
        if found.shape != (len(self.alive), stop - self.answered) or not np.all((found >= 0) & (found <= 1)):
            raise ValueError("a race needs a score in [0, 1] of every candidate for every item")
        self.scores[self.alive, self.answered : stop] = found
        self.spent += found.size
        self.answered = stop

    def means(self) -> Floats:
        """Of all candidates; only of those that are left do they mean anything."""
        return np.asarray(self.scores[:, : self.answered].mean(axis=1))

    def drop_proven(self, alpha: float) -> None:
        now = np.array(self.alive)
        self._bet(now)
        beats = pooled(list(self.wealth))  # [one, other]: the log of the e-value that one beats the other
        # The diagonal holds e^0 = 1, nobody's e-value against itself.
        averages = (np.exp(beats[:, now]).sum(axis=0) - 1) / max(1, len(beats) - 1)
        means = self.means()
        for at in sorted(now[averages >= 1 / alpha], key=lambda at: means[at]):
            if len(self.alive) > 1:
                self._drop(int(at), means, "proven")

    def _bet(self, now: NDArray[np.intp]) -> None:
        """On the clusters that were settled in this round, between those that answered them."""
        until = int(self.clusters.settled[self.answered - 1])
        sums = self.clusters.sums(self.scores[now])[:, self.settled : until]
        for player, won in zip(self.wealth, gains(sums[:, None] - sums[None], self.clusters.largest), strict=True):
            player[np.ix_(now, now)] += won.sum(axis=-1)
        self.settled = until

    def drop_lowest(self, many: int) -> None:
        means = self.means()
        for _ in range(many):
            self._drop(min(reversed(self.alive), key=lambda at: (means[at], -self.dear(at))), means, "schedule")

    def _drop(self, at: int, means: Floats, why: Literal["proven", "schedule"]) -> None:
        self.alive.remove(at)
        self.left.append(Gone(at, self.answered, float(means[at]), why))

    def equal(self, alpha: float) -> tuple[int, ...]:
        """Of those that are left: the best, and all whose difference from it may be 0, at 1 - `alpha` for all of them together."""
        if len(self.alive) < 2 or not self.answered:
            return ()
        means, now = self.means(), self.scores[self.alive, : self.answered]
        best = max(range(len(self.alive)), key=lambda at: (means[self.alive[at]], -self.dear(self.alive[at]), -at))
        groups = None if self.groups is None else self.groups[: self.answered]
        level = 1 - alpha / (len(self.scores) - 1)
        apart = told_apart(now[best] - now, groups, level, largest=self.clusters.largest)
        found = tuple(at for at, one in zip(self.alive, apart, strict=True) if not one)
        return found if len(found) > 1 else ()
