"""Choosing a setting on training rows alone: folds that keep together what belongs together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from evals.records import content_hash
from evals.task.example import Example
from evals.task.splits import normalised_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 3
# Rows that a setting is chosen on: more cost minutes and change the choice little.
MOST_ROWS = 2000
MOST_VALUES = 200

Setting = TypeVar("Setting")


def clusters(examples: Sequence[Example]) -> list[str]:
    """The name of what each row must not be parted from: its group, else the rows that ask the same."""
    return [f"group {one.group}" if one.group else f"text {normalised_input(one)}" for one in examples]


def sample(clusters: Sequence[str], most: int = MOST_ROWS) -> list[int]:
    """Up to `most` rows, cluster by cluster in an order that their names alone decide: rows in any order give the same."""
    members: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(clusters):
        members[name].append(at)
    found = [at for name in sorted(members, key=content_hash) for at in members[name]]
    return sorted(found[:most])


def folds(values: Sequence[str], clusters: Sequence[str], count: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each row: whole clusters, each put where its most frequent value is rarest so far."""
    import numpy as np

    members: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(clusters):
        members[name].append(at)
    seen = [Counter[str]() for _ in range(count)]
    found = np.zeros(len(values), dtype=np.int64)
    # The largest first: what comes late must be able to even out what came before.
    for name in sorted(members, key=lambda one: (-len(members[one]), content_hash(one))):
        rows = members[name]
        usual = Counter(values[at] for at in rows).most_common(1)[0][0]
        here = min(range(count), key=lambda at: (seen[at][usual], seen[at].total(), at))
        seen[here].update(values[at] for at in rows)
        found[rows] = here
    return found


def choose(
    settings: Sequence[Setting],
    default: Setting,
    values: Sequence[str],
    clusters: Sequence[str],
    right: Callable[[Setting, NDArray[np.int64], NDArray[np.int64]], int],
) -> Setting:
    """The setting that is right about most held-out rows (ties: the first); `default` where no fold can be learnt from, or
    where the values are so many that learning over and over would take minutes (`MOST_VALUES`).

    `right(setting, learn, ask)` learns from some rows and counts those of the others that it is right about.
    """
    import numpy as np

    if len(set(values)) > MOST_VALUES:
        return default
    rows = np.asarray(sample(clusters))
    some = [values[at] for at in rows]
    place = folds(some, [clusters[at] for at in rows])
    total = dict.fromkeys(range(len(settings)), 0)
    learnt = False
    for number in range(FOLDS):
        learn, ask = rows[place != number], rows[place == number]
        if not len(ask) or len({values[at] for at in learn}) < 2:
            continue
        learnt = True
        for at, setting in enumerate(settings):
            total[at] += right(setting, learn, ask)
    return settings[max(total, key=lambda at: (total[at], -at))] if learnt else default
