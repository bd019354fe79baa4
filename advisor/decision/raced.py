"""The race on dev: how it is run, whoever asks the candidates, and what it came to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.statistics.race import Raced, race

# What the race may spend, in evaluations of the whole split; and how many candidates come through it.
ROUNDS = 6
COME_THROUGH = 4
# How likely it may be that the race calls the best candidate proven worse.
ALPHA = 0.05
# What everyone asks for first stays, whatever it scores.
REFERENCE = "zero_shot"

# Asks candidates (their places) about rows of the split (theirs): scores in [0, 1], (candidates, rows).
AskRows = Callable[[Sequence[int], Sequence[int]], NDArray[np.float64]]


@dataclass(frozen=True)
class Left:
    """A candidate that left after `items` of the split's items, with its mean on them.

    `why`: "proven" worse than the best, or by the "schedule", because the budget had no more for so many.
    """

    candidate: str
    kind: str
    items: int
    score: float
    why: str = "schedule"


@dataclass(frozen=True)
class Race:
    """`through` are the names of the candidates that are worth every item; `spent` counts answers.

    `equal`: the best in the race and those that cannot be told apart from it, on the `answered` items that it was seen on; empty
    where the best stands alone, and where there was no race.
    """

    through: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    items: int = 0
    spent: int = 0
    equal: tuple[str, ...] = ()
    answered: int = 0

    def sentence(self) -> str:
        many = len(self.left) + len(self.through)
        proven = sum(one.why == "proven" for one in self.left)
        lowest, equal = len(self.left) - proven, len(self.equal)
        parts = [
            f"{len(self.left)} of {many} ways to ask left the race on dev ({self.spent} answers instead of {self.items * many})",
            f"{proven} proven worse" if proven else "",
            f"{lowest} only as the lowest so far, to save answers" if lowest else "",
            f"{equal} cannot be told apart from the best of their race on {self.answered} items" if equal else "",
        ]
        return "; ".join(part for part in parts if part)

    def joined(self, other: Race) -> Race:
        """Two races on the same items, told as one. Only candidates of one race were told apart or not, so that each has its
        own best; the fewer items are named."""
        left = sorted((*self.left, *other.left), key=lambda one: one.items)
        seen = [one.answered for one in (self, other) if one.equal]
        return Race(
            (*self.through, *other.through),
            tuple(left),
            max(self.items, other.items),
            self.spent + other.spent,
            (*self.equal, *other.equal),
            min(seen, default=max(self.answered, other.answered)),
        )


def raced(
    names: Sequence[str],
    kinds: Sequence[str],
    tokens: Callable[[int], float],
    ask: AskRows,
    items: int,
    *,
    come_through: int = COME_THROUGH,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
) -> Race:
    """Race the candidates on a split of `items` rows, which are asked in an order that `seed` shuffles, whole `groups` at a time.

    `tokens`: what one answer of a candidate costs, asked after it has answered. Beside the `come_through` that come through,
    the last to leave of each other kind goes on, since the decision compares kinds, and so does plain zero-shot. There is no
    race where hardly any would leave, or where the budget would drop candidates unseen.
    """
    if len(names) <= come_through or ROUNDS * items < 3 * len(names):
        return Race(tuple(names), items=items)
    order = shuffled(items, seed, groups)
    found = race(
        lambda alive, start, stop: ask(alive, order[start:stop]),
        len(names),
        items,
        budget=ROUNDS * items,
        keep=come_through,
        alpha=ALPHA,
        groups=None if groups is None else [groups[at] for at in order],
        dear=tokens,
    )
    through = _through(names, kinds, found)
    left = [Left(names[one.candidate], kinds[one.candidate], one.items, one.mean, one.why) for one in found.left]
    return Race(
        tuple(names[at] for at in through),
        tuple(one for one in left if one.candidate not in {names[at] for at in through}),
        items,
        found.spent,
        tuple(names[at] for at in found.equal),
        found.items,
    )


def shuffled(items: int, seed: int, groups: Sequence[str | None] | None = None) -> list[int]:
    """The rows in a random order in which those of one group stand together."""
    together: dict[str | int, list[int]] = {}
    for at in range(items):
        group = groups[at] if groups is not None else None
        together.setdefault(at if group is None else group, []).append(at)
    clusters = list(together.values())
    random.Random(seed).shuffle(clusters)
    return [at for cluster in clusters for at in cluster]


def _through(names: Sequence[str], kinds: Sequence[str], found: Raced) -> list[int]:
    """Those that came through the race, then those that go on whatever they scored."""
    through = list(found.through)
    present = {kinds[at] for at in through}
    for one in reversed(found.left):
        kind = kinds[one.candidate]
        if names[one.candidate] == REFERENCE or kind not in present:
            through.append(one.candidate)
            present.add(kind)
    return through
