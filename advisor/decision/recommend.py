"""The recommendation: few named rules over measured evidence. Nothing here looks at what the task is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from advisor.decision.compare import Comparison, adjusted, compare, signed, span_of
from advisor.decision.cost import cheapness
from advisor.decision.diagnosis import Effect, diagnose
from evals.scores import Scores
from evals.statistics.paired import mean_interval
from evals.statistics.power import minimum_detectable_effect, required_n
from evals.task.spec import PricesSpec

Action = Literal[
    "prompt", "optimised_prompt", "no_llm", "tools", "rag", "fine_tune", "rag_on_tuned", "collect_data", "undecided"
]
# The action, and the name of the candidate: retrieval that asks the trained weights.
ON_TUNED: Literal["rag_on_tuned"] = "rag_on_tuned"
ACTION_OF_KIND: dict[str, Action] = {
    "prompt": "prompt",
    "optimised": "optimised_prompt",
    "no_llm": "no_llm",
    "tools": "tools",
    "rag": "rag",
    "trivial": "no_llm",
}
# Kinds that bring a part of their own to be built and kept running: an index, functions.
NEEDS_MORE = {"rag": "retrieval", "tools": "tools"}
TRAINING_ACTIONS = frozenset({"fine_tune", "fine_tune_with_context", "rag_on_tuned", "preference", "reinforcement"})


@dataclass(frozen=True)
class Evidence:
    """All that was measured on dev: arms with unchanged weights, and the probe, a short training run on part of the rows.

    `groups` names each item's cluster (None: every item is its own); `probes` hold what the diagnosis rests on. `target` is
    the score that is good enough, `min_gain` the gain that training must bring. `probe_retrieves` where the trained weights
    were asked with retrieved passages, since so they answer best; `retrieval` tells in sentences what retrieval finds.
    `served`: the weights are on a server, so that training could not be probed.
    """

    arms: tuple[Scores, ...]
    probe: Scores | None
    probe_rows: int
    train_rows: int
    groups: tuple[str, ...] | None
    min_gain: float
    target: float | None
    prices: PricesSpec
    probes: tuple[Scores, ...] = ()
    retrieval: tuple[str, ...] = ()
    spent: dict[str, float] = field(default_factory=dict)
    served: bool = False
    probe_retrieves: bool = False


@dataclass(frozen=True)
class Reason:
    """`comparison` is the index of the comparison that the sentence rests on, or None."""

    rule: str
    sentence: str
    comparison: int | None = None


@dataclass(frozen=True)
class Recommendation:
    action: Action
    candidate: str
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]
    spent: dict[str, float]
    would_change: tuple[str, ...]
    cannot_tell: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        return self.action in TRAINING_ACTIONS


def span(one: Comparison) -> str:
    return span_of(one.difference, one.low, one.high, one.n)


def recommend(evidence: Evidence) -> Recommendation:
    """Rules in order, the first that holds decides:

    1. target reached: the cheapest arm whose lower bound reaches the target;
    2. training pays: the probe beats the best arm by at least the smallest gain that counts;
    3. nothing learnt: neither an arm nor the probe beats the trivial arms (undecided where the model is served, and
       training could not be tried);
    4. training does not pay: the probe's upper bound stays under the gain that counts, and the best arm is the answer
       (retrieval or tools only where they are shown to beat the best arm without them);
    5. else undecided, with the number of items that would settle it.

    The best arm is chosen by the same items that it is compared on, which flatters it: a bias against training,
    the dearer claim. Holm's adjustment runs over all comparisons made.
    """
    trivial = [arm for arm in evidence.arms if arm.kind == "trivial"]
    real = [arm for arm in evidence.arms if arm.kind != "trivial"]
    best_trivial = _best(trivial, evidence)
    best = _best(real or trivial, evidence)
    others = [arm for arm in real if arm.kind not in NEEDS_MORE]
    best_plain = _best(others or trivial, evidence)

    pairs: dict[str, tuple[Scores, Scores]] = {"best against trivial": (best, best_trivial)}
    if evidence.probe:
        pairs["probe against best"] = (evidence.probe, best)
        pairs["probe against trivial"] = (evidence.probe, best_trivial)
    if best.kind in NEEDS_MORE:
        pairs["dearer against plain"] = (best, best_plain)
    comparisons = adjusted([compare(a, b, evidence.groups) for a, b in pairs.values()])
    index = {name: number for number, name in enumerate(pairs)}
    named = {name: comparisons[number] for name, number in index.items()}

    chosen = _target_reached(evidence)
    if chosen is not None:
        action, candidate, reasons = chosen
    else:
        action, candidate, reasons = _by_comparison(evidence, best, best_trivial, best_plain, named, index)
    return Recommendation(
        action,
        candidate,
        (
            *reasons,
            *(Reason("diagnosis", one.sentence) for one in _diagnosed(evidence)),
            *(Reason("retrieval", one) for one in evidence.retrieval),
        ),
        tuple(comparisons),
        dict(evidence.spent),
        tuple(_would_change(evidence, action, best, named)),
        tuple(_cannot_tell(evidence, best, best_trivial)),
    )


def _diagnosed(evidence: Evidence) -> list[Effect]:
    """The effects, but for those that the sentences on retrieval tell."""
    effects = diagnose(evidence.probes, evidence.arms, evidence.groups)
    return [one for one in effects if not (evidence.retrieval and one.name in {"knowledge", "retrieval_loss"})]


def _best(arms: Sequence[Scores], evidence: Evidence) -> Scores:
    """The highest mean; of equals the cheapest."""
    return min(arms, key=lambda arm: (-round(arm.mean, 9), *cheapness(arm, evidence.prices, served=evidence.served)))


def _target_reached(evidence: Evidence) -> tuple[Action, str, list[Reason]] | None:
    if evidence.target is None:
        return None
    bounds = {arm.candidate: mean_interval(arm.values(), evidence.groups) for arm in evidence.arms}
    enough = [arm for arm in evidence.arms if bounds[arm.candidate].low >= evidence.target]
    if not enough:
        return None
    arm = min(enough, key=lambda one: cheapness(one, evidence.prices, served=evidence.served))
    bound = bounds[arm.candidate]
    sentence = (
        f"{arm.candidate} scores {arm.mean:.3f} on dev (95% interval {bound.low:.3f} to {bound.high:.3f}): even the lower "
        f"bound reaches the target of {evidence.target:g}, and no cheaper candidate's does. More is not needed."
    )
    return ACTION_OF_KIND[arm.kind], arm.candidate, [Reason("target_reached", sentence)]


def _by_comparison(
    evidence: Evidence,
    best: Scores,
    best_trivial: Scores,
    best_plain: Scores,
    named: dict[str, Comparison],
    index: dict[str, int],
) -> tuple[Action, str, list[Reason]]:
    gain = named.get("probe against best")
    part = f"a probe trained on {evidence.probe_rows} of {evidence.train_rows} rows"
    part += " and asked with retrieved passages" if evidence.probe_retrieves else ""
    learnt = named["best against trivial"]
    if gain and gain.better and gain.difference >= evidence.min_gain and named["probe against trivial"].better:
        sentence = (
            f"{part} beats the best candidate with unchanged weights ({best.candidate}, {best.mean:.3f}) "
            f"by {span(gain)}; at least {signed(evidence.min_gain)} was asked."
        )
        reasons = [Reason("training_pays", sentence, index["probe against best"])]
        return (ON_TUNED, ON_TUNED, reasons) if evidence.probe_retrieves else ("fine_tune", "tuned", reasons)
    probe_learnt = named.get("probe against trivial")
    if not learnt.better and evidence.served:
        sentence = (
            f"the best candidate ({best.candidate}) is not shown to beat the trivial arm {best_trivial.candidate} "
            f"({best_trivial.mean:.3f}): {span(learnt)}. Whether training would is untested, since the model is served."
        )
        return "undecided", best_trivial.candidate, [Reason("undecided", sentence, index["best against trivial"])]
    if not learnt.better and not (probe_learnt and probe_learnt.better):
        sentence = (
            f"neither the best candidate ({best.candidate}) nor training is shown to beat the trivial arm "
            f"{best_trivial.candidate} ({best_trivial.mean:.3f}): {span(learnt)}. The inputs, documents or targets do not "
            "hold what is asked, or the model cannot learn it from them."
        )
        return (
            "collect_data",
            best_trivial.candidate,
            [Reason("nothing_learnt", sentence, index["best against trivial"])],
        )
    if gain is None or gain.high < evidence.min_gain:
        return _unchanged_weights(evidence, best, best_plain, gain, part, named, index)
    n = required_n(max(abs(gain.difference), evidence.min_gain), _spread(gain))
    more = max(n - gain.n, gain.n // 2)
    sentence = (
        f"{part} differs from the best candidate with unchanged weights ({best.candidate}, {best.mean:.3f}) by {span(gain)}: "
        f"a gain of {signed(evidence.min_gain)} is neither shown nor ruled out. Inconclusive: about {more} more dev items "
        "(or a probe on all rows) would settle it."
    )
    return "undecided", best.candidate, [Reason("undecided", sentence, index["probe against best"])]


def _unchanged_weights(
    evidence: Evidence,
    best: Scores,
    best_plain: Scores,
    gain: Comparison | None,
    part: str,
    named: dict[str, Comparison],
    index: dict[str, int],
) -> tuple[Action, str, list[Reason]]:
    reasons = []
    chosen = best
    needed = named.get("dearer against plain")
    if needed:
        against = f"the best candidate without retrieval or tools ({best_plain.candidate}, {best_plain.mean:.3f})"
        if needed.better:
            sentence = f"{best.candidate} ({best.mean:.3f}) beats {against} by {span(needed)}."
        else:
            chosen = best_plain
            sentence = f"{best.candidate} is not shown to beat {against}: {span(needed)}. The simpler one is preferred."
        reasons.append(Reason(NEEDS_MORE[best.kind], sentence, index["dearer against plain"]))
    if gain:
        sentence = (
            f"{part} differs from {best.candidate} ({best.mean:.3f}) by {span(gain)}: "
            f"a gain of {signed(evidence.min_gain)} is ruled out at that size of training."
        )
        reasons.append(Reason("training_does_not_pay", sentence, index["probe against best"]))
    learnt = named["best against trivial"]
    reasons.append(
        Reason(
            "best_unchanged",
            f"{chosen.candidate} scores {chosen.mean:.3f} on dev, the best of its kind; "
            f"{best.candidate} against the best trivial arm: {span(learnt)}.",
            index["best against trivial"],
        )
    )
    return ACTION_OF_KIND[chosen.kind], chosen.candidate, reasons


def _spread(one: Comparison) -> float:
    """Standard deviation of the per-item differences, from the interval's width (half width = 1.96 sd / sqrt n)."""
    return max((one.high - one.low) / (2 * 1.96) * math.sqrt(one.n), 1e-3)


def _would_change(evidence: Evidence, action: Action, best: Scores, named: dict[str, Comparison]) -> list[str]:
    said = []
    gain = named.get("probe against best")
    if action in TRAINING_ACTIONS:
        said.append(
            f"a prompt, retrieval or classifier that scores above {evidence.probe.mean:.3f} on dev" if evidence.probe else ""
        )
        said.append("forgetting above the gate's margin, which only the measurement after training can tell")
        if evidence.target is None:
            said.append("a `target:` that an unchanged model already reaches")
    elif gain is not None:
        said.append(
            f"training on more than {evidence.train_rows} rows, or with more steps than the probe's: "
            f"it would have to gain {signed(evidence.min_gain - gain.difference)} points on what the probe reached"
        )
    elif evidence.served:
        said.append("a training probe, once the weights are named (`model: {engine: hf, model_name_or_path: …}`)")
    else:
        said.append("a target above what the recommended candidate reaches: then training would be probed")
    if action in {"collect_data", "undecided"}:
        said.append("more labelled rows, a bigger base model, or documents that hold the answers")
    return [one for one in said if one]


def _cannot_tell(evidence: Evidence, best: Scores, trivial: Scores) -> list[str]:
    """What this evidence cannot carry, said before anything else."""
    n = len(best.items)
    mde = minimum_detectable_effect(n)
    said = [f"with {n} dev items, a difference under about {100 * mde:.0f} points can hardly be seen (power 80%)"]
    if n < 30:
        said.insert(0, f"{n} dev items carry hardly any claim: every sentence below is weak")
    if not any(one.candidate == "gold_passage" for one in evidence.probes):
        said.append("knowledge untested: not every dev row has a gold passage")
    skipped = [f"{arm.candidate} {arm.skipped}" for arm in evidence.arms if arm.skipped]
    if skipped:
        said.append(f"items without an answer score 0: {', '.join(skipped)}")
    if evidence.served:
        said.append(
            "training is untested: the model is served, and its weights are not here. Name them to have it probed: "
            "`model: {engine: hf, model_name_or_path: …}`"
        )
    elif evidence.probe is None:
        said.append("training was not probed: a cheaper candidate reaches the target")
    return said
