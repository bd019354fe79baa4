"""The evidence laid side by side: who is best of its kind, every comparison that a rule may rest on, what a gain must be to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.decision.compare import Comparison, adjusted, compare
from advisor.decision.cost import cheapness, cost_per_1k
from advisor.decision.diagnosis import Diagnosis, diagnose
from advisor.decision.evidence import Evidence, Trained
from advisor.decision.gain import Gain, foreseen_gain, measured_gain
from advisor.decision.learning_curve import Forecast, forecast, more_rows
from advisor.decision.pays import gain_that_pays
from evals.scores import Scores
from evals.task.spec import PricesSpec

# Kinds that bring a part of their own to be built and kept running: an index, functions.
NEEDS_MORE = {"rag": "retrieval", "tools": "tools"}

LEARNT = "best against trivial"
DEARER = "dearer against plain"
GAIN = "tuned against best"
GAIN_ON_TRIVIAL = "tuned against trivial"


@dataclass(frozen=True)
class Weighed:
    """`best` of all unchanged candidates, `plain` of those without retrieval or tools, `trivial` of the trivial ones.

    `tuned` are the answers of the full training, where it was bought, with retrieved passages where so they are better
    (`retrieves`); `forecast` what smaller trainings foresee, where it was not. `comparisons` are adjusted together (Holm), and
    `index` says which is which. A gain of `pays` is the least that training must bring.
    """

    evidence: Evidence
    best: Scores
    plain: Scores
    trivial: Scores
    full: Trained | None
    tuned: Scores | None
    retrieves: bool
    forecast: Forecast | None
    pays: float
    comparisons: tuple[Comparison, ...]
    index: Mapping[str, int]
    diagnosis: Diagnosis

    def named(self, name: str) -> Comparison | None:
        at = self.index.get(name)
        return None if at is None else self.comparisons[at]

    def comparison(self, name: str) -> Comparison:
        return self.comparisons[self.index[name]]

    @property
    def gain(self) -> Gain | None:
        """Of trained weights on the best candidate with unchanged ones; None where no training was bought."""
        measured = self.named(GAIN)
        if measured is not None:
            return measured_gain(measured, self.pays)
        return foreseen_gain(self.forecast) if self.forecast else None

    @property
    def more_rows(self) -> int | None:
        """How many training rows would likely pay where those at hand do not; None where the curve does not say, and where it
        has one size only, which says nothing of a slope."""
        if len({one.rows for one in self.evidence.trained}) < 2:
            return None
        points = [_asked(one, retrieves=self.retrieves) for one in self.evidence.trained]
        return more_rows(points, self.best, self.evidence.train_rows, self.pays, self.evidence.groups)

    @property
    def can_pay(self) -> bool:
        """Whether even a perfect answer to everything would pay for a training."""
        return self.best.mean + self.pays <= 1


def weigh(evidence: Evidence) -> Weighed:
    """The best unchanged candidate is chosen on the items that it is compared on, which flatters it: a bias against training,
    the dearer claim. Against what is simpler, where the bias would be for it, its p-value counts all that could have been best."""
    trivial = best_of([arm for arm in evidence.arms if arm.kind == "trivial"], evidence)
    real = [arm for arm in evidence.arms if arm.kind != "trivial"]
    best = best_of(real, evidence) if real else trivial
    light = [arm for arm in real if arm.kind not in NEEDS_MORE]
    plain = best_of(light, evidence) if light else trivial
    full = next((one for one in evidence.trained if one.full), None)
    retrieves = _retrieves(evidence.trained)
    tuned = _asked(full, retrieves=retrieves).scores if full else None
    pays = gain_that_pays(evidence, best)
    pairs = {LEARNT: (best, trivial)}
    if tuned:
        pairs |= {GAIN: (tuned, best), GAIN_ON_TRIVIAL: (tuned, trivial)}
    if best.kind in NEEDS_MORE:
        pairs[DEARER] = (best, plain)
    # How many could have been the first of a pair: the best of many beats anything by luck.
    chosen_among = {LEARNT: len(real), DEARER: len(real) - len(light)}
    made = [_chosen(compare(a, b, evidence.groups), chosen_among.get(name, 1)) for name, (a, b) in pairs.items()]
    comparisons = adjusted(made)
    foreseen = None
    if not tuned and evidence.trained:
        points = [_asked(one, retrieves=retrieves) for one in evidence.trained]
        foreseen = forecast(points, best, evidence.train_rows, pays, evidence.groups)
    return Weighed(
        evidence,
        best,
        plain,
        trivial,
        full,
        tuned,
        retrieves,
        foreseen,
        pays,
        tuple(comparisons),
        {name: at for at, name in enumerate(pairs)},
        diagnose(evidence.probes, evidence.arms, evidence.groups, evidence.min_gain),
    )


def _chosen(one: Comparison, among: int) -> Comparison:
    """With the p-value of the best of so many, each of which could have been it (Bonferroni); the interval stays that of the pair."""
    return replace(one, p=min(1.0, one.p * max(1, among)))


def best_of(arms: Sequence[Scores], evidence: Evidence) -> Scores:
    """The most worth a request; of equals the cheapest."""
    return min(
        arms, key=lambda arm: (-round(worth(arm, evidence.prices), 9), *cheapness(arm, evidence.prices, served=evidence.served))
    )


def worth(arm: Scores, prices: PricesSpec) -> float:
    """The score, less what a request costs in right answers, where the task file says what one is worth."""
    cost = cost_per_1k(arm, prices).each
    return arm.mean - (cost / prices.right_answer if cost and prices.right_answer else 0.0)


def _retrieves(trained: Sequence[Trained]) -> bool:
    """Whether the weights of the largest training answer better with retrieved passages."""
    some = [one for one in trained if one.retrieving]
    if not some:
        return False
    largest = max(some, key=lambda one: (one.full, one.rows))
    return largest.retrieving is not None and largest.retrieving.mean > largest.scores.mean


def _asked(one: Trained, *, retrieves: bool) -> Trained:
    return replace(one, scores=one.retrieving) if retrieves and one.retrieving else one
