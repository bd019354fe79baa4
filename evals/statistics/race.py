"""Races: which of several candidates is best, without asking each the same number of items."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
