"""Repair: of weights between the base and what was trained, which forget too little to matter and gain most? Pure.

An arm is measured twice on data that the final claim does not rest on: its gain on dev, its loss on one half of the general suite. Only
an arm of which "no greater loss than the margin" holds is ever chosen; of these the one with the largest gain. The best of several
measurements is measured too well: what is chosen is confirmed once, on the locked test and on items that chose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advisor.decision.compare import Comparison, signed, span_of
from evals.statistics.margin import NonInferiority

Answer = Literal["holds", "broken", "undecided"]
# So many arms are measured at most, the trained weights among them.
MOST = 6


@dataclass(frozen=True)
class Tried:
    """An arm: the mean of some trainings, `scale` of the way from the base, or their RegMean with the base on general texts of the weight
    `general` (0: none). `kl` is KL(base || arm) on general prompts, nats a token.

    `gain` is on dev, against the best unchanged weights; `forgetting` on the half of the suite. None where the arm was not measured.
    """

    name: str
    kind: str
    scale: float
    kl: float
    gain: Comparison | None = None
    forgetting: NonInferiority | None = None
    general: float = 0.0

    @property
    def measured(self) -> bool:
        return self.gain is not None and self.forgetting is not None

    @property
    def passes(self) -> bool:
        return self.forgetting is not None and self.forgetting.answer == "holds"


@dataclass(frozen=True)
class Choice:
    """`chosen` is an arm's name, or empty: then `answer` says whether all measured arms lose too much (`broken`), some are
    `undecided`, or one passes (`holds`) and gains nothing. `dominated` arms gain no more and lose no less than another one."""

    chosen: str
    answer: Answer
    sentence: str
    dominated: tuple[str, ...]


def next_arm(arms: Sequence[Tried], most: int = MOST) -> str | None:
    """The arm to be measured next; None where more would not change the choice, or `most` are.

    Arms of one line (the scales of some weights, or their RegMeans with the base) lose less as their KL falls: from one that fails the
    search goes to where the loss would be small enough, from the line's best that passes to its neighbours. RegMeans first: they keep
    more of a gain than a scale does.
    """
    by_kl = sorted(arms, key=lambda one: (-one.kl, one.name))
    known = [one for one in by_kl if one.measured]
    if len(known) >= min(most, len(by_kl)):
        return None
    if not known:
        return by_kl[0].name
    for line in _lines(arms):
        if name := _next_of(line, known[0]):
            return name
    if _best(by_kl) is not None:
        return None
    # The weakest fail too: KL does not tell all, and to train again would cost more than to look at the others.
    return next((one.name for one in reversed(by_kl) if not one.measured), None)


def _lines(arms: Sequence[Tried]) -> list[list[Tried]]:
    """Each line by falling KL, in the order in which their weights are named; of one's weights the RegMeans first."""
    kinds = dict.fromkeys(one.kind for one in arms)
    lines = [
        [one for one in arms if one.kind == kind and bool(one.general) == solved] for kind in kinds for solved in (True, False)
    ]
    return [sorted(line, key=lambda one: (-one.kl, one.name)) for line in lines if line]


def _next_of(line: Sequence[Tried], reference: Tried) -> str | None:
    """`reference` is a measured arm of another line, to start from."""
    best = _best(line)
    if best is None:
        last = max((at for at, one in enumerate(line) if one.measured), default=-1)
        if last == len(line) - 1:
            return None
        return line[_expected_to_pass(line, last, line[last] if last >= 0 else reference)].name
    here = line.index(best)
    return next((line[at].name for at in (here - 1, here + 1) if 0 <= at < len(line) and not line[at].measured), None)


def _expected_to_pass(line: Sequence[Tried], last: int, failed: Tried) -> int:
    """The next weaker arm than the `last` at least; the weakest where none is expected to pass.

    A small change of the weights moves answers in proportion to it and KL by its square, so that the loss goes with the root of KL
    (Pinsker's inequality bounds it so). It has to be smaller than the margin by the width of its own interval.
    """
    found = failed.forgetting
    allowed = found.margin - (found.estimate - found.low) if found else 0.0
    if found is None or found.estimate >= 0 or allowed <= 0:
        return last + 1
    kl = failed.kl * (allowed / -found.estimate) ** 2
    return next((at for at, one in enumerate(line) if at > last and one.kl <= kl), len(line) - 1)


def _best(arms: Sequence[Tried]) -> Tried | None:
    """Of those that pass, the one that gains most; of equals the one that says least else than the base."""
    passing = [(one.gain.difference, -one.kl, one) for one in arms if one.passes and one.gain is not None]
    return max(passing, key=lambda found: found[:2])[2] if passing else None


def choose(arms: Sequence[Tried]) -> Choice:
    """The largest gain whose loss is under the margin. Raises ValueError where nothing was measured."""
    measured = [one for one in arms if one.measured]
    if not measured:
        raise ValueError("no arm was measured")
    behind = tuple(one.name for one in measured if any(_dominates(other, one) for other in measured))
    best = _best(measured)
    if best is None:
        return _none_passes(measured, behind)
    if best.gain is None or best.gain.difference <= 0:
        return Choice("", "holds", f"{told(best)}: it passes, and gains nothing over unchanged weights.", behind)
    count = sum(one.passes for one in measured)
    why = f"the largest gain of the {count} measured arms that pass" if count > 1 else "the only measured arm that passes"
    return Choice(best.name, "holds", f"{told(best)}: {why}.", behind)


def _none_passes(measured: Sequence[Tried], behind: tuple[str, ...]) -> Choice:
    open_ones = [one for one in measured if one.forgetting is not None and one.forgetting.answer == "undecided"]
    if not open_ones:
        least = max(measured, key=lambda one: one.forgetting.estimate if one.forgetting else -1.0)
        return Choice(
            "", "broken", f"All {len(measured)} measured arms lose more than the margin; least of all {told(least)}.", behind
        )
    nearest = max(open_ones, key=lambda one: one.forgetting.low if one.forgetting else -1.0)
    more = nearest.forgetting.more_items if nearest.forgetting else None
    settle = f"; about {more} more items would settle it" if more else ""
    return Choice("", "undecided", f"No arm is shown to lose less than the margin; nearest {told(nearest)}{settle}.", behind)


def _dominates(one: Tried, other: Tried) -> bool:
    if one is other or one.gain is None or other.gain is None or one.forgetting is None or other.forgetting is None:
        return False
    mine = (one.gain.difference, one.forgetting.estimate)
    its = (other.gain.difference, other.forgetting.estimate)
    return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def told(one: Tried) -> str:
    """An arm's two measurements in words."""
    gain, lost = one.gain, one.forgetting
    if gain is None or lost is None:
        return f"{one.name} (KL {one.kl:.3f}), not measured"
    return (
        f"{one.name} gains {span_of(gain.difference, gain.low, gain.high, gain.n)} on dev and changes the general score by "
        f"{signed(lost.estimate)} points (one-sided 95% bounds {signed(lost.low)} to {signed(lost.high)}, n = {lost.n})"
    )


def kept(before: Tried, chosen: Tried) -> tuple[float | None, float | None]:
    """The share of the loss that is won back and the share of the gain that is kept; None where there was none."""
    if before.gain is None or chosen.gain is None or before.forgetting is None or chosen.forgetting is None:
        return None, None
    lost = -before.forgetting.estimate
    won = (chosen.forgetting.estimate - before.forgetting.estimate) / lost if lost > 0 else None
    gain = chosen.gain.difference / before.gain.difference if before.gain.difference > 0 else None
    return won, gain


@dataclass(frozen=True)
class Offer:
    """A training that may forget less: what it sets otherwise, why, and what it would take. `done` once it is trained."""

    name: str
    overrides: dict[str, Any]
    why: str
    seconds: float
    money: float | None
    done: bool = False

    def sentence(self) -> str:
        told = ", ".join(f"`{key}: {value:g}`" for key, value in self.overrides.items())
        price = "" if self.money is None else f", {self.money:.2g} in money"
        state = "trained" if self.done else f"about {self.seconds / 60:.1f} minutes of training{price}"
        return f"{told}: {self.why} ({state})."


def next_offer(offers: Sequence[Offer]) -> Offer | None:
    """The first that was not trained yet."""
    return next((one for one in offers if not one.done), None)


@dataclass(frozen=True)
class Repair:
    """What became of trained weights that may have forgotten too much.

    `whole` is their own answer on all pooled items of `suite`. Where it holds, nothing was tried. `choice` is made among `arms` on
    the items of one half; None where that half could not carry the margin. `weights` is the folder (in the run's) of what is used
    from here on in the place of the trained weights (`trained` is the hash of their files), or empty. `confirm` names the suite that
    the chosen weights are confirmed on: items that chose nothing. `won_back` and `kept` are shares of the loss and of the gain, as
    measured where they were chosen.
    """

    suite: str
    whole: NonInferiority
    sentence: str
    trained: str = ""
    arms: tuple[Tried, ...] = ()
    choice: Choice | None = None
    weights: str = ""
    confirm: str = ""
    won_back: float | None = None
    kept: float | None = None
    offers: tuple[Offer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> bool:
        return self.whole.answer != "holds"

    @property
    def chosen(self) -> str:
        return self.choice.chosen if self.choice else ""
