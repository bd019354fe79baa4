"""What is made of general scores: the pooled answer, single benchmarks after Holm, turned items, calibration. No model is asked."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from advisor.decision.compare import Comparison
from advisor.decision.forgetting import ALPHA, Benchmark, Forgetting, forgetting
from advisor.gate.policy import decide
from evals.errors import AdvisorError
from evals.general.lm_eval import GeneralItem, GeneralScores
from evals.general.suites import GeneralTask, Suite
from evals.scores import Score, Scores
from evals.statistics.calibration import calibration, calibration_error
from evals.statistics.margin import loss_found, non_inferiority, p_beyond
from evals.statistics.paired import tango_interval
from evals.task.spec import GateSpec, PricesSpec

MARGIN = 0.05


def suite_of(*names: str, reported: Sequence[str] = ()) -> Suite:
    return Suite("made", tuple(GeneralTask(one, {}, 0, False, "", one not in reported, 0.25) for one in names))


def answers(model: str, **scores: Sequence[float]) -> GeneralScores:
    """One score an item; ids are of task and place. What it says is its score."""
    items = [
        GeneralItem(f"{task}-{at}", task, one, f"says {one}", 0.9) for task, row in scores.items() for at, one in enumerate(row)
    ]
    return GeneralScores(model, "made", tuple(items))


def turned(n: int, lost: int, won: int, right: int = 0) -> tuple[list[float], list[float]]:
    """Scores of n items of which `lost` and `won` turn; of the others `right` are right in both."""
    base = [1.0] * lost + [0.0] * won + [1.0] * right
    tuned = [0.0] * lost + [1.0] * won + [1.0] * right
    rest = [0.0] * (n - len(base))
    return base + rest, tuned + rest


def of_turned(n: int, lost: int, won: int, right: int = 200) -> Forgetting:
    base, tuned = turned(n, lost, won, right)
    return forgetting(answers("base", a=base), answers("tuned", a=tuned), suite_of("a"), MARGIN)


@pytest.mark.parametrize(
    ("lost", "won", "expected"), [(80, 10, "broken"), (20, 20, "holds"), (0, 0, "holds"), (40, 15, "undecided")]
)
def test_a_planted_loss_is_found_and_none_is_made_up(lost: int, won: int, expected: str) -> None:
    found = of_turned(600, lost, won)
    assert found.pooled.answer == expected
    assert found.pooled.estimate == pytest.approx((won - lost) / 600)
    assert (found.pooled.more_items or 0) > 0 or expected != "undecided"
    # The same draw by another way: the one-sided test of the paired differences, normal.
    spread = math.sqrt((lost + won) / 600 - ((won - lost) / 600) ** 2)
    z = ((won - lost) / 600 + MARGIN) * math.sqrt(600) / max(spread, 1e-9)
    assert {"holds": z > 1.5, "broken": z < -1.5, "undecided": abs(z) < 1.8}[expected]


def test_few_items_without_a_single_loss_are_not_called_no_loss() -> None:
    base, tuned = turned(20, 0, 0, 10)
    found = forgetting(answers("base", a=base), answers("tuned", a=tuned), suite_of("a"), MARGIN)
    assert found.pooled.answer == found.benchmarks[0].answer == "undecided"
    assert found.pooled.more_items


def test_only_pooled_benchmarks_decide_and_the_others_are_reported() -> None:
    base, tuned = turned(400, 4, 4, 300)
    ruined = turned(200, 150, 0)
    before, after = answers("base", a=base, german=ruined[0]), answers("tuned", a=tuned, german=ruined[1])
    found = forgetting(before, after, suite_of("a", "german", reported=["german"]), MARGIN)
    assert (found.pooled.n, found.pooled.answer) == (400, "holds")
    assert (found.base, found.tuned) == (pytest.approx(304 / 400), pytest.approx(304 / 400))
    german = found.benchmarks[1]
    assert (german.n, german.lost, german.won, german.answer, german.pooled) == (200, 150, 0, "broken", False)
    assert found.broken == (german,)


def score_test(lost: int, won: int, n: int, margin: float) -> float:
    """One-sided p of Tango's score statistic at a difference of minus the margin, its nuisance by search instead of by formula."""
    delta = -margin

    def likelihood(q: float) -> float:
        # P(won) = q + delta, P(lost) = q.
        return won * math.log(max(q + delta, 1e-300)) + lost * math.log(q) + (n - won - lost) * math.log(1 - 2 * q - delta)

    low, high = margin + 1e-9, (1 - delta) / 2 - 1e-9
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    variance = (2 * low + delta - delta**2) / n
    return NormalDist().cdf(((won - lost) / n - delta) / math.sqrt(variance))


@pytest.mark.parametrize(("lost", "won", "n"), [(30, 5, 134), (18, 3, 134), (14, 2, 134), (12, 9, 134), (60, 20, 600)])
def test_the_p_value_of_a_loss_beyond_the_margin_is_the_score_test_s(lost: int, won: int, n: int) -> None:
    base, tuned = turned(n, lost, won, 20)
    assert p_beyond(tuned, base, MARGIN) == pytest.approx(score_test(lost, won, n, MARGIN), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("n", "margin"), [(674, 0.05), (150, 0.1)])
def test_the_loss_that_is_promised_to_be_found_is_found_four_times_in_five(n: int, margin: float) -> None:
    loss = loss_found(n, margin)
    drawn, changed = np.random.default_rng(1), 0.15 + loss
    draws = drawn.multinomial(n, [(changed + loss) / 2, (changed - loss) / 2, 1 - changed], size=800)
    broken = [tango_interval(int(won), int(lost), n, 0.9)[1] < -margin for lost, won, _ in draws]
    assert sum(broken) / 800 == pytest.approx(0.8, abs=0.04)
    assert loss_found(n * 4, margin) < loss
    for wrong in ({"n": 0}, {"margin": 0.0}, {"power": 1.0}):
        with pytest.raises(ValueError, match="out of range"):
            loss_found(**{"n": n, "margin": margin, **wrong})  # type: ignore[arg-type]


def test_the_p_value_agrees_with_the_answer_where_scores_are_no_zeros_and_ones() -> None:
    from scipy.stats import ttest_1samp

    drawn = random.Random(0)
    base = [drawn.random() for _ in range(80)]
    for shift in (0.0, 0.06, 0.15):
        tuned = [max(0.0, one - shift + drawn.gauss(0, 0.1)) for one in base]
        theirs = ttest_1samp([b - a for a, b in zip(base, tuned, strict=True)], -MARGIN, alternative="less").pvalue
        ours = p_beyond(tuned, base, MARGIN)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-8)
        assert (ours < 0.05) == (non_inferiority(tuned, base, MARGIN).answer == "broken")


def test_single_benchmarks_are_broken_only_after_holm() -> None:
    from statsmodels.stats.multitest import multipletests

    losses = {"a": (14, 1), "b": (15, 2), "c": (30, 1), "d": (3, 3), "e": (0, 2)}
    pairs = {name: turned(134, lost, won, 60) for name, (lost, won) in losses.items()}
    found = forgetting(
        answers("base", **{name: base for name, (base, _) in pairs.items()}),
        answers("tuned", **{name: tuned for name, (_, tuned) in pairs.items()}),
        suite_of(*losses),
        MARGIN,
    )
    raw = [p_beyond(tuned, base, MARGIN) for base, tuned in pairs.values()]
    assert [one.p_adjusted for one in found.benchmarks] == pytest.approx(multipletests(raw, method="holm")[1])
    by_name = {one.task: one for one in found.benchmarks}
    # Alone it would be called broken; beside four others it is not.
    assert by_name["a"].change is not None
    assert by_name["a"].change.answer == "broken"
    assert by_name["a"].p_adjusted >= ALPHA > raw[0]
    assert by_name["a"].answer == "undecided"
    assert [one.task for one in found.broken] == ["c"]


def test_items_that_stand_in_the_training_rows_are_left_out_and_counted() -> None:
    base, tuned = turned(300, 40, 0, 200)
    learnt = {f"a-{at}" for at in range(40)} | {"b-0", "b-1", "elsewhere"}
    few = turned(2, 1, 0)
    found = forgetting(
        answers("base", a=base, b=few[0]), answers("tuned", a=tuned, b=few[1]), suite_of("a", "b"), MARGIN, excluded=learnt
    )
    assert (found.excluded, found.pooled.n, found.pooled.estimate, found.lost) == (42, 260, 0.0, ())
    a, b = found.benchmarks
    assert (a.excluded, a.n, a.lost) == (40, 260, 0)
    # Nothing is left of the second: nothing is said of it.
    assert (b.excluded, b.n, b.change, b.answer, b.calibration) == (2, 0, None, "undecided", None)
    nothing = forgetting(answers("base", b=few[0]), answers("tuned", b=few[1]), suite_of("b"), MARGIN, excluded=learnt)
    assert (nothing.pooled.answer, nothing.pooled.low, nothing.pooled.high, nothing.pooled.n) == ("undecided", -1.0, 1.0, 0)


def test_items_that_turned_stand_side_by_side_whatever_order_they_came_in() -> None:
    base = answers("base", a=[1.0, 0.0, 1.0, 0.5])
    tuned = answers("tuned", a=[0.0, 1.0, 1.0, 0.25])
    shuffled = replace(tuned, items=tuned.items[::-1])
    found = forgetting(base, shuffled, suite_of("a"), MARGIN, asked={"a-0": "Who?"})
    assert found == forgetting(base, tuned, suite_of("a"), MARGIN, asked={"a-0": "Who?"})
    assert [(one.id, one.asked, one.base, one.tuned, one.by) for one in found.lost] == [
        ("a-0", "Who?", "says 1.0", "says 0.0", -1.0),
        ("a-3", "", "says 0.5", "says 0.25", -0.25),
    ]
    assert [one.id for one in found.won] == ["a-1"]


def test_other_items_are_never_compared() -> None:
    base = answers("base", a=[1.0, 0.0])
    for tuned in (answers("tuned", a=[1.0]), answers("tuned", b=[1.0, 0.0]), replace(base, items=(*base.items, base.items[0]))):
        with pytest.raises(AdvisorError, match="not asked the same general items"):
            forgetting(base, tuned, suite_of("a", "b"), MARGIN)


def test_answers_in_words_are_those_that_are_written() -> None:
    chosen = GeneralItem("a-0", "a", 1.0, "a chosen option", 0.7)
    written = [GeneralItem("b-0", "b", 1.0, "one two three"), GeneralItem("b-1", "b", 0.0, "")]
    likelihood = GeneralItem("c-0", "c", 1.0, "-3.2100")
    base = GeneralScores("base", "made", (chosen, *written, likelihood))
    found = forgetting(base, replace(base, model="tuned"), suite_of("a", "b", "c"), MARGIN)
    assert found.drift is not None
    assert (found.drift.n, found.drift.words.base, found.drift.empty.base) == (2, 1.5, 0.5)
    assert found.calibration is not None
    assert found.calibration.n == 1


def test_the_calibration_error_is_guo_s() -> None:
    # Two bins: (.5, .6] with two items of which one is right, (.9, 1] with three of which two are.
    sure, right = [0.55, 0.6, 0.95, 1.0, 0.91], [1.0, 0.0, 1.0, 0.0, 1.0]
    by_hand = (2 * abs(1 / 2 - 1.15 / 2) + 3 * abs(2 / 3 - 2.86 / 3)) / 5
    assert calibration_error(sure, right) == pytest.approx(by_hand)
    assert calibration_error([0.0, 1.0], [0.0, 1.0]) == 0.0
    # A tenth is in the bin that ends with it.
    assert calibration_error([0.1, 0.05], [1.0, 0.0]) == pytest.approx(abs(1 - 0.15) / 2)
    for wrong in (([1.2], [1.0]), ([math.nan], [1.0]), ([], []), ([0.5], [1.0, 0.0])):
        with pytest.raises(ValueError):  # noqa: PT011
            calibration_error(*wrong)


def test_a_model_that_has_become_too_sure_is_shown_to_be() -> None:
    drawn = random.Random(3)
    sure = [0.3 + 0.6 * drawn.random() for _ in range(4000)]
    right = [float(drawn.random() < one) for one in sure]
    found = calibration((sure, right), ([min(1.0, one + 0.1) for one in sure], right))
    assert found.tuned > found.base + 0.05
    assert found.difference == pytest.approx(0.1, abs=0.01)
    assert found.low > 0.05
    assert found.too_sure[1] - found.too_sure[0] == pytest.approx(found.difference)
    same = calibration((sure, right), (sure, right))
    assert same.low <= 0.0 == same.difference <= same.high


GAIN = Comparison("tuned", "p", "test", "accuracy", 90, 0.2, 0.1, 0.3, 0.001, 0.001)
TUNED = Scores("tuned", "tuned", "test", "accuracy", tuple(Score(str(i), 1.0, "", 100, 10, 0.1) for i in range(10)))


@pytest.mark.parametrize(
    ("named", "expected"),
    [({}, "pass"), ({"b": 0.1}, "fail"), ({"b": 0.5}, "pass"), ({"a": 0.05}, "pass"), ({"c": 0.1}, "inconclusive")],
)
def test_a_single_benchmark_gates_only_where_the_policy_names_it(named: dict[str, float], expected: str) -> None:
    base, tuned = turned(900, 5, 5, 600)
    lost = turned(134, 34, 0, 50)
    found = forgetting(answers("base", a=base, b=lost[0]), answers("tuned", a=tuned, b=lost[1]), suite_of("a", "b"), MARGIN)
    verdict = decide(GateSpec(benchmarks=named), GAIN, found.pooled, TUNED, PricesSpec(), benchmarks=found.benchmarks)
    assert found.pooled.answer == "holds"
    assert verdict.verdict == expected
    rules = [one for one in verdict.rules if one.rule.startswith("max_forgetting.")]
    assert len(rules) == len(named)
    if expected == "fail":
        assert rules[0].value == pytest.approx(34 / 134)
        assert rules[0].low > 0.1
    b: Benchmark = found.benchmarks[1]
    assert b.answer == "broken"
