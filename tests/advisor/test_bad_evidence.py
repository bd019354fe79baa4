"""Evidence that carries nothing: whatever it is, the advice is a sentence that says so, and never a sure claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from advisor.decision.evidence import Evidence, Trained, TrainingPlan
from advisor.decision.recommend import Recommendation, recommend
from evals.errors import AdvisorError
from evals.scores import Score, Scores
from evals.task.spec import PricesSpec, TrafficSpec

PLAN = TrainingPlan(100, 60.0, ())


def scores(name: str, kind: str, values: Sequence[float]) -> Scores:
    return Scores(name, kind, "dev", "accuracy", tuple(Score(str(at), one, "x", 10, 5, 0.1) for at, one in enumerate(values)))


def advised(trivial: Sequence[float], prompt: Sequence[float], tuned: Sequence[float], **more: object) -> Recommendation:
    arms = (scores("empty", "trivial", trivial), scores("zero_shot", "prompt", prompt))
    trained = (Trained(100, 0, True, scores("tuned", "tuned", tuned)),)
    return recommend(Evidence(arms, 100, trained=trained, plan=PLAN, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_items_never_carries_a_sure_claim(n: int) -> None:
    for prompt, tuned in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)):
        found = advised([0.0] * n, [prompt] * n, [tuned] * n)
        assert not found.sure
        assert f"{n} dev items carry hardly any claim" in " ".join(found.cannot_tell)
        assert (found.action, found.reasons[0].rule) == ("undecided", "too_few_items")
        for one in found.comparisons:
            assert -1 <= one.low <= one.difference <= one.high <= 1


def test_on_twelve_items_it_stays_open_whether_anything_was_learnt() -> None:
    found = advised([0.0] * 12, [0.4, 0.0, 1.0, *[0.0] * 9], [0.2, *[0.0] * 11])
    assert found.action == "undecided"
    assert "more dev items" in found.reasons[0].sentence
    assert any("more labelled dev items" in one for one in found.settle)


def test_all_scores_alike_and_all_zero_are_said() -> None:
    zero = advised([0.0] * 60, [0.0] * 60, [0.0] * 60)
    assert zero.action == "collect_data"
    assert "every candidate scores 0" in zero.cannot_tell[0]
    alike = advised([1.0] * 60, [1.0] * 60, [1.0] * 60)
    assert alike.action in {"collect_data", "no_llm"}
    assert "all candidates score alike" in alike.cannot_tell[0]


def test_a_score_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(AdvisorError, match=r"zero_shot has the score nan for item 3"):
        advised([0.0] * 10, [1.0, 1.0, 1.0, math.nan, *[1.0] * 6], [1.0] * 10)


def test_candidates_that_were_scored_on_different_items_are_refused() -> None:
    with pytest.raises(AdvisorError, match="not scored on the same items"):
        advised([0.0] * 10, [1.0] * 10, [1.0] * 11)
    arms = [scores("empty", "trivial", [0.0] * 4), scores("zero_shot", "prompt", [1.0] * 4)]
    other = replace(arms[1], items=tuple(replace(one, id=f"other-{one.id}") for one in arms[1].items))
    with pytest.raises(AdvisorError, match="not scored on the same items"):
        recommend(Evidence((arms[0], other), 100))


def test_without_prices_nothing_is_said_of_money() -> None:
    found = advised([0.0] * 80, [0.5, 0.0] * 40, [1.0, 0.9] * 40, traffic=TrafficSpec(requests_per_month=1000))
    text = " ".join([*(one.sentence for one in found.reasons), *found.would_change, *found.settle])
    assert "price of" not in text
    assert found.action == "fine_tune"
    priced = advised([0.0] * 80, [1.0, 0.0] * 40, [0.0, 1.0] * 40, prices=PricesSpec(label=2.0))
    assert any("at the stated price of a label" in one for one in (*priced.settle, *priced.would_change))
