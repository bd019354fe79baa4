"""The report's section on cost: what answers cost, what training cost and when it pays, and what could not be priced."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from advisor.decision.cost import DAYS, Economics, economics, of_seconds, settling
from advisor.report.journey import Journey
from advisor.report.table import table
from evals.task.spec import PricesSpec


def build_money(journey: Journey) -> dict[str, Any] | None:
    """`money` of report.json: of the test's candidates where it was opened, else of dev's; None where nothing was measured."""
    task, result = journey.task, journey.reevaluated
    candidates = result.test if result else journey.arms
    if not candidates:
        return None
    # The pair of the claim. What an unchanged candidate costs beside another stands in the table.
    tuned = result is not None and journey.trained is not None and result.test[0].kind == "tuned"
    pair = (result.test[0].candidate, result.test[1].candidate) if result and tuned else None
    found = economics(
        candidates,
        task.spec.prices,
        task.spec.traffic,
        min_gain=task.spec.gate.min_gain,
        pair=pair,
        gain_low=result.claim.low if result else None,
        training_seconds=journey.trained.seconds if journey.trained and pair else 0.0,
    )
    spent = journey.recommendation.spent if journey.recommendation else {}
    return {**as_data(found, task.spec.prices), "split": "test" if result else "dev", "spent": _priced(spent, task.spec.prices)}


def as_data(found: Economics, prices: PricesSpec) -> dict[str, Any]:
    """The record as report.json has it, with the sums that its records only compute."""
    body = asdict(found)
    for bill, one in zip(body["bills"], found.bills, strict=True):
        bill["cost"] |= {"each": one.cost.each, "each_cached": one.cost.each_cached}
    if body["upkeep"] is not None and found.upkeep is not None:
        body["upkeep"]["money"] = found.upkeep.money
    return {**body, "label": prices.label, "hundred_labels": settling(100, prices)}


def _priced(spent: dict[str, float], prices: PricesSpec) -> dict[str, float | None]:
    """What it took to learn the answer, with the price of the training in it where the machine has one."""
    probes = spent.get("probe_training_seconds", 0.0)
    return {**spent, "probe_training_money": of_seconds(probes, prices)} if spent else {}


def money_section(report: dict[str, Any]) -> str:
    """`## Cost`; empty where nothing was measured."""
    money = report.get("money")
    if not money:
        return ""
    blocks = [_spent(money["spent"]), _bills(money), _training(money), _prices(money)]
    return "\n\n".join(["## Cost", *(one for one in blocks if one)])


def _spent(spent: dict[str, Any]) -> str:
    if "requests" not in spent:
        return ""
    price = spent.get("probe_training_money")
    lines = [
        f"Spent to learn this: {spent['requests']:,.0f} requests to the model ({spent['model_seconds']:,.0f} s) and "
        f"{spent['probe_training_seconds']:,.0f} s of training{'' if price is None else f' ({amount(price)})'}."
    ]
    if "race_answers" in spent:
        lines.append(
            f"The race took {spent['race_answers']:,.0f} answers (some of them the same), "
            f"the search for instructions {spent['search_requests']:,.0f} requests."
        )
    return " ".join(lines)


def _bills(money: dict[str, Any]) -> str:
    """Every candidate from cheap to dear; columns of money only where there is any."""
    bills = money["bills"]
    priced = any(one["cost"]["money"] is not None for one in bills)
    # By machine time both are one measurement, and one column.
    cached = priced and any(one["cost"]["money_cached"] not in {None, one["cost"]["money"]} for one in bills)
    whole = priced and money["requests"] is not None
    net = any(one["net"] is not None for one in bills)
    head = ["candidate", "score", "tokens in", "of them cached", "tokens out", "seconds"]
    head += ["per 1,000"] if priced else []
    head += ["with prompt caching"] if cached else []
    head += [f"{money['requests']:,} requests"] if whole else []
    head += ["worth less cost"] if net else []
    rows = []
    for one in sorted(bills, key=lambda one: (one["cost"]["money"] or 0.0, one["cost"]["seconds"])):
        cost = one["cost"]
        row = [f"`{one['candidate']}`", f"{one['score']:.3f}"]
        row += [f"{cost[name] / 1000:,.0f}" for name in ("prompt_tokens", "cached_tokens", "output_tokens")]
        row += [f"{cost['seconds'] / 1000:.3f}"]
        row += [amount(cost["money"])] if priced else []
        row += [amount(cost["money_cached"])] if cached else []
        row += [amount(one["over_traffic"])] if whole else []
        row += [amount(one["net"])] if net else []
        rows.append(row)
    basis = bills[0]["cost"]["basis"]
    told = f"A request on {money['split']}, on average (tokens and seconds"
    told += f"; money by {basis}):" if priced else "):"
    note = (
        "Cached tokens are those that were read once for several requests while this was measured; sparse traffic caches less."
        if any(one["cost"]["cached_tokens"] for one in bills)
        else ""
    )
    return "\n\n".join(filter(None, [told, table(head, rows), note]))


def _training(money: dict[str, Any]) -> str:
    """What training cost, and when it has paid for itself: by the bills alone, then by right answers."""
    if not money["tuned"]:
        return ""
    took = f"{money['training_seconds']:,.0f} s"
    lines = [f"Training took {took}" + ("." if money["training"] is None else f": {amount(money['training'])}.")]
    lines += _upkeep(money)
    against = f"`{money['tuned']}` against `{money['rival']}`"
    ways = (
        ("even", f"By the bills alone, {against}: training"),
        ("even_cached", "The same with prompt caching: training"),
        ("even_worth", "With the measured gain at the stated worth of a right answer: training"),
        ("even_worth_low", "With the low end of that gain's interval: training"),
    )
    lines += [f"{words} {_even(money[key])}." for key, words in ways if money[key]]
    if money["pays"] is not None and money["even_worth"]:
        lines.append(_pays(money))
    return "\n".join(f"- {one}" for one in lines)


def _upkeep(money: dict[str, Any]) -> list[str]:
    kept = money["upkeep"]
    if not kept or not (kept["retrainings"] or kept["indexing"]):
        return []
    parts = [f"{kept['retrainings']} more trainings"] if kept["retrainings"] else []
    parts += [f"new labels for them ({amount(kept['labels'])})"] if kept["labels"] else []
    price = "not priced" if kept["money"] is None else amount(kept["money"])
    return [f"Keeping it alive over {money['months']} months takes {' and '.join(parts)}: {price}."]


def _even(found: dict[str, Any]) -> str:
    if found["requests"] is None:
        return "never pays for itself"
    told = f"pays for itself after {found['requests']:,.0f} requests"
    if found["days"] is None:
        return told
    # Of years nobody wants the days.
    when = f"{found['days']:,.1f} days" if found["days"] < 24 * DAYS else f"{found['days'] / DAYS / 12:,.0f} years"
    return f"{told}, {when} at the stated traffic" + ("" if found["within"] else ", which is beyond the months stated")


def _pays(money: dict[str, Any]) -> str:
    if money["pays"] > 1:
        return "No gain in score pays for this training at the stated prices and traffic."
    return f"From a gain of {100 * money['pays']:.1f} points on training pays; measured were {100 * money['gain']:+.1f}."


def _prices(money: dict[str, Any]) -> str:
    lines = [f"Prices {one}." for one in money["sources"]]
    lines += [f"{one[0].upper()}{one[1:]}." for one in money["missing"]]
    return "\n".join(f"- {one}" for one in lines)


def amount(value: float | None) -> str:
    """Money with two decimals, small sums with four digits that count; a dash for what has no price."""
    if value is None:
        return "–"
    return f"{value:,.2f}" if value == 0 or abs(value) >= 1 else f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"
