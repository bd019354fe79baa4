"""A linear-chain conditional random field over sparse features (Lafferty, McCallum and Pereira 2001), in numpy and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORBIDDEN = -1e4


@dataclass(frozen=True)
class Crf:
    """Scores of tags: `weights` (features, tags) for a token's own features, `steps` (tags, tags) from one tag to the next,
    `starts` (tags) for the first. Steps and starts that no reading of the tags allows are `FORBIDDEN`."""

    weights: NDArray[np.float64]
    steps: NDArray[np.float64]
    starts: NDArray[np.float64]

    def emissions(self, features: Any) -> NDArray[np.float64]:
        """(tokens, tags) from a sparse (tokens, features)."""
        found: NDArray[np.float64] = features @ self.weights
        return found

    def best(self, emissions: NDArray[np.float64]) -> list[int]:
        """The likeliest tags of one sequence of (tokens, tags): Viterbi 1967."""
        import numpy as np

        if not len(emissions):
            return []
        score = self.starts + emissions[0]
        came_from = []
        for emission in emissions[1:]:
            paths = score[:, None] + self.steps
            came_from.append(paths.argmax(axis=0))
            score = paths.max(axis=0) + emission
        tags = [int(np.argmax(score))]
        for back in reversed(came_from):
            tags.append(int(back[tags[-1]]))
        return tags[::-1]


@dataclass(frozen=True)
class _Packed:
    """Sequences sorted by length, the longest first, their tokens ordered by position: those at position t are the first
    `counts[t]` sequences, in the rows from `offsets[t]`."""

    order: NDArray[np.int64]
    counts: list[int]
    offsets: list[int]


def _pack(lengths: Sequence[int]) -> _Packed:
    """`order` are the rows of the tokens as they come, in the packed order."""
    import numpy as np

    sizes = np.asarray(lengths)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    longest_first = np.argsort(-sizes, kind="stable")
    counts = [int((sizes > at).sum()) for at in range(int(sizes.max()))]
    order = np.concatenate([starts[longest_first[:count]] + at for at, count in enumerate(counts)])
    return _Packed(order, counts, [0, *np.cumsum(counts).tolist()])


def train_crf(
    features: Any, tags: NDArray[np.int64], lengths: Sequence[int], allowed: NDArray[np.bool_], penalty: float, rounds: int
) -> Crf:
    """The weights that maximise the log-likelihood less `penalty`/2 times their squares, by `rounds` of L-BFGS at most.

    `features` is sparse (tokens, features), the sequences one after the other, `lengths` tokens each (none is empty);
    `allowed` (tags + 1, tags) says which tag may follow which, its last row which may come first.
    """
    import numpy as np
    from scipy.optimize import minimize

    count = allowed.shape[1]
    packed = _pack(lengths)
    # Features that never occur keep the weight 0, and are no unknowns.
    used = np.unique(features.indices)
    here = features[packed.order][:, used].tocsr()
    there = here.T.tocsr()
    gold = np.asarray(tags)[packed.order]
    wanted = np.zeros((len(gold), count))
    wanted[np.arange(len(gold)), gold] = 1.0
    seen_steps, seen_starts = _seen(packed, gold, count)
    size = len(used) * count

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat[:size].reshape(len(used), count)
        moves = flat[size:].reshape(count + 1, count)
        masked = np.where(allowed, moves, FORBIDDEN)
        emissions = here @ weights
        total, shares, steps, starts = _expected(packed, emissions, masked[:-1], masked[-1])
        scored = float((emissions * wanted).sum() + (seen_steps * moves[:-1]).sum() + (seen_starts * moves[-1]).sum())
        slope = there @ (shares - wanted)
        move_slope = np.where(allowed, np.vstack([steps - seen_steps, starts - seen_starts]), 0.0)
        gradient = np.concatenate([slope.ravel(), move_slope.ravel()]) + penalty * flat
        return total - scored + penalty / 2 * float(flat @ flat), gradient

    found = minimize(loss, np.zeros(size + (count + 1) * count), jac=True, method="L-BFGS-B", options={"maxiter": rounds}).x
    weights = np.zeros((features.shape[1], count))
    weights[used] = found[:size].reshape(len(used), count)
    moves = np.where(allowed, found[size:].reshape(count + 1, count), FORBIDDEN)
    return Crf(weights, moves[:-1], moves[-1])


def _seen(packed: _Packed, gold: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each tag follows each, and how often each comes first."""
    import numpy as np

    steps = np.zeros((count, count))
    for at in range(1, len(packed.counts)):
        some = packed.counts[at]
        before, now = packed.offsets[at - 1], packed.offsets[at]
        np.add.at(steps, (gold[before : before + some], gold[now : now + some]), 1.0)
    return steps, np.bincount(gold[: packed.counts[0]], minlength=count).astype(float)


def _expected(
    packed: _Packed, emissions: NDArray[np.float64], steps: NDArray[np.float64], starts: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The log of the partition function summed over sequences, and the expected tags of each token, steps and starts.

    The forward-backward algorithm, scaled to sum to one at every position (Rabiner 1989, section V.A).
    """
    import numpy as np

    peak = emissions.max(axis=1, keepdims=True)
    likely = np.exp(emissions - peak)
    moves, first = np.exp(steps), np.exp(starts)
    ahead = np.empty_like(likely)
    scale = np.empty(len(likely))
    for at, (count, offset) in enumerate(zip(packed.counts, packed.offsets, strict=False)):
        rows = slice(offset, offset + count)
        reach = first if at == 0 else ahead[packed.offsets[at - 1] : packed.offsets[at - 1] + count] @ moves
        now = reach * likely[rows]
        scale[rows] = now.sum(axis=1)
        ahead[rows] = now / scale[rows, None]
    back = np.ones_like(likely)
    expected = np.zeros_like(steps)
    for at in range(len(packed.counts) - 1, 0, -1):
        count = packed.counts[at]
        now = slice(packed.offsets[at], packed.offsets[at] + count)
        before = slice(packed.offsets[at - 1], packed.offsets[at - 1] + count)
        arriving = likely[now] * back[now] / scale[now, None]
        back[before] = arriving @ moves.T
        expected += ahead[before].T @ arriving
    shares = ahead * back
    total = float(np.log(scale).sum() + peak.sum())
    return total, shares, expected * moves, shares[: packed.counts[0]].sum(axis=0)
