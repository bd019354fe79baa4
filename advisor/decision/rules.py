"""The rules that turn weighed evidence into a recommendation. The first that holds decides; each is cited by its name.

None of them looks at what the task is about or what a candidate is called. "Shown" means a 95% interval that excludes the
alternative, adjusted (Holm) over all comparisons made. Where nothing is shown, what decides is the score that is expected to
be given away: under `TOLERANCE` a decision is made and said to be unsure, above it the answer is "undecided".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from advisor.decision.compare import Comparison, compare, signed, span_of
from advisor.decision.cost import cheapness
from advisor.decision.evidence import Evidence
from advisor.decision.gain import Gain, less_luck, measured_gain
from advisor.decision.learning_curve import GO
from advisor.decision.weighed import DEARER, GAIN, GAIN_ON_TRIVIAL, LEARNT, NEEDS_MORE, Weighed
from evals.scores import Scores
from evals.statistics.paired import FEW_ITEMS, mean_interval, wilson_interval
from evals.statistics.power import required_n

Action = Literal[
    "prompt",
    "optimised_prompt",
    "no_llm",
    "tools",
    "rag",
    "fine_tune",
    "fine_tune_with_context",
    "rag_on_tuned",
    "preference",
    "reinforcement",
    "collect_data",
    "bigger_model",
    "undecided",
]
ACTION_OF_KIND: dict[str, Action] = {
    "prompt": "prompt",
    "optimised": "optimised_prompt",
    "no_llm": "no_llm",
    "tools": "tools",
    "rag": "rag",
    "trivial": "no_llm",
}
# The action, and the name of the candidate: retrieval that asks the trained weights.
ON_TUNED: Literal["rag_on_tuned"] = "rag_on_tuned"
TUNED = "tuned"
# Score that may be given away, in expectation, by deciding now. Chosen on the benchmark of the advisor.
TOLERANCE = 0.015
# A difference that nobody would change a system for.
A_POINT = 0.01
# Under so many independent items nothing is decided by scores.
FEWEST_ITEMS = 10
# A gain this likely to be above 0 need not be shown twice over to be tried.
LIKELY = 0.95
MORE_LIKELY_THAN_NOT = 0.8
FEWEST_PAIRS = 64


@dataclass(frozen=True)
class Reason:
    """`comparison` is the index of the comparison that the sentence rests on, or None."""

    rule: str
    sentence: str
    comparison: int | None = None


@dataclass(frozen=True)
class Decision:
    """`sure`: what was measured leaves no other measured way a likely advantage of more than `A_POINT`."""

    action: Action
    candidate: str
    reasons: tuple[Reason, ...]
    sure: bool = False


def decide(weighed: Weighed) -> Decision:
    for rule in RULES:
        found = rule(weighed)
        if found is not None:
            return replace(found, sure=found.sure and (clusters(weighed.evidence) >= FEW_ITEMS or rule is target_reached))
    raise AssertionError("the last rule always decides")


def target_reached(weighed: Weighed) -> Decision | None:
    """The cheapest candidate whose lower bound reaches the target is the answer, whatever else scores higher."""
    evidence = weighed.evidence
    enough = reaching(evidence)
    if not enough:
        return None
    arm = min(enough, key=lambda one: cheapness(one, evidence.prices, served=evidence.served))
    bound = mean_interval(arm.values(), evidence.groups)
    sentence = (
        f"{arm.candidate} scores {arm.mean:.3f} on dev (95% interval {bound.low:.3f} to {bound.high:.3f}): even the lower "
        f"bound reaches the target of {evidence.target:g}, and no cheaper candidate's does. More is not needed."
    )
    return Decision(ACTION_OF_KIND[arm.kind], arm.candidate, (Reason("target_reached", sentence),), sure=True)


def too_few_items(weighed: Weighed) -> Decision | None:
    """A handful of items says nothing, however the scores on them look."""
    n = clusters(weighed.evidence)
    if n >= FEWEST_ITEMS:
        return None
    sentence = (
        f"{n} independent dev items say nothing about which way is better, whatever the scores on them: at least "
        f"{FEWEST_ITEMS} are needed to say anything, and {FEW_ITEMS} or more to say it with a usable interval."
    )
    return Decision("undecided", weighed.best.candidate, (Reason("too_few_items", sentence),))


def training_pays(weighed: Weighed) -> Decision | None:
    """The weights that would be used were trained and asked, and beat the best unchanged candidate by what pays."""
    gain, learnt = weighed.gain, weighed.named(GAIN_ON_TRIVIAL)
    if gain is None or learnt is None or not (gain.better and gain.estimate >= gain.pays and learnt.better):
        return None
    sentence = f"{_trained(weighed)} beats {_best(weighed)} by {_span(weighed, GAIN)}; {_asked(weighed)}."
    return _training(weighed, Reason("training_pays", sentence, weighed.index[GAIN]))


def training_likely_pays(weighed: Weighed) -> Decision | None:
    """It is likelier than not that training pays, though not shown: the training and the locked test are the proof."""
    gain = weighed.gain
    if gain is None or gain.chance_above(0) < (LIKELY if gain.measured else GO):
        return None
    chance = weighed.forecast.chance if weighed.forecast else gain.chance_above(gain.pays)
    if chance <= GO:
        return None
    if weighed.forecast:
        sentence = f"{weighed.forecast.sentence()} The training and the locked test are the proof."
        return _training(weighed, Reason("training_likely_pays", sentence))
    sentence = (
        f"{_trained(weighed)} differs from {_best(weighed)} by {_span(weighed, GAIN)}; {_asked(weighed)}. The chance that it "
        f"pays is {chance:.0%}: likely, not shown. The locked test and the gate decide."
    )
    return _training(weighed, Reason("training_likely_pays", sentence, weighed.index[GAIN]))


def nothing_learnt(weighed: Weighed) -> Decision | None:
    """Neither an unchanged candidate nor training is shown to beat an arm that has learnt nothing."""
    learnt, tuned = weighed.comparison(LEARNT), weighed.named(GAIN_ON_TRIVIAL)
    if learnt.better or (tuned is not None and tuned.better):
        return None
    asked = [one for one in (learnt, tuned) if one is not None]
    among = sum(arm.kind != "trivial" for arm in weighed.evidence.arms)
    gains = [less_luck(measured_gain(learnt, weighed.evidence.min_gain), among)]
    gains += [measured_gain(tuned, weighed.evidence.min_gain)] if tuned is not None else []
    trivial = f"the trivial arm {weighed.trivial.candidate} ({weighed.trivial.mean:.3f})"
    said = f"the best candidate ({weighed.best.candidate}) is not shown to beat {trivial}: {_span(weighed, LEARNT)}"
    if tuned is not None:
        said += f"; nor is {_trained(weighed)}: {_span(weighed, GAIN_ON_TRIVIAL)}"
    tried = tuned is not None or (weighed.forecast is not None and weighed.forecast.answer == "stop") or not weighed.can_pay
    if not tried:
        why = "the model is served" if weighed.evidence.served else "it was not measured on all rows"
        sentence = f"{said}. Whether training would is untested, since {why}."
        return Decision("undecided", weighed.trivial.candidate, (Reason("undecided", sentence, weighed.index[LEARNT]),))
    if max(one.regret_without for one in gains) > weighed.evidence.min_gain:
        sentence = (
            f"{said}. Inconclusive: about {_more(asked, weighed)} more dev items would settle whether anything was learnt."
        )
        return Decision("undecided", weighed.trivial.candidate, (Reason("undecided", sentence, weighed.index[LEARNT]),))
    sentence = (
        f"{said}. The inputs, documents or targets do not hold what is asked, or the model cannot learn it from "
        f"{weighed.evidence.train_rows} rows."
    )
    sure = all(one.high < one.pays for one in gains)
    return Decision(
        "collect_data", weighed.trivial.candidate, (Reason("nothing_learnt", sentence, weighed.index[LEARNT]),), sure=sure
    )


def target_needs_more(weighed: Weighed) -> Decision | None:
    """A target that no measured way reaches, and one that was not measured of which the probes say that it has room."""
    target = weighed.evidence.target
    if target is None or max(one.mean for one in _measured(weighed)) >= target:
        return None
    for way in (_reinforcement, _preference, _with_context, _more_rows, _bigger_model):
        found = way(weighed, target)
        if found is not None:
            return found
    return None


def undecided(weighed: Weighed) -> Decision | None:
    """Whether training pays is neither shown nor ruled out, and leaving it is expected to give away more than the tolerance."""
    gain = weighed.gain
    if gain is None or gain.high < gain.pays or gain.regret_without <= TOLERANCE:
        return None
    if weighed.forecast:
        sentence = (
            f"{weighed.forecast.sentence()} Inconclusive: training on all {weighed.evidence.train_rows} rows would settle it."
        )
        return Decision("undecided", weighed.best.candidate, (Reason("undecided", sentence),))
    one = weighed.comparison(GAIN)
    sentence = (
        f"{_trained(weighed)} differs from {_best(weighed)} by {_span(weighed, GAIN)}: a gain of {signed(gain.pays)} is neither "
        f"shown nor ruled out. Inconclusive: about {_more([one], weighed)} more dev items would settle it."
    )
    return Decision("undecided", weighed.best.candidate, (Reason("undecided", sentence, weighed.index[GAIN]),))


def best_unchanged(weighed: Weighed) -> Decision:
    """The best candidate with unchanged weights; retrieval or tools only where they are worth their keep."""
    chosen, reasons = _worth_its_keep(weighed)
    gain = weighed.gain
    if gain is not None:
        reasons.append(_does_not_pay(weighed, gain))
    elif not weighed.can_pay:
        sentence = (
            f"training would have to gain {signed(weighed.pays)} points to pay, and "
            f"{weighed.best.candidate} leaves {signed(1 - weighed.best.mean)}: it was not tried."
        )
        reasons.append(Reason("training_cannot_pay", sentence))
    if weighed.evidence.target is not None:
        sentence = f"no measured candidate is shown to reach the target of {weighed.evidence.target:g}."
        reasons.append(Reason("target_missed", sentence))
    told = f"{chosen.candidate} scores {chosen.mean:.3f} on dev, the best of its kind; "
    told += f"{weighed.best.candidate} against the best trivial arm: {_span(weighed, LEARNT)}."
    reasons.append(Reason("best_unchanged", told + _alike(weighed, chosen), weighed.index[LEARNT]))
    return Decision(ACTION_OF_KIND[chosen.kind], chosen.candidate, tuple(reasons), sure=_sure(weighed, chosen))


RULES: tuple[Callable[[Weighed], Decision | None], ...] = (
    target_reached,
    too_few_items,
    training_pays,
    training_likely_pays,
    nothing_learnt,
    target_needs_more,
    undecided,
    best_unchanged,
)


# What a target that is out of reach may ask for.


def _reinforcement(weighed: Weighed, target: float) -> Decision | None:
    effect = weighed.diagnosis.named("headroom")
    if effect is None or not weighed.evidence.verifiable or effect.low < weighed.pays:
        return None
    sentence = (
        f"{effect.sentence} A program decides whether an answer is right, so what samples find now and then can be reinforced. "
        f"Untested: the target of {target:g} is not reached by what was measured."
    )
    return Decision("reinforcement", weighed.best.candidate, (Reason("headroom_of_sampling", sentence),))


def _preference(weighed: Weighed, target: float) -> Decision | None:
    pairs = weighed.evidence.preferences
    if pairs < FEWEST_PAIRS or weighed.evidence.verifiable:
        return None
    sentence = (
        f"no measured candidate reaches the target of {target:g}, no program decides what is right, and {pairs} pairs say which "
        "answer is preferred: training on them is the way that was not tried. Untested."
    )
    return Decision("preference", weighed.best.candidate, (Reason("preferences_at_hand", sentence),))


def _with_context(weighed: Weighed, target: float) -> Decision | None:
    if weighed.diagnosis.cause != "context_use" or not any(arm.kind == "rag" for arm in weighed.evidence.arms):
        return None
    sentence = (
        f"{weighed.diagnosis.sentence} The model has to learn to read what is retrieved: train it with passages in its rows "
        f"(Zhang et al. 2024, RAFT). Untested: the target of {target:g} is not reached by what was measured."
    )
    return Decision("fine_tune_with_context", weighed.best.candidate, (Reason("context_is_not_used", sentence),))


def _more_rows(weighed: Weighed, target: float) -> Decision | None:
    wanted = weighed.more_rows
    if wanted is None:
        return None
    have = weighed.evidence.train_rows
    sentence = (
        f"no measured candidate reaches the target of {target:g}. With about {wanted - have:,} more labelled rows than the {have:,} at "
        f"hand, training would likely gain the {signed(weighed.pays)} that pay, by the learning curve."
    )
    return Decision("collect_data", weighed.best.candidate, (Reason("more_examples", sentence),))


def _bigger_model(weighed: Weighed, target: float) -> Decision | None:
    """Only where training was measured too, and every upper bound, that with the gold passage as well, is below the target."""
    if weighed.tuned is None:
        return None
    gold = [one for one in weighed.evidence.probes if one.candidate == "gold_passage"]
    bounds = [mean_interval(one.values(), weighed.evidence.groups).high for one in (*_measured(weighed), *gold)]
    if max(bounds) >= target:
        return None
    sentence = (
        f"every measured way, training{' and the gold passage' if gold else ''} among them, has its upper bound (the highest "
        f"{max(bounds):.3f}) under the target of {target:g}: this model does not carry the task."
    )
    return Decision("bigger_model", weighed.best.candidate, (Reason("target_out_of_reach", sentence),), sure=True)


# How the rules word and weigh.


def _training(weighed: Weighed, reason: Reason) -> Decision:
    gain = weighed.gain
    sure = gain is not None and gain.measured and gain.low >= gain.pays - A_POINT and _no_better_twin(weighed)
    action, candidate = (ON_TUNED, ON_TUNED) if weighed.retrieves else ("fine_tune", TUNED)
    return Decision(action, candidate, (reason,), sure=sure)  # type: ignore[arg-type]


def _no_better_twin(weighed: Weighed) -> bool:
    """Whether asking the trained weights the other way, with passages or without, is shown not to be better."""
    full = weighed.full
    if full is None or full.retrieving is None or weighed.tuned is None:
        return True
    other = full.scores if weighed.retrieves else full.retrieving
    return compare(other, weighed.tuned, weighed.evidence.groups).high <= A_POINT


def _measured(weighed: Weighed) -> list[Scores]:
    return [*weighed.evidence.arms, *([weighed.tuned] if weighed.tuned else [])]


def _worth_its_keep(weighed: Weighed) -> tuple[Scores, list[Reason]]:
    best, plain, needed = weighed.best, weighed.plain, weighed.named(DEARER)
    if needed is None:
        return best, []
    against = f"the best candidate without retrieval or tools ({plain.candidate}, {plain.mean:.3f})"
    likely = measured_gain(needed, 0.0).chance_above(0) >= MORE_LIKELY_THAN_NOT
    index = weighed.index[DEARER]
    if needed.better:
        sentence = f"{best.candidate} ({best.mean:.3f}) beats {against} by {_span(weighed, DEARER)}."
    elif likely and needed.difference >= weighed.evidence.min_gain:
        sentence = f"{best.candidate} likely beats {against}, which is not shown: {_span(weighed, DEARER)}."
    else:
        sentence = f"{best.candidate} is not shown to beat {against}: {_span(weighed, DEARER)}. The simpler one is preferred."
        best = plain
    return best, [Reason(NEEDS_MORE[weighed.best.kind], sentence, index)]


def _does_not_pay(weighed: Weighed, gain: Gain) -> Reason:
    if weighed.forecast:
        return Reason("training_does_not_pay", weighed.forecast.sentence())
    told = f"{_trained(weighed)} differs from {_best(weighed)} by {_span(weighed, GAIN)}: "
    if gain.high < gain.pays:
        told += f"a gain of {signed(gain.pays)} is ruled out at that size of training."
    else:
        told += (
            f"a gain of {signed(gain.pays)} is not shown, and leaving it is expected to give away "
            f"{100 * gain.regret_without:.1f} points, which is not worth more items."
        )
    return Reason("training_does_not_pay", told, weighed.index[GAIN])


def _alike(weighed: Weighed, chosen: Scores) -> str:
    """Who cannot be told apart from the chosen one: the reader may prefer another."""
    others = [arm for arm in weighed.evidence.arms if arm.kind != "trivial" and arm is not chosen]
    alike = [arm.candidate for arm in others if compare(arm, chosen, weighed.evidence.groups).high > 0]
    if not alike:
        return ""
    shown = ", ".join(alike[:3]) + (f" and {len(alike) - 3} more" if len(alike) > 3 else "")
    return f" Not told apart from it on these items: {shown}."


def _sure(weighed: Weighed, chosen: Scores) -> bool:
    """No other measured way is likely to be better by more than the tolerance; those that left the race on few items count."""
    evidence = weighed.evidence
    others = [arm for arm in evidence.arms if arm is not chosen]
    if any(compare(arm, chosen, evidence.groups).high > A_POINT for arm in others):
        return False
    gain = weighed.gain
    if gain is not None and gain.high >= gain.pays + A_POINT:
        return False
    if gain is None and evidence.plan is not None and weighed.can_pay:
        return False
    early = [one for one in evidence.left if one.why != "proven"]
    return all(
        wilson_interval(round(one.score * one.items), one.items)[1] <= chosen.mean + A_POINT for one in early if one.items
    )


def reaching(evidence: Evidence) -> list[Scores]:
    """The candidates whose lower bound reaches the target; none where there is no target."""
    target = evidence.target
    if target is None:
        return []
    return [arm for arm in evidence.arms if mean_interval(arm.values(), evidence.groups).low >= target]


def clusters(evidence: Evidence) -> int:
    """Independent items: groups, where there are any."""
    return len(evidence.arms[0].items) if evidence.groups is None else len(set(evidence.groups))


def _trained(weighed: Weighed) -> str:
    rows = weighed.full.rows if weighed.full else 0
    return f"a training on {rows} rows" + (", asked with retrieved passages," if weighed.retrieves else "")


def _best(weighed: Weighed) -> str:
    return f"the best candidate with unchanged weights ({weighed.best.candidate}, {weighed.best.mean:.3f})"


def _asked(weighed: Weighed) -> str:
    return f"at least {signed(weighed.pays)} must be gained for it to pay"


def _span(weighed: Weighed, name: str) -> str:
    one = weighed.comparison(name)
    return span_of(one.difference, one.low, one.high, one.n)


def _more(some: list[Comparison], weighed: Weighed) -> int:
    return max(items_to_settle(one, weighed.pays) for one in some)


def items_to_settle(one: Comparison, pays: float) -> int:
    """About how many more items show the present difference, or what pays where that is greater (80% power)."""
    spread = max((one.high - one.low) / (2 * 1.96) * math.sqrt(one.n), 1e-3)
    away = max(abs(one.difference), pays, 0.005)
    return max(required_n(min(1.0, away), spread) - one.n, one.n // 2)
