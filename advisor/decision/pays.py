"""What training must gain to pay for this task, and the price of what would settle an open question, in words."""

from __future__ import annotations

from advisor.decision import cost
from advisor.decision.cost import cost_per_1k, keeping_alive, of_seconds, settling, total
from advisor.decision.evidence import Evidence
from evals.scores import Scores
from evals.task.spec import PricesSpec

PLAIN = "zero_shot"


def gain_that_pays(evidence: Evidence, rival: Scores) -> float:
    """The least gain in score at which training pays, over `rival`, the best candidate with unchanged weights.

    Before anything was trained a request to the tuned weights is taken to cost what plain zero-shot costs.
    """
    full = next((one for one in evidence.trained if one.full), None)
    short = max(evidence.trained, key=lambda one: one.rows, default=None)
    plain = next((arm for arm in evidence.arms if arm.candidate == PLAIN), None)
    asked = full.scores if full else short.scores if short else plain
    seconds = full.seconds if full and full.seconds else evidence.plan.full_seconds if evidence.plan else 0.0
    upkeep = keeping_alive(evidence.traffic, evidence.prices, training_seconds=seconds)
    return cost.gain_that_pays(
        evidence.min_gain,
        evidence.prices,
        evidence.traffic,
        fixed=total(of_seconds(seconds, evidence.prices), upkeep.money),
        tuned=cost_per_1k(asked, evidence.prices) if asked else None,
        rival=cost_per_1k(rival, evidence.prices),
    )


def price_of_items(items: int, prices: PricesSpec) -> str:
    price = settling(items, prices)
    return "" if price is None else f" ({price:,.2f} at the stated price of a label)"


def price_of_training(seconds: float, prices: PricesSpec) -> str:
    price = of_seconds(seconds, prices)
    money = "" if price is None else f", {price:,.2f} at the stated price of the machine"
    return f" (about {seconds / 60:.0f} minutes{money})"
