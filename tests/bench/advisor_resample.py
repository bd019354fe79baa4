"""The advisor on resampled items of what was measured: it races, buys and recommends as in a run, and no model is asked.

The measured items are the population, so that their means are the truth. A resample draws as many of them, with replacement, as a
team's dev split has. What was measured with the population's best pipeline or prompt (perfect search, retrieval on trained weights,
draws) stands for the same with whichever is best in the resample.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from advisor_measure import Measured

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from advisor.decision.advise import gathered
from advisor.decision.cost import cost_per_1k, net_utility, of_seconds
from advisor.decision.diagnosis import Diagnosis, diagnose
from advisor.decision.evidence import Evidence, Purchase, Trained
from advisor.decision.raced import Race, raced
from advisor.decision.recommend import Recommendation, recommend
from advisor.decision.rules import ON_TUNED, TUNED
from advisor.flow.baselines import PIPELINES
from evals.metrics.options import LIKENESS
from evals.scores import Score, Scores
from evals.statistics.paired import paired_difference
from evals.statistics.power import minimum_detectable_effect
from evals.task.spec import PricesSpec, TrafficSpec
from tests.advisor.planted import resampled, without_cause

DEV = 80
UNASKED = frozenset({"trivial", "no_llm"})
PROBES = {
    "knowledge": ("gold_passage", "irrelevant_passage"),
    "perfect_search": ("perfect_search",),
    "shots": ("shots_0", "shots_2", "shots_8", "shots_32"),
    "samples": ("sample_1", "sample_2", "sample_3", "sample_4", "sample_5"),
}


@dataclass(frozen=True)
class Circumstances:
    """What the task file says beside the data."""

    prices: PricesSpec = field(default_factory=PricesSpec)
    traffic: TrafficSpec | None = None
    target: float | None = None
    min_gain: float = 0.03


@dataclass(frozen=True)
class Outcome:
    """One resample: what was recommended, and what that was worth. Regret is to the best there is, in score (a training has to bring
    `min_gain` in it) and in money over the traffic (None where the task has no prices). `detectable`: the effect between the two
    that so many items show (80% power). Spent: answers of the model, and the rows that trainings passed over."""

    action: str
    candidate: str
    sure: bool
    regret: float
    net_regret: float | None
    detectable: float
    requests: int
    row_passes: int
    cause: str


class Population:
    """What was measured of a task, with the truth of every recommendation."""

    def __init__(self, measured: Measured, given: Circumstances) -> None:
        self.measured, self.given = measured, given
        named = {one.candidate: one for one in measured.arms}
        self.twins = {base: named[twin] for base, twin in measured.twins.items()}
        self.arms = [one for one in measured.arms if one not in self.twins.values()]
        self.n = len(measured.arms[0].items)
        self.full = next(one for one in measured.trained if one.full)
        self.truth = {one.candidate: one for one in measured.arms}
        self.truth[TUNED] = self.full.scores
        if self.full.retrieving:
            self.truth[ON_TUNED] = self.full.retrieving
        # Probes that ask, in part or in all, what an arm has asked: demonstrations in growing numbers, search that did not miss.
        # Draws that say the same were drawn each for itself.
        some = [one for one in measured.probes if one.candidate not in PROBES["samples"]]
        same = {one.candidate: max(self.arms, key=lambda arm: shared(one, arm)) for one in some}
        self.repeats = {one.candidate: same[one.candidate].candidate for one in some if shared(one, same[one.candidate]) > 0.5}

    @property
    def scores(self) -> list[Scores]:
        """All that was measured."""
        trained = [each for one in self.measured.trained for each in (one.scores, one.retrieving) if each]
        return [*self.measured.arms, *self.measured.probes, *trained]

    def points(self, candidate: str) -> float:
        """The score, less what training has to bring where it is trained."""
        trained = candidate in {TUNED, ON_TUNED}
        return self.truth[candidate].mean - (self.given.min_gain if trained else 0.0)

    def net(self, candidate: str) -> float | None:
        """Money over the stated traffic: worth of right answers less requests and training."""
        prices, scores = self.given.prices, self.truth[candidate]
        trained = candidate in {TUNED, ON_TUNED}
        fixed = of_seconds(self.full.seconds, prices) if trained else 0.0
        return net_utility(scores.mean, cost_per_1k(scores, prices).each, fixed, self.given.traffic, prices)

    def best(self) -> str:
        priced = self.net(TUNED) is not None
        return max(self.truth, key=lambda name: (self.net(name) or 0.0) if priced else self.points(name))

    def regret(self, candidate: str) -> tuple[float, float | None]:
        """In score; where money decides, the net regret as the score that is worth as much."""
        best = self.best()
        most, here = self.net(best), self.net(candidate)
        if most is None or here is None or self.given.traffic is None:
            return self.points(best) - self.points(candidate), None
        requests = self.given.traffic.requests_per_month * self.given.traffic.months
        return (most - here) / (requests * (self.given.prices.right_answer or 1.0)), most - here

    def detectable(self, candidate: str, n: int) -> float:
        """The effect between the best and this one that `n` items show with 80% power."""
        best = self.best()
        if best == candidate:
            return 1.0
        found = paired_difference(self.truth[best].values(), self.truth[candidate].values(), self.measured.groups)
        return minimum_detectable_effect(n, max(found.sd, 1e-3))

    def exhaustive(self, n: int) -> tuple[int, int]:
        """Answers and row passes of asking everything about n items, nothing twice."""
        asked = [one for one in self.scores if one.kind not in UNASKED]
        twice = sum(shared(one, self.truth[self.repeats[one.candidate]]) for one in asked if one.candidate in self.repeats)
        return round((len(asked) - twice) * n), sum(passes(one) for one in self.measured.trained)


def _same_request(a: Score, b: Score) -> bool:
    """As far as the records tell."""
    return (a.prompt_tokens, a.output_tokens, a.output) == (b.prompt_tokens, b.output_tokens, b.output)


def shared(a: Scores, b: Scores) -> float:
    """The share of items about which two candidates asked the same."""
    return sum(map(_same_request, a.items, b.items)) / len(a.items)


def passes(one: Trained) -> int:
    """Rows that a training goes over, about: three passes of all, four of a subset."""
    return round(one.rows * (3.75 if one.full else 4))


class Sample:
    """One draw of items, whole groups at a time where there are any, and the advisor on it."""

    def __init__(self, population: Population, seed: int, n: int = DEV) -> None:
        self.of, self.seed = population, seed
        drawn, self.groups = resampled(population.scores, population.measured.groups, np.random.default_rng(seed), n)
        self.drawn = {one.candidate: one for one in drawn}
        self.n = len(drawn[0].items)
        self.requests = 0
        self.row_passes = 0

    def taken(self, scores: Scores) -> Scores:
        return self.drawn[scores.candidate]

    def advised(self) -> tuple[Evidence, Recommendation]:
        evidence = gathered(self.first(), self.buy)
        return evidence, recommend(evidence)

    def first(self) -> Evidence:
        """The race, as `advisor/flow/baselines.py` runs it."""
        arms = [self.taken(one) for one in self.of.arms]
        unasked = [one for one in arms if one.kind in UNASKED]
        asking = [one for one in arms if one.kind not in UNASKED and one.kind != "rag"]
        pipelines = [one for one in arms if one.kind == "rag"]
        race = self._race(asking)
        if pipelines:
            race = race.joined(self._race(pipelines, PIPELINES))
        through = [one for one in (*asking, *pipelines) if one.candidate in race.through]
        # Who comes through, the last of its kind for one, answers all that it had not been asked.
        self.requests += self.n * len(through) + sum(one.items for one in race.left)
        twin = max((one for one in through if one.candidate in self.of.twins), key=lambda one: one.mean, default=None)
        if twin is not None:
            self.requests += self.n
            through.append(self.taken(self.of.twins[twin.candidate]))
        given, measured = self.of.given, self.of.measured
        return Evidence(
            arms=(*unasked, *through),
            train_rows=measured.plan.rows,
            groups=self.groups,
            min_gain=given.min_gain,
            target=given.target,
            prices=given.prices,
            traffic=given.traffic,
            plan=measured.plan,
            verifiable=measured.metric not in LIKENESS,
            left=race.left,
        )

    def _race(self, some: Sequence[Scores], come_through: int | None = None) -> Race:
        values = np.array([one.values() for one in some])
        more = {} if come_through is None else {"come_through": come_through}
        return raced(
            [one.candidate for one in some],
            [one.kind for one in some],
            lambda at: some[at].average("prompt_tokens") + some[at].average("output_tokens"),
            lambda alive, rows: values[np.ix_(alive, rows)],
            self.n,
            seed=self.seed,
            groups=self.groups,
            **more,
        )

    def buy(self, wanted: Purchase, evidence: Evidence) -> Evidence:
        if wanted.what == "training":
            one = self.of.measured.training(wanted)
            self.row_passes += passes(one)
            self.requests += self.n * (2 if one.retrieving else 1)
            taken = replace(
                one, scores=self.taken(one.scores), retrieving=self.taken(one.retrieving) if one.retrieving else None
            )
            return replace(evidence, trained=(*evidence.trained, taken))
        names = PROBES.get(wanted.what, ())
        found = [self.taken(one) for one in self.of.measured.probes if one.candidate in names]
        # The probe of obedience asks about every item, and changes no score.
        self.requests += self.n if wanted.what == "obedience" else sum(self._asked_anew(one, evidence) for one in found)
        return replace(evidence, probes=(*evidence.probes, *found))

    def _asked_anew(self, probe: Scores, evidence: Evidence) -> int:
        """Answers of a probe that the response cache does not have from the arm that asked the same."""
        same = self.of.repeats.get(probe.candidate)
        if same is None:
            return self.n
        cached = sum(map(_same_request, probe.items, self.drawn[same].items))
        raced = next((one.items for one in evidence.left if one.candidate == same), self.n)
        return self.n - round(cached * raced / self.n)

    def outcome(self) -> Outcome:
        evidence, found = self.advised()
        regret, net = self.of.regret(found.candidate)
        detectable = self.of.detectable(found.candidate, self.n)
        cause = diagnose(evidence.probes, evidence.arms, evidence.groups, evidence.min_gain).cause
        return Outcome(
            found.action, found.candidate, found.sure, regret, net, detectable, self.requests, self.row_passes, cause
        )


def renamed(measured: Measured) -> tuple[Measured, Mapping[str, str]]:
    """The same scores under other names, which sort the other way: what is recommended must be the same. `zero_shot`, which the
    race keeps, stays."""
    last = len(measured.arms)
    names = {one.candidate: f"way_{last - at:02}" for at, one in enumerate(measured.arms) if one.candidate != "zero_shot"}
    arms = tuple(replace(one, candidate=names.get(one.candidate, one.candidate)) for one in measured.arms)
    twins = {names[base]: names[twin] for base, twin in measured.twins.items()}
    return replace(measured, task="another", arms=arms, twins=twins), names


def with_equal_arms(measured: Measured) -> Measured:
    """The best unchanged arm once more, right on other items: two arms whose true means are the same."""
    best = max((one for one in measured.arms if one.kind not in {"trivial", "tuned"}), key=lambda one: one.mean)
    order = list(range(len(best.items)))
    random.Random(0).shuffle(order)
    items = tuple(replace(best.items[place], id=item.id) for place, item in zip(order, best.items, strict=True))
    twin = replace(best, candidate="another_as_good", items=items)
    return replace(measured, arms=(*measured.arms, twin))


def without_documents(measured: Measured) -> Measured:
    """The same task where nobody has documents: no pipeline, no best passage, no search to be mended, and trained weights are
    asked plainly."""
    return replace(
        measured,
        arms=tuple(one for one in measured.arms if one.kind != "rag" and one.candidate != "best_passage"),
        probes=tuple(one for one in measured.probes if one.candidate != "perfect_search"),
        trained=tuple(replace(one, retrieving=None) for one in measured.trained),
        recall={},
    )


def without_effects(measured: Measured, seed: int, n: int = DEV) -> Diagnosis:
    """A/A: on a draw of items the answers of probes and arms change places within each item, so that no cause is there."""
    chance = np.random.default_rng(seed)
    drawn, groups = resampled([*measured.probes, *measured.arms], measured.groups, chance, n)
    mixed = without_cause(drawn, chance)
    count = len(measured.probes)
    return diagnose(mixed[:count], mixed[count:], groups)


def loss_is_visible(population: Population, candidate: str, n: int) -> bool:
    """Whether the best beats it by twice what `n` items can show."""
    return population.regret(candidate)[0] >= 2 * population.detectable(candidate, n)
