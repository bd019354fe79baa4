"""What an answer costs, in tokens and seconds always, in money where the task states prices."""

from __future__ import annotations

from dataclasses import dataclass

from evals.scores import Score, Scores
from evals.task.spec import PricesSpec


@dataclass(frozen=True)
class Cost:
    """Per 1,000 requests: tokens in and out, seconds, and money (None without prices).

    Seconds are this machine's for weights in this process, and the time until the answer for a served model.

    `basis` says what money was computed from: tokens, machine time, or nothing.
    """

    prompt_tokens: float
    output_tokens: float
    seconds: float
    money: float | None
    basis: str


def request_cost(item: Score, prices: PricesSpec) -> float | None:
    """Money for one request: by tokens where token prices are given, else by the machine's seconds."""
    if prices.input_per_million is not None or prices.output_per_million is not None:
        into = item.prompt_tokens * (prices.input_per_million or 0.0)
        out = item.output_tokens * (prices.output_per_million or 0.0)
        return (into + out) / 1e6
    if prices.gpu_hour is not None:
        return item.seconds * prices.gpu_hour / 3600
    return None


def cost_per_1k(scores: Scores, prices: PricesSpec) -> Cost:
    each = [request_cost(item, prices) for item in scores.items]
    known = [one for one in each if one is not None]
    money = 1000 * sum(known) / len(known) if known and len(known) == len(each) else None
    by_tokens = prices.input_per_million is not None or prices.output_per_million is not None
    basis = ("tokens" if by_tokens else "machine time") if money is not None else "no prices"
    return Cost(
        1000 * scores.average("prompt_tokens"),
        1000 * scores.average("output_tokens"),
        1000 * scores.average("seconds"),
        money,
        basis,
    )


def cheapness(scores: Scores, prices: PricesSpec, *, served: bool) -> tuple[float, float]:
    """Sorts candidates from cheap to dear: money, else seconds a request; a model's tokens decide between equals.

    Of a served model, tokens stand in for money: the time until its answer tells of queues and networks as well.
    """
    cost = cost_per_1k(scores, prices)
    tokens = cost.prompt_tokens + cost.output_tokens
    if cost.money is not None:
        return cost.money, tokens
    return (tokens, cost.seconds) if served else (cost.seconds, tokens)


def break_even_requests(training_cost: float, rival: float | None, tuned: float | None) -> float | None:
    """Requests after which training has paid for itself: training cost / (cost a request of the rival minus the tuned one's).

    None where prices are missing or the tuned candidate is not cheaper a request.
    """
    if rival is None or tuned is None or rival <= tuned:
        return None
    return training_cost / (rival - tuned)
