"""A rule passes, fails or stays open by where its whole interval lies; exit codes follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.decision.compare import Comparison
from advisor.gate.policy import decide, not_applicable
from evals.scores import Score, Scores
from evals.statistics.margin import non_inferiority
from evals.task.spec import GateSpec, PricesSpec

GAIN = Comparison("tuned", "p", "test", "accuracy", 90, 0.2, 0.1, 0.3, 0.001, 0.001)
TUNED = Scores("tuned", "tuned", "test", "accuracy", tuple(Score(str(i), 1.0, "", 100, 10, 0.1) for i in range(10)))
KEPT = non_inferiority([1.0] * 400 + [0.0] * 200, [1.0] * 400 + [0.0] * 200, 0.05)
LOST = non_inferiority([0.0] * 200 + [1.0] * 400, [1.0] * 600, 0.05)
GATE = GateSpec(min_gain=0.03, max_forgetting=0.05)


def test_pass() -> None:
    verdict = decide(GATE, GAIN, KEPT, TUNED, PricesSpec())
    assert (verdict.verdict, verdict.exit_code) == ("pass", 0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.031, 0.3, "pass"), (0.02, 0.3, "inconclusive"), (-0.1, 0.02, "fail"), (0.03, 0.3, "inconclusive")],
)
def test_gain_needs_its_whole_interval_beyond_the_limit(low: float, high: float, expected: str) -> None:
    verdict = decide(GATE, replace(GAIN, low=low, high=high), KEPT, TUNED, PricesSpec())
    assert verdict.verdict == expected
    assert verdict.exit_code == {"pass": 0, "fail": 100, "inconclusive": 101}[expected]


def test_forgetting_fails_the_gate_however_great_the_gain() -> None:
    verdict = decide(GATE, GAIN, LOST, TUNED, PricesSpec())
    rule = next(one for one in verdict.rules if one.rule == "max_forgetting")
    assert (verdict.verdict, rule.verdict) == ("fail", "fail")
    assert rule.value == pytest.approx(1 / 3)
    assert rule.low < rule.value < rule.high


def test_few_general_items_are_inconclusive_not_a_pass() -> None:
    few = non_inferiority([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], 0.05)
    assert decide(GATE, GAIN, few, TUNED, PricesSpec()).verdict == "inconclusive"


def test_cost_rule() -> None:
    prices = PricesSpec(input_per_million=1.0, output_per_million=1.0)
    cost = 1000 * 110 / 1e6
    for limit, expected in ((cost * 2, "pass"), (cost / 2, "fail")):
        verdict = decide(GateSpec(max_cost_per_1k=limit), GAIN, KEPT, TUNED, prices)
        rule = next(one for one in verdict.rules if one.rule == "max_cost_per_1k")
        assert rule.value == pytest.approx(cost)
        assert rule.verdict == expected, (rule, limit)


def test_nothing_trained_is_not_applicable_and_passes_ci() -> None:
    assert not_applicable("prompt").exit_code == 0


def test_a_request_that_has_no_price_is_not_free() -> None:
    for prices in (PricesSpec(), PricesSpec(label=0.2), PricesSpec(right_answer=1.0)):
        verdict = decide(GateSpec(max_cost_per_1k=0.5), GAIN, KEPT, TUNED, prices)
        rule = next(one for one in verdict.rules if one.rule == "max_cost_per_1k")
        assert (rule.verdict, verdict.verdict) == ("inconclusive", "inconclusive")
