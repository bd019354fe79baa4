"""What answers and trainings cost: by hand-made sums, by enumeration over the months, and never by a number that nobody stated."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from advisor.cli.main import main
from advisor.decision.cost import (
    DAYS,
    BreakEven,
    Cost,
    break_even,
    break_even_requests,
    cost_per_1k,
    economics,
    gain_that_pays,
    keeping_alive,
    net_utility,
    request_cost,
    settling,
    total,
    total_requests,
)
from advisor.report.money import amount, as_data, build_money, money_section
from evals.errors import ProblemsError
from evals.scores import Score, Scores
from evals.task.price_table import price_table
from evals.task.spec import PricesSpec, TaskSpec, TrafficSpec, read_spec

LEAST = "data: {train: x}\nmodel: {model_name_or_path: m}\n"
SERVED = "data: {train: x}\nmodel: {model_name_or_path: m, engine: endpoint, base_url: 'http://h/v1'}\n"
TOKENS = PricesSpec(
    input_per_million=2.0, cached_input_per_million=0.5, output_per_million=8.0, gpu_hour=3.6, right_answer=0.01
)
YEAR = TrafficSpec(requests_per_month=1000, months=12)


def scores(
    name: str, kind: str, mean: float, *, into: int = 1000, cached: int = 0, out: int = 10, seconds: float = 0.1
) -> Scores:
    right = [1.0] * round(mean * 100) + [0.0] * (100 - round(mean * 100))
    items = tuple(Score(str(at), one, "x", into, out, seconds, cached_tokens=cached) for at, one in enumerate(right))
    return Scores(name, kind, "dev", "accuracy", items)


def cost(each: float | None, cached: float | None = None) -> Cost:
    """A cost of so much money a request."""
    return Cost(0, 0, 0, None if each is None else 1000 * each, "tokens", 0, None if cached is None else 1000 * cached)


def problem(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ProblemsError) as caught:
        read_spec(tmp_path / "task.yaml")
    (one,) = caught.value.problems
    return one.key, one.message


# A request


def test_cached_tokens_are_paid_at_their_own_price() -> None:
    item = Score("a", 1.0, "x", 1000, 10, 0.1, cached_tokens=800)
    assert request_cost(item, TOKENS) == pytest.approx((1000 * 2 + 10 * 8) / 1e6)
    assert request_cost(item, TOKENS, cached=True) == pytest.approx((200 * 2 + 800 * 0.5 + 10 * 8) / 1e6)
    assert request_cost(item, TOKENS.model_copy(update={"cached_input_per_million": None}), cached=True) is None


def test_by_machine_time_there_is_one_measurement() -> None:
    found = cost_per_1k(scores("a", "prompt", 0.5, cached=800), PricesSpec(gpu_hour=3.6))
    assert found.money == found.money_cached == pytest.approx(1000 * 0.1 * 0.001)
    assert (found.cached_tokens, found.basis) == (800_000, "machine time")


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 100), st.floats(0, 1))
def test_caching_never_makes_a_request_dearer_where_cached_tokens_are_cheaper(
    into: int, cached: int, price: float, share: float
) -> None:
    assume(cached <= into)
    item = Score("a", 1.0, "x", into, 7, 0.1, cached_tokens=cached)
    prices = PricesSpec(input_per_million=price, cached_input_per_million=share * price, output_per_million=1.0)
    with_cache, without = request_cost(item, prices, cached=True), request_cost(item, prices)
    assert with_cache is not None
    assert without is not None
    assert 0 <= with_cache <= without + 1e-12


def test_without_prices_there_are_tokens_and_seconds_only() -> None:
    found = cost_per_1k(scores("a", "prompt", 0.5), PricesSpec())
    assert (found.prompt_tokens, found.seconds) == (1_000_000, pytest.approx(100))
    assert (found.money, found.money_cached, found.each, found.each_cached, found.basis) == (
        None,
        None,
        None,
        None,
        "no prices",
    )


def test_a_price_that_is_missing_beside_another_is_told() -> None:
    half = PricesSpec(input_per_million=2.0)
    assert "tokens out left out" in cost_per_1k(scores("a", "prompt", 0.5), half).basis
    assert any(
        "real bills are higher" in one for one in economics([scores("a", "prompt", 0.5)], half, None, min_gain=0.03).missing
    )


# The task file


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("traffic: {requests_per_month: -5}\n", "traffic.requests_per_month", "-5 is negative"),
        ("traffic: {requests_per_month: 0}\n", "traffic.requests_per_month", "greater than 0"),
        ("traffic: {requests_per_month: 5, months: -1}\n", "traffic.months", "-1 is negative"),
        ("traffic: {requests_per_month: 5, retrain_every_months: 0}\n", "traffic.retrain_every_months", "greater than 0"),
        ("traffic: {requests_per_month: 5, labels_per_retraining: -1}\n", "traffic.labels_per_retraining", "negative"),
        ("traffic: {requests_per_month: 5, documents_changed: 1.5}\n", "traffic.documents_changed", "less than or equal to 1"),
        ("prices: {right_answer: -0.1}\n", "prices.right_answer", "greater than or equal to 0"),
        ("prices: {gpu_hour: .inf}\n", "prices.gpu_hour", "finite"),
        ("prices: {gpu_hour: .nan}\n", "prices.gpu_hour", "finite"),
        ("prices: {cached_input_per_million: 1}\n", "prices", "state input_per_million"),
        ("prices: {table: gpt-4o-mni}\n", "prices.table", "did you mean 'gpt-4o-mini'"),
    ],
)
def test_traffic_and_prices_that_cannot_be_are_refused_with_their_line(tmp_path: Path, text: str, key: str, said: str) -> None:
    found, message = problem(tmp_path, LEAST + text)
    assert found == key
    assert said in message


def test_a_machine_of_the_table_is_no_price_of_a_server(tmp_path: Path) -> None:
    assert "prices.table" in problem(tmp_path, SERVED + "prices: {table: l4}\n")[1]
    (tmp_path / "task.yaml").write_text(SERVED + "prices: {table: gpt-4o-mini}\n")
    assert read_spec(tmp_path / "task.yaml").prices.input_per_million == 0.15


def test_only_what_is_asked_of_the_table_comes_from_it_and_what_is_stated_stays() -> None:
    assert PricesSpec() == PricesSpec.model_validate({})
    assert not any(value is not None for value in PricesSpec().model_dump().values())
    mixed = PricesSpec.model_validate({"table": "gpt-4o-mini", "output_per_million": 9.0, "label": 0.2})
    assert (mixed.input_per_million, mixed.cached_input_per_million, mixed.output_per_million) == (0.15, 0.075, 9.0)
    assert (mixed.gpu_hour, mixed.right_answer, mixed.label) == (None, None, 0.2)
    assert mixed.from_table == ("input_per_million", "cached_input_per_million")
    # As a record of it reads back.
    assert PricesSpec.model_validate(mixed.model_dump()) == mixed


def test_every_row_of_the_table_is_dated_sourced_and_a_valid_price() -> None:
    assert len(price_table()) > 10
    for name, row in price_table().items():
        year, month = map(int, row.date.split("-"))
        assert (2024, 1) <= (year, month) <= (2025, 12)
        assert len(row.source) > 10
        assert set(row.prices) <= set(PricesSpec.model_fields) - {"label", "right_answer", "table"}
        prices = PricesSpec(table=name)
        assert prices.of_a_request
        assert prices.by_tokens == (row.kind == "hosted")
        assert not prices.unpriced
        if prices.cached_input_per_million is not None and prices.input_per_million is not None:
            assert prices.cached_input_per_million <= prices.input_per_million


def test_prices_of_the_table_are_marked_with_their_date_wherever_they_are_shown() -> None:
    listed = PricesSpec(table="gpt-4o-mini")
    found = economics([scores("a", "prompt", 0.5)], listed, YEAR, min_gain=0.03)
    assert "by the table of 2025-06" in found.bills[0].cost.basis
    assert any("2025-06" in one and "shipped table" in one for one in found.sources)
    assert "2025-06" in money_section({"money": {**as_data(found, listed), "split": "dev", "spent": {}}})
    assert "table" not in cost_per_1k(scores("a", "prompt", 0.5), TOKENS).basis


# What training must bring


def test_the_gain_that_pays_by_hand() -> None:
    """12,000 requests, a right answer worth 0.01, training for 30, a tuned request 0.001 dearer: (30 + 12) / 120 = 0.35."""
    given = {"fixed": 30.0, "tuned": cost(0.003), "rival": cost(0.002)}
    assert gain_that_pays(0.03, TOKENS, YEAR, **given) == pytest.approx(0.35)
    # Ten times the traffic: (30 + 120) / 1200.
    more = YEAR.model_copy(update={"requests_per_month": 10_000})
    assert gain_that_pays(0.03, TOKENS, more, **given) == pytest.approx(0.125)
    # A cheaper request pays for the training by itself: what is asked for is what the team asks for.
    assert gain_that_pays(0.03, TOKENS, YEAR, fixed=30.0, tuned=cost(0.001), rival=cost(0.004)) == 0.03
    # Ten requests a month at the same prices: no gain pays.
    assert gain_that_pays(0.03, TOKENS, TrafficSpec(requests_per_month=10), **given) > 1


def test_with_and_without_prompt_caching_it_has_to_pay_under_both() -> None:
    """Without caching the tuned request is cheaper; with it, the rival's long prompt costs little, and the gain must carry it."""
    tuned, rival = cost(0.002, 0.0019), cost(0.004, 0.0009)
    assert gain_that_pays(0.03, TOKENS, YEAR, fixed=30.0, tuned=tuned, rival=rival) == pytest.approx((30 + 12) / 120)
    assert gain_that_pays(0.03, TOKENS, YEAR, fixed=30.0, tuned=cost(0.002), rival=cost(0.004)) == pytest.approx(6 / 120)


@pytest.mark.parametrize(
    "change",
    [{"fixed": None}, {"tuned": None}, {"rival": None}, {"tuned": cost(None)}, {"prices": PricesSpec()}, {"traffic": None}],
)
def test_what_is_not_priced_leaves_the_teams_own_gain(change: dict[str, object]) -> None:
    given = {"prices": TOKENS, "traffic": YEAR, "fixed": 1e9, "tuned": cost(1.0), "rival": cost(0.0), **change}
    assert gain_that_pays(0.03, given.pop("prices"), given.pop("traffic"), **given) == 0.03


def test_answers_that_are_worth_nothing_pay_for_nothing() -> None:
    worthless = PricesSpec(gpu_hour=1.0, right_answer=0.0)
    assert gain_that_pays(0.03, worthless, YEAR, fixed=1.0, tuned=cost(0.1), rival=cost(0.1)) == math.inf
    assert gain_that_pays(0.03, worthless, YEAR, fixed=0.0, tuned=cost(0.1), rival=cost(0.1)) == 0.03


money = st.floats(0, 1e3)
traffic = st.builds(TrafficSpec, requests_per_month=st.integers(1, 10**7), months=st.integers(1, 60))


@given(money, money, money, st.floats(1e-3, 10), traffic, st.floats(0, 1), st.floats(-1, 1))
def test_the_gain_that_pays_is_where_net_utilities_meet(
    fixed: float, tuned: float, rival: float, worth: float, used: TrafficSpec, score: float, more: float
) -> None:
    """Two formulas, written apart: at the gain that pays both candidates are worth the same; above it, the tuned one more."""
    prices = PricesSpec(gpu_hour=1.0, right_answer=worth)
    needed = gain_that_pays(0.0, prices, used, fixed=fixed, tuned=cost(tuned), rival=cost(rival))
    assume(needed > 0)
    plain = net_utility(score, rival, 0.0, used, prices)
    trained = net_utility(score + needed * (1 + more), tuned, fixed, used, prices)
    assert plain is not None
    assert trained is not None
    size = total_requests(used) * (worth * (1 + needed) + tuned + rival) + fixed
    assert trained - plain == pytest.approx(total_requests(used) * worth * needed * more, abs=1e-9 * size)


@given(money, money, money, money, traffic)
def test_more_traffic_never_asks_for_a_greater_gain_where_a_request_is_no_dearer(
    fixed: float, tuned: float, saved: float, worth: float, used: TrafficSpec
) -> None:
    prices = PricesSpec(gpu_hour=1.0, right_answer=worth)
    more = used.model_copy(update={"requests_per_month": 10 * used.requests_per_month})
    given = {"fixed": fixed, "tuned": cost(tuned), "rival": cost(tuned + saved)}
    assert gain_that_pays(0.03, prices, more, **given) <= gain_that_pays(0.03, prices, used, **given)


# When it has paid


def test_break_even_by_hand() -> None:
    found = break_even(10.0, 0.002, 0.001, YEAR)
    assert found == BreakEven(pytest.approx(10_000), pytest.approx(10 * DAYS), True)
    assert break_even(13.0, 0.002, 0.001, YEAR) == BreakEven(pytest.approx(13_000), pytest.approx(13 * DAYS), False)
    # All of a year's requests are a year.
    assert break_even(12.0, 0.002, 0.001, YEAR) == BreakEven(pytest.approx(12_000), pytest.approx(365), True)
    assert break_even(10.0, 0.002, 0.001, None) == BreakEven(pytest.approx(10_000))
    assert break_even(10.0, 0.001, 0.001, YEAR) == BreakEven(None)
    assert break_even(0.0, 0.002, 0.001, YEAR) == BreakEven(0.0, 0.0, True)
    # Upkeep of 6 over 12,000 requests takes half of what each saves; a gain of 5 points worth 0.01 brings 0.0005 more.
    assert break_even(10.0, 0.002, 0.001, YEAR, upkeep=6.0) == BreakEven(pytest.approx(20_000), pytest.approx(20 * DAYS), False)
    assert break_even(10.0, 0.001, 0.001, YEAR, worth=0.05 * 0.01) == BreakEven(
        pytest.approx(20_000), pytest.approx(20 * DAYS), False
    )
    for missing in ((None, 1.0, 0.5), (1.0, None, 0.5), (1.0, 1.0, None)):
        assert break_even(*missing, YEAR) is None
    assert break_even_requests(10.0, 0.002, 0.001) == pytest.approx(10_000)
    assert break_even_requests(10.0, 0.001, 0.002) is None


@given(st.integers(1, 60), st.integers(1, 24), st.integers(0, 100), st.floats(0, 1), money, money)
def test_keeping_alive_by_going_through_the_months(
    months: int, every: int, labels: int, share: float, training: float, indexing: float
) -> None:
    assume(training > 0)
    used = TrafficSpec(
        requests_per_month=1, months=months, retrain_every_months=every, labels_per_retraining=labels, documents_changed=share
    )
    prices = PricesSpec(gpu_hour=3600.0, label=2.0)
    trainings, paid, indexed = -1, 0.0, 0.0
    for month in range(months):
        indexed += share * indexing
        if month % every == 0:
            trainings += 1
            paid += training + 2.0 * labels if trainings else 0.0
    found = keeping_alive(used, prices, training_seconds=training, indexing_seconds=indexing)
    assert found.retrainings == trainings
    assert found.money == pytest.approx(paid + indexed)


def test_keeping_alive_is_not_free_where_it_has_no_price() -> None:
    used = TrafficSpec(requests_per_month=1, retrain_every_months=3, labels_per_retraining=10)
    assert keeping_alive(used, PricesSpec(gpu_hour=1.0), training_seconds=60.0).money is None
    assert keeping_alive(used, PricesSpec(label=1.0), training_seconds=60.0).money is None
    # Unchanged weights are not trained again, and nothing is asked of a task without traffic.
    assert keeping_alive(used, PricesSpec()).money == 0.0
    assert keeping_alive(None, PricesSpec(), training_seconds=60.0).money == 0.0


def test_sums_and_labels_without_a_price() -> None:
    assert (total(1.0, 2.0), total(1.0, None), total()) == (3.0, None, 0)
    assert settling(180, PricesSpec(label=0.2)) == pytest.approx(36)
    assert settling(180, PricesSpec(gpu_hour=1.0)) is None


def test_net_utility_is_none_where_anything_has_no_price() -> None:
    assert net_utility(0.8, 0.001, 5.0, YEAR, TOKENS) == pytest.approx(12_000 * (0.8 * 0.01 - 0.001) - 5)
    assert net_utility(0.8, None, 5.0, YEAR, TOKENS) is None
    assert net_utility(0.8, 0.001, None, YEAR, TOKENS) is None
    assert net_utility(0.8, 0.001, 5.0, None, TOKENS) is None
    assert net_utility(0.8, 0.001, 5.0, YEAR, PricesSpec(gpu_hour=1.0)) is None


# The report's section


def section(prices: PricesSpec, used: TrafficSpec | None, *candidates: Scores, **more: object) -> str:
    found = economics(candidates, prices, used, min_gain=0.03, **more)
    return money_section({"money": {**as_data(found, prices), "split": "dev", "spent": {}}})


def test_the_section_shows_both_break_evens_and_what_is_missing() -> None:
    tuned = scores("tuned", "tuned", 0.8, into=200, cached=50)
    rival = scores("few_shot_8", "prompt", 0.7, into=2000, cached=1900)
    text = section(TOKENS, YEAR, tuned, rival, pair=("tuned", "few_shot_8"), training_seconds=1000.0, gain_low=-0.02)
    found = economics([tuned, rival], TOKENS, YEAR, min_gain=0.03, pair=("tuned", "few_shot_8"), training_seconds=1000.0)
    # Training: 1,000 s at 0.001 a second. A request saves 1,800 tokens at 2.0, and with caching (100 - 150) * 2 + 1850 * 0.5.
    assert found.training == pytest.approx(1.0)
    assert found.even is not None
    assert found.even_cached is not None
    assert found.even.requests == pytest.approx(1.0 / 0.0036)
    assert found.even_cached.requests == pytest.approx(1.0 / ((-50 * 2 + 1850 * 0.5) / 1e6))
    assert "278 requests" in text
    assert "1,212 requests" in text
    assert "1,900" in text
    assert "worth less cost" in text
    assert found.bills[0].net == pytest.approx(12_000 * (0.8 * 0.01 - 480e-6) - 1.0)
    bare = section(PricesSpec(), None, tuned, rival, pair=("tuned", "few_shot_8"), training_seconds=1000.0)
    assert "per 1,000" not in bare
    assert "pays for itself" not in bare
    assert "neither tokens nor the machine's hour has a price" in bare
    assert "1,000 s" in bare


def test_an_index_that_changes_is_the_rivals_upkeep() -> None:
    changing = YEAR.model_copy(update={"documents_changed": 0.5})
    arms = [scores("tuned", "tuned", 0.8), scores("rag", "rag", 0.7)]
    given = {"min_gain": 0.03, "pair": ("tuned", "rag"), "training_seconds": 1000.0}
    without = economics(arms, TOKENS, changing, **given)
    found = economics(arms, TOKENS, changing, indexing_seconds=500.0, **given)
    # 12 months * half of 500 s at 0.001 a second are spared.
    assert found.pays == 0.03
    assert found.bills[0].net == pytest.approx(without.bills[0].net + 3.0)


def test_what_never_pays_is_said_so() -> None:
    arms = [scores("tuned", "tuned", 0.7, out=50), scores("p", "prompt", 0.7)]
    text = section(TOKENS, YEAR, *arms, pair=("tuned", "p"), training_seconds=1000.0)
    assert "never pays for itself" in text
    scarce = section(TOKENS, TrafficSpec(requests_per_month=1, months=1), *arms, pair=("tuned", "p"), training_seconds=1e5)
    assert "No gain in score pays" in scarce


def test_a_name_with_a_bar_leaves_the_table_whole() -> None:
    (row,) = [line for line in section(TOKENS, YEAR, scores("a|b", "prompt", 0.5)).splitlines() if "a\\|b" in line]
    head = next(line for line in section(TOKENS, YEAR, scores("a|b", "prompt", 0.5)).splitlines() if "candidate" in line)
    assert row.replace("\\|", "").count("|") == head.count("|")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0.00"), (1234.5, "1,234.50"), (-2, "-2.00"), (0.01234, "0.01234"), (3e-7, "3.00e-07")],
)
def test_amounts(value: float | None, shown: str) -> None:
    assert amount(value) == shown


def test_the_specs_of_the_task_take_all_of_it() -> None:
    spec = TaskSpec.model_validate(
        {
            "data": {"train": "x"},
            "model": {"model_name_or_path": "m"},
            "traffic": {
                "requests_per_month": 5,
                "retrain_every_months": 3,
                "labels_per_retraining": 9,
                "documents_changed": 0.1,
            },
            "prices": {"table": "l4", "label": 0.2, "right_answer": 0.05},
        }
    )
    assert spec.prices.gpu_hour == price_table()["l4"].prices["gpu_hour"]
    with pytest.raises(ValidationError):
        PricesSpec(table="")


def journey(*test: Scores, trained: bool = True) -> Any:
    """What the section reads of a journey, without the journey."""
    spec = SimpleNamespace(prices=TOKENS, traffic=YEAR, gate=SimpleNamespace(min_gain=0.03))
    spent = {
        "requests": 500.0,
        "model_seconds": 60.0,
        "probe_training_seconds": 100.0,
        "race_answers": 9.0,
        "search_requests": 0.0,
    }
    return SimpleNamespace(
        task=SimpleNamespace(spec=spec),
        arms=(scores("p", "prompt", 0.6),),
        reevaluated=SimpleNamespace(test=test, claim=SimpleNamespace(low=0.05)) if test else None,
        trained=SimpleNamespace(seconds=1000.0) if trained else None,
        recommendation=SimpleNamespace(spent=spent),
    )


def test_the_journey_s_section_is_of_the_claim_where_weights_changed_and_of_the_table_alone_elsewhere() -> None:
    tuned, rival = scores("tuned", "tuned", 0.8, into=200), scores("p", "prompt", 0.7)
    found = build_money(journey(tuned, rival))
    assert found is not None
    assert (found["split"], found["tuned"], found["rival"]) == ("test", "tuned", "p")
    assert found["even_worth_low"]["requests"] == pytest.approx(1.0 / (0.0016 + 0.05 * 0.01))
    text = money_section({"money": found})
    assert "500 requests to the model" in text
    assert "100 s of training (0.1)." in text
    # An adapter that lies there unused is no side of the claim.
    unused = build_money(journey(rival, scores("q", "prompt", 0.6)))
    assert unused is not None
    assert (unused["tuned"], unused["training_seconds"], unused["even"]) == ("", 0.0, None)
    assert "Training took" not in money_section({"money": unused})
    on_dev = build_money(journey(trained=False))
    assert on_dev is not None
    assert (on_dev["split"], [one["candidate"] for one in on_dev["bills"]]) == ("dev", ["p"])
    assert money_section({"money": None}) == ""


def test_to_calibrate_is_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "triage", "--calibrate"]) == 2
    assert "--dry-run" in capsys.readouterr().err
