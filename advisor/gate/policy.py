"""A rule passes when its whole interval is on the right side of its limit, fails when all of it is on the wrong side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advisor.decision.compare import Comparison
from advisor.decision.cost import cost_per_1k, request_cost
from advisor.decision.forgetting import Benchmark
from advisor.decision.outcome import JudgeState
from evals.scores import Scores
from evals.statistics.margin import NonInferiority
from evals.statistics.paired import FEW_ITEMS, mean_interval
from evals.task.spec import GateSpec, PricesSpec

Answer = Literal["pass", "fail", "inconclusive", "not_applicable"]
EXIT_CODES: dict[str, int] = {"pass": 0, "not_applicable": 0, "fail": 100, "inconclusive": 101}


@dataclass(frozen=True)
class RuleVerdict:
    """`value` with its interval [`low`, `high`] against `limit`; `sentence` says it in words."""

    rule: str
    value: float
    low: float
    high: float
    limit: float
    verdict: Answer
    sentence: str


@dataclass(frozen=True)
class Verdict:
    verdict: Answer
    rules: tuple[RuleVerdict, ...]
    sentence: str

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def at_least(rule: str, value: float, low: float, high: float, limit: float, sentence: str) -> RuleVerdict:
    answer: Answer = "pass" if low > limit else "fail" if high < limit else "inconclusive"
    return RuleVerdict(rule, value, low, high, limit, answer, sentence)


def at_most(rule: str, value: float, low: float, high: float, limit: float, sentence: str) -> RuleVerdict:
    answer: Answer = "pass" if high < limit else "fail" if low > limit else "inconclusive"
    return RuleVerdict(rule, value, low, high, limit, answer, sentence)


def decide(
    gate: GateSpec,
    gain: Comparison,
    forgetting: NonInferiority,
    tuned: Scores,
    prices: PricesSpec,
    benchmarks: Sequence[Benchmark] = (),
    clean: Comparison | None = None,
    judge: JudgeState | None = None,
) -> Verdict:
    """The verdict on a tuned model: gain on the locked test, pooled loss on general benchmarks, cost of a request.

    `benchmarks` are the single ones; only those that the policy names have a rule. `clean` is the gain without the test items that
    leak: the same limit holds for it. `judge`: where a judge's scores decide and people have not calibrated it, nothing passes on its
    word.
    """
    rules = [
        at_least(
            "min_gain",
            gain.difference,
            gain.low,
            gain.high,
            gate.min_gain,
            f"gain of {gain.a} on {gain.b}, locked test, n = {gain.n}, 95% interval",
        ),
        at_most(
            "max_forgetting",
            -forgetting.estimate,
            -forgetting.high,
            -forgetting.low,
            gate.max_forgetting,
            f"loss on general benchmarks, pooled, n = {forgetting.n}, one-sided 95% bounds: "
            f"no greater loss than the margin {forgetting.answer}",
        ),
    ]
    measured = {one.task: one for one in benchmarks}
    rules += [_benchmark_rule(name, limit, measured.get(name)) for name, limit in gate.benchmarks.items()]
    if clean is not None:
        sentence = f"the same without the {gain.n - clean.n} test items that stand nearly alike in train or dev, n = {clean.n}"
        rules.append(at_least("min_gain_untainted", clean.difference, clean.low, clean.high, gate.min_gain, sentence))
    if judge is not None:
        answer: Answer = "pass" if judge.calibrated else "inconclusive"
        rules.append(
            RuleVerdict("judge_calibrated", judge.labelled, judge.labelled, judge.labelled, FEW_ITEMS, answer, judge.sentence)
        )
    if gate.max_cost_per_1k is not None:
        rules.append(_cost_rule(gate.max_cost_per_1k, tuned, prices))
    return Verdict(overall(rules), tuple(rules), "the tuned model against the team's policy")


def overall(rules: Sequence[RuleVerdict]) -> Answer:
    answers = {rule.verdict for rule in rules}
    return "fail" if "fail" in answers else "inconclusive" if "inconclusive" in answers else "pass"


def _benchmark_rule(name: str, limit: float, measured: Benchmark | None) -> RuleVerdict:
    rule = f"max_forgetting.{name}"
    if measured is None or measured.change is None:
        # What was not measured was not kept.
        why = "is not in the suite that was measured" if measured is None else "has no item that is not in the training rows"
        return RuleVerdict(rule, 0.0, -1.0, 1.0, limit, "inconclusive", f"the benchmark {name} {why}")
    found = measured.change
    sentence = f"loss on {name} alone, n = {found.n}, one-sided 95% bounds"
    return at_most(rule, -found.estimate, -found.high, -found.low, limit, sentence)


def _cost_rule(limit: float, tuned: Scores, prices: PricesSpec) -> RuleVerdict:
    each = [request_cost(item, prices) for item in tuned.items]
    costs = [1000 * one for one in each if one is not None]
    if len(costs) < len(each):
        # What is not priced is not free.
        return RuleVerdict("max_cost_per_1k", 0.0, 0.0, 0.0, limit, "inconclusive", "a request has no price in the task file")
    # The interval is made for scores in [0, 1]: costs are scaled to it and back.
    scale = max(*costs, 1e-12)
    interval = mean_interval([cost / scale for cost in costs])
    return at_most(
        "max_cost_per_1k",
        interval.estimate * scale,
        interval.low * scale,
        interval.high * scale,
        limit,
        f"cost of 1,000 requests to {tuned.candidate} by {cost_per_1k(tuned, prices).basis}, n = {interval.n}, 95% interval",
    )


def not_applicable(action: str) -> Verdict:
    return Verdict("not_applicable", (), f"the recommendation is {action}: no weights were changed, nothing to gate")
