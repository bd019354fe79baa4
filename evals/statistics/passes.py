"""pass@k: how good the best of k samples would be, from m >= k samples of each item."""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pass_at_k(samples: ArrayLike, k: int) -> NDArray[np.float64]:
    """The expected best score of k samples drawn without replacement from each item's m: (n, m) scores -> (n,) values.

    The unbiased estimator of Chen et al. 2021 (2107.03374), 1 - C(m-c, k) / C(m, k) for c right answers of m, in its form for
    graded scores: the i-th smallest is the best of C(i-1, k-1) of the C(m, k) draws. k = 1 is the mean. Raises ValueError
    for k outside 1..m, or no items.
    """
    scores = np.sort(np.asarray(samples, dtype=np.float64), axis=1)
    n, m = scores.shape
    if not n or not 1 <= k <= m:
        raise ValueError(f"pass@{k} cannot be told from {m} samples of {n} items")
    weights = np.array([comb(at, k - 1) / comb(m, k) for at in range(m)])
    found: NDArray[np.float64] = scores @ weights
    return found
