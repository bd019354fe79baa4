"""Evidence is bought cheapest first, and no more of it than the answer hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from advisor.decision.advise import gathered, next_purchase
from advisor.decision.evidence import Evidence, Purchase, Trained, TrainingPlan
from advisor.decision.pays import gain_that_pays
from advisor.decision.recommend import recommend
from evals.scores import Score, Scores
from evals.task.spec import PricesSpec, TrafficSpec

SMALL = TrainingPlan(300, 60.0, ((75, 40.0), (150, 50.0)))
LARGE = TrainingPlan(10_000, 3600.0, ((625, 60.0), (1250, 60.0), (2500, 60.0), (5000, 60.0)))
# Enough machine time and worth that a training pays in months, not in days.
PRICES = PricesSpec(gpu_hour=2.0, right_answer=0.01)


def arm(name: str, kind: str, right: int, n: int = 100) -> Scores:
    """The first `right` of `n` items are right: candidates are nested, so that differences are as sure as they can be."""
    items = tuple(Score(str(at), float(at < right), "x", 100, 10, 0.01) for at in range(n))
    return Scores(name, kind, "dev", "accuracy", items)


def first(right: int, plan: TrainingPlan | None, *kinds: str, **more: object) -> Evidence:
    arms = (arm("empty", "trivial", 0), arm("zero_shot", "prompt", right), *(arm(kind, kind, right) for kind in kinds))
    return Evidence(arms, plan.rows if plan else 0, plan=plan, **more)  # type: ignore[arg-type]


class Shop:
    """Sells what is asked for: trainings whose score is a function of their rows, and empty probes."""

    def __init__(self, score: dict[int, int]) -> None:
        self.score, self.sold = score, list[Purchase]()

    def __call__(self, wanted: Purchase, evidence: Evidence) -> Evidence:
        self.sold.append(wanted)
        if wanted.what != "training":
            return evidence
        scores = arm(f"tuned_{wanted.rows}", "tuned", self.score[wanted.rows])
        return replace(evidence, trained=(*evidence.trained, Trained(wanted.rows, wanted.seed, wanted.full, scores)))

    @property
    def trainings(self) -> list[tuple[int, int, bool]]:
        return [(one.rows, one.seed, one.full) for one in self.sold if one.what == "training"]


def names(sold: Sequence[Purchase]) -> list[str]:
    return [one.what for one in sold]


def test_probes_come_before_training_and_everything_is_bought_once() -> None:
    shop = Shop({300: 90})
    found = gathered(first(50, SMALL, "rag"), shop)
    assert names(shop.sold) == ["knowledge", "perfect_search", "obedience", "shots", "training"]
    assert shop.trainings == [(300, 0, True)]
    assert found.bought == tuple(shop.sold)
    assert next_purchase(found) is None
    assert recommend(found).action == "fine_tune"


def test_without_documents_nothing_is_asked_of_retrieval_and_of_a_server_no_training() -> None:
    shop = Shop({})
    gathered(replace(first(50, None), served=True), shop)
    assert names(shop.sold) == ["knowledge", "shots"]


def test_a_target_that_is_reached_ends_the_search() -> None:
    shop = Shop({})
    found = gathered(first(90, SMALL, target=0.7), shop)
    assert not shop.sold
    assert recommend(found).reasons[0].rule == "target_reached"


def test_nothing_is_bought_for_a_dev_split_that_can_tell_nothing() -> None:
    arms = (arm("empty", "trivial", 0, 5), arm("zero_shot", "prompt", 3, 5))
    assert next_purchase(Evidence(arms, 300, plan=SMALL)) is None


@pytest.mark.parametrize(
    ("scores", "trainings", "actions"),
    [
        # Far ahead on every subset: the full run is recommended without a further point.
        ({625: 80, 1250: 84, 2500: 88}, 4, {"fine_tune"}),
        # Far behind, and hardly rising: it stops before the half.
        ({625: 10, 1250: 10, 2500: 11}, 4, {"prompt"}),
        # Rising towards the best arm: the half is bought.
        ({625: 40, 1250: 44, 2500: 49, 5000: 52}, 5, {"fine_tune", "prompt", "undecided"}),
    ],
)
def test_the_curve_is_bought_until_it_answers(scores: dict[int, int], trainings: int, actions: set[str]) -> None:
    shop = Shop(scores)
    found = recommend(gathered(first(52, LARGE), shop))
    assert shop.trainings[:4] == [(625, 0, False), (1250, 0, False), (2500, 0, False), (2500, 1, False)]
    assert len(shop.trainings) == trainings
    assert found.action in actions
    # A forecast is no measurement.
    assert found.action != "fine_tune" or not found.sure


def test_samples_are_drawn_only_where_a_reward_could_be_the_answer() -> None:
    reached_by_nobody = first(50, SMALL, target=0.95, verifiable=True)
    for evidence, asked in (
        (reached_by_nobody, True),
        (replace(reached_by_nobody, verifiable=False), False),
        (replace(reached_by_nobody, target=None), False),
    ):
        shop = Shop({300: 50})
        gathered(evidence, shop)
        assert ("samples" in names(shop.sold)) is asked


def test_training_that_cannot_pay_at_this_traffic_is_not_tried_and_more_traffic_changes_that() -> None:
    """By hand: 60 s at 2.00 an hour cost 0.0333; 10 requests at 0.01 bring at most 0.10, so 33 points would have to be gained."""
    few = first(80, SMALL, prices=PRICES, traffic=TrafficSpec(requests_per_month=10, months=1))
    assert gain_that_pays(few, few.arms[1]) == pytest.approx(60 / 3600 * 2 / 0.1)
    shop = Shop({300: 100})
    found = recommend(gathered(few, shop))
    assert shop.trainings == []
    assert found.action == "prompt"
    assert "training_cannot_pay" in [one.rule for one in found.reasons]
    assert any("leaves less to gain" in one for one in found.cannot_tell)
    (variation,) = [one for one in found.sensitivity if one.change == "traffic x10"]
    assert "training would be tried" in variation.sentence
    many = replace(few, traffic=TrafficSpec(requests_per_month=100_000))
    assert gain_that_pays(many, many.arms[1]) == few.min_gain
    assert recommend(gathered(many, Shop({300: 100}))).action == "fine_tune"


def test_a_higher_target_is_answered_on_the_same_evidence() -> None:
    found = recommend(gathered(first(90, SMALL, target=0.8), Shop({})))
    (variation,) = found.sensitivity
    assert variation.change == "target +5 points (0.85)"
    # 90 of 100 have a lower bound of about 0.83.
    assert "training would be tried" in variation.sentence or variation.action != "prompt"


def test_what_is_open_is_priced() -> None:
    evidence = first(50, SMALL, prices=PricesSpec(label=0.2))
    found = recommend(gathered(evidence, Shop({300: 55})))
    assert not found.sure
    assert any("more labelled dev items (" in one and "price of a label" in one for one in found.settle)
