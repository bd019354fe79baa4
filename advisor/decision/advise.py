"""Which evidence is worth its price: bought cheapest first, until more would not change the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from advisor.decision.evidence import Evidence, Purchase
from advisor.decision.learning_curve import next_training
from advisor.decision.rules import FEWEST_ITEMS, clusters, decide, reaching
from advisor.decision.weighed import Weighed, weigh

Buy = Callable[[Purchase, Evidence], Evidence]
# A candidate that leaves less than this to gain leaves nothing for repeated samples to find.
CEILING = 0.98


def gathered(evidence: Evidence, buy: Buy) -> Evidence:
    """All the evidence that is worth its price. `buy` measures one thing and gives back the evidence with it; what was bought
    once is not asked for again, whether or not it gave anything."""
    while (wanted := next_purchase(evidence)) is not None:
        found = buy(wanted, evidence)
        evidence = replace(found, bought=(*evidence.bought, wanted))
    return evidence


def next_purchase(evidence: Evidence) -> Purchase | None:
    """The cheapest evidence on which the answer may still hang; None where nothing does."""
    if _enough(evidence):
        return None
    had = {one.what for one in evidence.bought}
    retrieves = any(arm.kind == "rag" for arm in evidence.arms)
    if "knowledge" not in had:
        return Purchase("knowledge", "whether the model lacks facts, or does not use those that it is given")
    if retrieves and "perfect_search" not in had:
        return Purchase("perfect_search", "what better search could bring")
    if retrieves and "obedience" not in had:
        return Purchase("obedience", "whether a passage can tell the model what to say")
    if "shots" not in had:
        return Purchase("shots", "whether demonstrations change how the model behaves")
    weighed = weigh(evidence)
    training = _training(weighed)
    if training is not None:
        return training
    if "samples" not in had and _samples_matter(weighed):
        return Purchase("samples", "whether right answers turn up among several draws, which a reward could reinforce")
    return None


def wants_training(evidence: Evidence) -> Purchase | None:
    """The training that would be bought for this evidence, whatever probes come before it."""
    return None if _enough(evidence) else _training(weigh(evidence))


def _enough(evidence: Evidence) -> bool:
    """A candidate that reaches the target ends the search, and so does a dev split on which nothing can be told."""
    return clusters(evidence) < FEWEST_ITEMS or bool(reaching(evidence))


def _training(weighed: Weighed) -> Purchase | None:
    evidence = weighed.evidence
    if evidence.plan is None or evidence.served or not weighed.can_pay:
        return None
    asked = {(one.rows, one.seed, one.full) for one in evidence.bought if one.what == "training"}
    wanted = next_training(evidence, weighed.pays, weighed.forecast)
    return wanted if wanted is not None and (wanted.rows, wanted.seed, wanted.full) not in asked else None


def _samples_matter(weighed: Weighed) -> bool:
    """Draws cost five times an answer: they are asked for only where reinforcement could be the answer."""
    target = weighed.evidence.target
    if not weighed.evidence.verifiable or target is None or weighed.best.mean >= CEILING:
        return False
    return decide(weighed).action not in {"fine_tune", "rag_on_tuned"} and weighed.best.mean < target
