"""Training rows for a search: some to learn from, others to score with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from baselines.prompts.optimise.search import MIN_COMPARED
from evals.task.example import Example

# Of the budget; so that several wordings can be scored on all of them.
HOLD_SHARE = 8
MAX_HOLD = 100


def parted(
    train: Sequence[Example], budget: int, seed: int, quoted: str = ""
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(learn, hold): rows to show and rows to score with, in a drawn order; rows of one group are on one side.

    Hold gets an eighth of the budget in rows, within `MIN_COMPARED` and `MAX_HOLD`, and never more than half of train.
    A row whose question stands in `quoted` (instructions that may show examples) would be too easy, and is not of them.
    Both are empty where train has too few rows for that.
    """
    wanted = min(max(budget // HOLD_SHARE, MIN_COMPARED), MAX_HOLD, len(train) // 2)
    groups: dict[tuple[bool, str], list[Example]] = {}
    for row in train:
        groups.setdefault((row.group is None, row.id if row.group is None else row.group), []).append(row)
    order = list(groups)
    random.Random(seed).shuffle(order)
    hold: list[Example] = []
    learn: list[Example] = []
    for name in order:
        # A group that is too large for what is missing goes to the other side whole.
        easy = any(row.text in quoted for row in groups[name])
        side = hold if len(hold) + len(groups[name]) <= wanted and not easy else learn
        side += groups[name]
    return (tuple(learn), tuple(hold)) if len(hold) >= MIN_COMPARED and learn else ((), ())
