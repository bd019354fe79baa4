"""The recommendation: what the rules say of the evidence, how sure that is, what would change it and what would settle it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from advisor.decision.advise import wants_training
from advisor.decision.compare import Comparison, signed
from advisor.decision.diagnosis import Diagnosis
from advisor.decision.evidence import Evidence
from advisor.decision.pays import price_of_items, price_of_training
from advisor.decision.rules import FEWEST_ITEMS, Action, Decision, Reason, decide, items_to_settle
from advisor.decision.weighed import GAIN, LEARNT, Weighed, weigh
from evals.statistics.power import minimum_detectable_effect

# Actions that this version can train; the others that change weights are advice only.
TRAINS = frozenset({"fine_tune", "rag_on_tuned"})
CHANGES_WEIGHTS = TRAINS | {"fine_tune_with_context", "preference", "reinforcement"}
TRAFFIC_FACTOR = 10
TARGET_STEP = 0.05


@dataclass(frozen=True)
class Variation:
    """What would be recommended on the same evidence if the task file said something else."""

    change: str
    action: str
    candidate: str
    sentence: str


@dataclass(frozen=True)
class Recommendation:
    """`sure`: the measured evidence leaves no other measured way a likely advantage (`rules.Decision`). `cause` names what the
    diagnosis shows to be missing. `settle` says what would settle what is open, and its price."""

    action: Action
    candidate: str
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]
    spent: dict[str, float]
    would_change: tuple[str, ...]
    cannot_tell: tuple[str, ...] = ()
    sure: bool = False
    cause: str = ""
    sensitivity: tuple[Variation, ...] = ()
    settle: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        return self.action in TRAINS


def recommend(evidence: Evidence) -> Recommendation:
    """Pure: the same evidence gives the same recommendation. Raises AdvisorError where candidates were scored on different items."""
    weighed = weigh(evidence)
    decision = decide(weighed)
    return Recommendation(
        decision.action,
        decision.candidate,
        (
            *decision.reasons,
            *_foreseen(weighed, decision),
            *_diagnosed(weighed),
            *(Reason("retrieval", one) for one in evidence.retrieval),
        ),
        weighed.comparisons,
        dict(evidence.spent),
        tuple(_would_change(weighed, decision)),
        tuple(_cannot_tell(weighed)),
        decision.sure,
        weighed.diagnosis.cause,
        tuple(_sensitivity(evidence, decision)),
        tuple(_settle(weighed, decision)),
    )


def _diagnosed(weighed: Weighed) -> list[Reason]:
    """The cause, and the effects but for those that the sentences on retrieval tell."""
    found: Diagnosis = weighed.diagnosis
    told = weighed.evidence.retrieval
    effects = [one for one in found.effects if not (told and one.name in {"knowledge", "retrieval_loss"})]
    return [Reason("diagnosis", one) for one in (found.sentence, *(one.sentence for one in effects), *found.untested) if one]


def _foreseen(weighed: Weighed, decision: Decision) -> list[Reason]:
    """What the learning curve says, where the rule that decided has not said it."""
    if weighed.forecast is None or any(weighed.forecast.sentence() in one.sentence for one in decision.reasons):
        return []
    return [Reason("learning_curve", weighed.forecast.sentence())]


def _would_change(weighed: Weighed, decision: Decision) -> list[str]:
    evidence, said = weighed.evidence, []
    gain = weighed.gain
    if decision.action in TRAINS:
        score = weighed.tuned.mean if weighed.tuned else weighed.best.mean + (gain.estimate if gain else 0.0)
        said.append(f"a prompt, retrieval or classifier that scores above {score:.3f} on dev")
        said.append("forgetting above the gate's margin, which only the measurement after training can tell")
        if evidence.target is None:
            said.append("a `target:` that an unchanged model already reaches")
    elif gain is not None:
        missing = signed(max(0.0, gain.pays - gain.estimate))
        said.append(
            f"more than {evidence.train_rows} training rows, or another recipe, that gains {missing} points on what was seen"
        )
        wanted = weighed.more_rows
        if wanted is not None:
            more = wanted - evidence.train_rows
            price = price_of_items(more, evidence.prices)
            said.append(f"about {more:,} more training rows{price}: by the learning curve training would then likely pay")
    elif evidence.served:
        said.append("a training probe, once the weights are named (`model: {engine: hf, model_name_or_path: …}`)")
    elif not weighed.can_pay:
        if weighed.pays > evidence.min_gain:
            said.append("more traffic, a higher `prices: {right_answer: …}` or a cheaper training")
        else:
            said.append("harder dev items: on these there is next to nothing left to gain")
    else:
        said.append("a target above what the recommended candidate reaches: then training would be probed")
    if decision.action in {"collect_data", "undecided", "bigger_model"}:
        said.append("more labelled rows, a bigger base model, or documents that hold the answers")
    return said


def _settle(weighed: Weighed, decision: Decision) -> list[str]:
    """What would settle what is open, and its price."""
    evidence = weighed.evidence
    open_ones = [one for one in (weighed.named(GAIN), weighed.named(LEARNT)) if one is not None and not one.better]
    if decision.sure or not open_ones:
        return []
    items = min(items_to_settle(one, weighed.pays) for one in open_ones)
    said = [f"about {items:,} more labelled dev items{price_of_items(items, evidence.prices)}"]
    if weighed.forecast and evidence.plan and decision.action == "undecided":
        said.append(
            f"the training on all {evidence.plan.rows:,} rows{price_of_training(evidence.plan.full_seconds, evidence.prices)}"
        )
    return said


def _sensitivity(evidence: Evidence, decision: Decision) -> list[Variation]:
    """Two changes that teams ask about. The evidence stays what it is: where it would not do, that is said."""
    changes: list[tuple[str, Evidence]] = []
    if evidence.traffic is not None:
        more = evidence.traffic.model_copy(update={"requests_per_month": TRAFFIC_FACTOR * evidence.traffic.requests_per_month})
        changes.append((f"traffic x{TRAFFIC_FACTOR}", replace(evidence, traffic=more)))
    if evidence.target is not None:
        higher = min(1.0, evidence.target + TARGET_STEP)
        changes.append((f"target {100 * TARGET_STEP:+.0f} points ({higher:g})", replace(evidence, target=higher)))
    found = []
    for change, changed in changes:
        wanted = wants_training(changed)
        if wanted is not None:
            sentence = f"{change}: training would be tried before anything is said ({wanted.because})"
            found.append(Variation(change, "undecided", "", sentence))
            continue
        then = decide(weigh(changed))
        same = (then.action, then.candidate) == (decision.action, decision.candidate)
        sentence = f"{change}: {'the same' if same else f'{then.action} ({then.candidate})'}"
        found.append(Variation(change, then.action, then.candidate, sentence))
    return found


def _cannot_tell(weighed: Weighed) -> list[str]:
    """What this evidence cannot carry, said before anything else."""
    evidence, best = weighed.evidence, weighed.best
    n = len(best.items)
    mde = minimum_detectable_effect(n)
    said = [f"with {n} dev items, a difference under about {100 * mde:.0f} points can hardly be seen (power 80%)"]
    if n < 30:
        said.insert(0, f"{n} dev items carry hardly any claim: every sentence below is weak")
    if all(arm.mean == 0 for arm in evidence.arms):
        said.insert(
            0, "every candidate scores 0 on every dev item: the metric, the targets or the form of answers deserve a look first"
        )
    elif len({tuple(arm.values()) for arm in evidence.arms}) == 1:
        said.insert(0, "all candidates score alike on every item: nothing tells them apart")
    skipped = [f"{arm.candidate} {arm.skipped}" for arm in evidence.arms if arm.skipped]
    if skipped:
        said.append(f"items without an answer score 0: {', '.join(skipped)}")
    if evidence.served:
        said.append(
            "training is untested: the model is served, and its weights are not here. Name them to have it probed: "
            "`model: {engine: hf, model_name_or_path: …}`"
        )
    elif not evidence.trained:
        said.append(f"training was not probed: {_why_not_probed(weighed, n)}")
    return said


def _why_not_probed(weighed: Weighed, n: int) -> str:
    if n < FEWEST_ITEMS:
        return f"{n} dev items could not tell what it brings"
    if not weighed.can_pay:
        return f"it must gain {signed(weighed.pays)} points to pay, and {weighed.best.candidate} leaves less to gain"
    return "a cheaper candidate reaches the target" if weighed.evidence.target else "there are too few rows to train on"
