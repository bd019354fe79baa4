"""What answers cost, in tokens and seconds always, in money where the task prices them; what a training must bring to pay for itself.

Money is in the task's own currency. A price that is missing makes the sum None: nothing is ever taken for free, or for typical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evals.scores import Score, Scores
from evals.task.price_table import price_table
from evals.task.spec import PricesSpec, TrafficSpec

# Of an average month.
DAYS = 365 / 12


@dataclass(frozen=True)
class Cost:
    """Per 1,000 requests: tokens in (of them cached) and out, seconds, and money (None without prices).

    Seconds are this machine's for weights in this process, and the time until the answer for a served model.

    `basis` says what money was computed from: tokens, machine time, or nothing; and the table, where prices are its.
    `money` is without prompt caching, `money_cached` with it: cached tokens at their own price, None where none is stated. By
    machine time both are what was measured: the engine reads what prompts share once, and no other time is known.
    """

    prompt_tokens: float
    output_tokens: float
    seconds: float
    money: float | None
    basis: str
    cached_tokens: float = 0.0
    money_cached: float | None = None

    @property
    def each(self) -> float | None:
        """Money for one request."""
        return None if self.money is None else self.money / 1000

    @property
    def each_cached(self) -> float | None:
        return None if self.money_cached is None else self.money_cached / 1000


def request_cost(item: Score, prices: PricesSpec, *, cached: bool = False) -> float | None:
    """Money for one request: by tokens where token prices are given, else by the machine's seconds.

    (tokens in * price in + tokens out * price out) / 10^6. With `cached` those tokens in that were read before are at the
    price of cached ones; None where that is not stated. Where only one of both is priced the sum is of that one, and `basis` and
    the report say that the others are left out.
    """
    if not prices.by_tokens:
        return of_seconds(item.seconds, prices)
    into = prices.input_per_million or 0.0
    full = item.prompt_tokens * into + item.output_tokens * (prices.output_per_million or 0.0)
    if not cached:
        return full / 1e6
    if prices.cached_input_per_million is None:
        return None
    return (full - item.cached_tokens * (into - prices.cached_input_per_million)) / 1e6


def of_seconds(seconds: float, prices: PricesSpec) -> float | None:
    """Money for the machine's time: what a training costs, or an index."""
    return None if prices.gpu_hour is None else seconds / 3600 * prices.gpu_hour


def cost_per_1k(scores: Scores, prices: PricesSpec) -> Cost:
    return Cost(
        1000 * scores.average("prompt_tokens"),
        1000 * scores.average("output_tokens"),
        1000 * scores.average("seconds"),
        _per_1k(scores, prices, cached=False),
        _basis(prices),
        1000 * scores.average("cached_tokens"),
        _per_1k(scores, prices, cached=True),
    )


def _per_1k(scores: Scores, prices: PricesSpec, *, cached: bool) -> float | None:
    each = [request_cost(item, prices, cached=cached) for item in scores.items]
    known = [one for one in each if one is not None]
    return 1000 * sum(known) / len(known) if known and len(known) == len(each) else None


def _basis(prices: PricesSpec) -> str:
    if not prices.of_a_request:
        return "no prices"
    told, name = ("tokens", "per_million") if prices.by_tokens else ("machine time", "gpu_hour")
    told += f" ({prices.unpriced} left out: no price)" if prices.unpriced else ""
    listed = prices.table is not None and any(name in one for one in prices.from_table)
    return f"{told}, by the table of {price_table()[prices.table].date}" if listed and prices.table else told


def cheapness(scores: Scores, prices: PricesSpec, *, served: bool) -> tuple[float, float]:
    """Sorts candidates from cheap to dear: money, else seconds a request; a model's tokens decide between equals.

    Of a served model, tokens stand in for money: the time until its answer tells of queues and networks as well.
    """
    cost = cost_per_1k(scores, prices)
    tokens = cost.prompt_tokens + cost.output_tokens
    if cost.money is not None:
        return cost.money, tokens
    return (tokens, cost.seconds) if served else (cost.seconds, tokens)


def total_requests(traffic: TrafficSpec) -> int:
    """Over all the months that are stated."""
    return traffic.requests_per_month * traffic.months


def settling(items: int, prices: PricesSpec) -> float | None:
    """The price of so many more labelled items; None where a label is not priced."""
    return None if prices.label is None else items * prices.label


@dataclass(frozen=True)
class Upkeep:
    """What keeping a candidate alive costs over the stated months: `retrainings` after the first training, new labels for them,
    and documents that change, embedded again. A part is 0 where it is not asked for, None where it is but has no price."""

    retrainings: int
    training: float | None
    labels: float | None
    indexing: float | None

    @property
    def money(self) -> float | None:
        return total(self.training, self.labels, self.indexing)


def total(*parts: float | None) -> float | None:
    """The sum; None where a part is not known."""
    known = [one for one in parts if one is not None]
    return sum(known) if len(known) == len(parts) else None


def keeping_alive(
    traffic: TrafficSpec | None, prices: PricesSpec, *, training_seconds: float = 0.0, indexing_seconds: float = 0.0
) -> Upkeep:
    """Trained at the start and every N months after it, within the stated months: (months - 1) // N more trainings.

    `training_seconds` is 0 of a candidate with unchanged weights, `indexing_seconds` (of all documents, once) of one without an
    index: months * share of the documents that change in a month * that time is spent on changes.
    """
    if traffic is None:
        return Upkeep(0, 0.0, 0.0, 0.0)
    every = traffic.retrain_every_months if training_seconds > 0 else None
    times = (traffic.months - 1) // every if every else 0
    again = traffic.months * traffic.documents_changed * indexing_seconds
    labels = times * traffic.labels_per_retraining
    return Upkeep(
        times,
        of_seconds(times * training_seconds, prices) if times else 0.0,
        settling(labels, prices) if labels else 0.0,
        of_seconds(again, prices) if again else 0.0,
    )


def gain_that_pays(
    min_gain: float,
    prices: PricesSpec,
    traffic: TrafficSpec | None,
    *,
    fixed: float | None,
    tuned: Cost | None,
    rival: Cost | None,
) -> float:
    """The smallest gain in score at which training pays for itself over the stated traffic, and never less than `min_gain`:

        (fixed + requests * (cost of a tuned request - cost of a rival's request)) / (requests * worth of a right answer)

    `fixed` is all that is paid whatever the traffic: the training, the labels that it needs, keeping it alive (`keeping_alive`),
    less what keeping the rival alive costs. Where requests are priced with and without prompt caching, it has to pay under both.
    A value above 1 says that no gain pays: the traffic is too low. Where anything is not priced it is `min_gain`.
    """
    if prices.right_answer is None or traffic is None or fixed is None or tuned is None or rival is None:
        return min_gain
    requests = total_requests(traffic)
    pairs = [(tuned.each, rival.each), (tuned.each_cached, rival.each_cached)]
    dearer = [a - b for a, b in pairs if a is not None and b is not None]
    if not dearer:
        return min_gain
    needed = fixed + requests * max(dearer)
    if needed <= 0:
        return min_gain
    return max(min_gain, needed / (requests * prices.right_answer) if prices.right_answer else math.inf)


@dataclass(frozen=True)
class BreakEven:
    """`requests` after which training has paid for itself, None for never; `days` at the stated traffic; `within` its months.
    (`days` and `within` are None where no traffic is stated or it never does.)"""

    requests: float | None
    days: float | None = None
    within: bool | None = None


def break_even(
    training: float | None,
    rival: float | None,
    tuned: float | None,
    traffic: TrafficSpec | None,
    *,
    upkeep: float = 0.0,
    worth: float = 0.0,
) -> BreakEven | None:
    """training / (cost of a rival's request - cost of a tuned one + worth - upkeep of one request), in requests and days.

    `rival` and `tuned` are of one request; `upkeep` is of all stated months, and is spread over their requests; `worth` is what
    the gain in score brings a request (gain * worth of a right answer), 0 to count the bills alone. None where a price is missing.
    """
    if training is None or rival is None or tuned is None:
        return None
    saved = rival - tuned + worth - (upkeep / total_requests(traffic) if traffic else 0.0)
    if saved <= 0:
        return BreakEven(None)
    requests = training / saved
    if traffic is None:
        return BreakEven(requests)
    return BreakEven(requests, requests / traffic.requests_per_month * DAYS, requests <= total_requests(traffic))


def break_even_requests(training_cost: float, rival: float | None, tuned: float | None) -> float | None:
    """Requests after which training has paid for itself: training cost / (cost a request of the rival minus the tuned one's).

    None where prices are missing or the tuned candidate is not cheaper a request.
    """
    found = break_even(training_cost, rival, tuned, None)
    return found.requests if found else None


def net_utility(
    score: float, request: float | None, fixed: float | None, traffic: TrafficSpec | None, prices: PricesSpec
) -> float | None:
    """What a candidate is worth over the stated traffic, less what it costs: requests * (score * worth - request) - fixed.

    `request` is the money for one request, `fixed` what is paid whatever the traffic (0 for unchanged weights). None where
    anything is not priced.
    """
    if prices.right_answer is None or request is None or fixed is None or traffic is None:
        return None
    return total_requests(traffic) * (score * prices.right_answer - request) - fixed


@dataclass(frozen=True)
class Bill:
    """What one candidate's answers cost: per 1,000 requests, and over the stated traffic (without and with prompt caching).

    `net` is its worth less its cost over the traffic, with its training and upkeep where it is the tuned one.
    """

    candidate: str
    kind: str
    score: float
    cost: Cost
    over_traffic: float | None
    over_traffic_cached: float | None
    net: float | None


@dataclass(frozen=True)
class Economics:
    """All that the report's section on cost shows. The first fields are of all candidates, the rest of `tuned` against `rival`
    (empty names: nothing was trained, and no comparison is made).

    `training` is its money, `even` the break-even by the bills alone, `even_cached` the same with prompt caching, `even_worth`
    with the measured gain counted at the worth of a right answer (`even_worth_low`: the low end of its interval); `pays` is the
    gain from which on training pays.
    """

    bills: tuple[Bill, ...]
    requests: int | None
    months: int | None
    sources: tuple[str, ...]
    missing: tuple[str, ...]
    tuned: str = ""
    rival: str = ""
    training_seconds: float = 0.0
    training: float | None = None
    upkeep: Upkeep | None = None
    even: BreakEven | None = None
    even_cached: BreakEven | None = None
    even_worth: BreakEven | None = None
    even_worth_low: BreakEven | None = None
    gain: float | None = None
    pays: float | None = None


def economics(
    candidates: Sequence[Scores],
    prices: PricesSpec,
    traffic: TrafficSpec | None,
    *,
    min_gain: float,
    pair: tuple[str, str] | None = None,
    gain_low: float | None = None,
    training_seconds: float = 0.0,
    indexing_seconds: float = 0.0,
) -> Economics:
    """Of candidates that were scored on the same items; `pair` names the tuned one and its rival among them, and `gain_low` is
    the low end of the interval of the difference between their scores.

    `indexing_seconds` is what embedding all documents takes, where only the rival retrieves: then it is its upkeep.
    """
    bills = [_bill(one, prices, traffic) for one in candidates]
    told = (_sources(prices), _missing(prices, traffic, trained=pair is not None))
    requests, months = (total_requests(traffic), traffic.months) if traffic else (None, None)
    if pair is None:
        return Economics(tuple(bills), requests, months, *told)
    tuned, rival = (next(one for one in bills if one.candidate == name) for name in pair)
    training = of_seconds(training_seconds, prices)
    upkeep = keeping_alive(traffic, prices, training_seconds=training_seconds)
    # An index is the rival's to keep alive where only it retrieves.
    saved = keeping_alive(traffic, prices, indexing_seconds=indexing_seconds).money if rival.kind == "rag" else 0.0
    kept = None if upkeep.money is None or saved is None else upkeep.money - saved
    fixed = total(training, kept)
    gain = tuned.score - rival.score

    def even(cost: float | None, other: float | None, worth: float = 0.0) -> BreakEven | None:
        return None if kept is None else break_even(training, other, cost, traffic, upkeep=kept, worth=worth)

    def worthwhile(gained: float | None) -> BreakEven | None:
        if gained is None or prices.right_answer is None:
            return None
        return even(tuned.cost.each, rival.cost.each, gained * prices.right_answer)

    return Economics(
        tuple(_with_fixed(one, fixed) if one is tuned else one for one in bills),
        requests,
        months,
        *told,
        tuned=tuned.candidate,
        rival=rival.candidate,
        training_seconds=training_seconds,
        training=training,
        upkeep=upkeep,
        even=even(tuned.cost.each, rival.cost.each),
        even_cached=even(tuned.cost.each_cached, rival.cost.each_cached) if prices.by_tokens else None,
        even_worth=worthwhile(gain),
        even_worth_low=worthwhile(gain_low),
        gain=gain,
        pays=gain_that_pays(min_gain, prices, traffic, fixed=fixed, tuned=tuned.cost, rival=rival.cost),
    )


def _bill(scores: Scores, prices: PricesSpec, traffic: TrafficSpec | None) -> Bill:
    cost = cost_per_1k(scores, prices)
    requests = total_requests(traffic) if traffic else None
    whole, cached = (None if each is None or requests is None else requests * each for each in (cost.each, cost.each_cached))
    net = net_utility(scores.mean, cost.each, 0.0, traffic, prices)
    return Bill(scores.candidate, scores.kind, scores.mean, cost, whole, cached, net)


def _with_fixed(bill: Bill, fixed: float | None) -> Bill:
    net = None if bill.net is None or fixed is None else bill.net - fixed
    return Bill(bill.candidate, bill.kind, bill.score, bill.cost, bill.over_traffic, bill.over_traffic_cached, net)


# How each price is called in a sentence.
NAMES = {
    "gpu_hour": "an hour of the machine",
    "input_per_million": "a million tokens in",
    "cached_input_per_million": "a million cached tokens in",
    "output_per_million": "a million tokens out",
    "label": "a label",
    "right_answer": "a right answer more",
}


def _sources(prices: PricesSpec) -> tuple[str, ...]:
    """Where each price is from: the task file, or the table, with its date."""
    listed = prices.from_table
    stated = {name: getattr(prices, name) for name in NAMES if name not in listed and getattr(prices, name) is not None}
    said = []
    if stated:
        said.append(f"stated in the task file: {_named(stated)}")
    if listed and prices.table:
        row = price_table()[prices.table]
        said.append(
            f"from the shipped table, row {row.name} ({row.source}, {row.date}, in US dollars; it may have changed): "
            f"{_named({name: row.prices[name] for name in listed})}"
        )
    return tuple(said)


def _named(some: dict[str, float]) -> str:
    return ", ".join(f"{NAMES[name]} {value:g}" for name, value in some.items())


def _missing(prices: PricesSpec, traffic: TrafficSpec | None, *, trained: bool) -> tuple[str, ...]:
    """What cannot be told in money, and the keys that would let it."""
    said = []
    if not prices.of_a_request:
        said.append("requests are told in tokens and seconds: neither tokens nor the machine's hour has a price (`prices:`)")
    if prices.unpriced:
        said.append(f"{prices.unpriced} have no price and are left out of every sum: real bills are higher")
    if prices.by_tokens and prices.cached_input_per_million is None:
        said.append("prompt caching is counted in tokens only (`prices: {cached_input_per_million: …}` prices it)")
    if trained and prices.gpu_hour is None:
        said.append("training is told in seconds only (`prices: {gpu_hour: …}` prices it)")
    if traffic is None:
        said.append("nothing is said of days or of the whole bill (`traffic: {requests_per_month: …}`)")
    if prices.right_answer is None:
        said.append("what a better score is worth is not stated (`prices: {right_answer: …}`): only bills are compared")
    return tuple(said)
