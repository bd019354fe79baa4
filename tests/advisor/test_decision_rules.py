"""The recommendation follows the measured effect, whatever the candidates are called."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.decision.compare import compare
from advisor.decision.cost import break_even_requests, cheapness, cost_per_1k
from advisor.decision.evidence import Evidence, Trained, TrainingPlan
from advisor.decision.raced import Left
from advisor.decision.recommend import Recommendation, recommend
from advisor.flow.reevaluation import _compared
from baselines.probes import HOLDS_ANSWER
from evals.errors import AdvisorError
from evals.scores import Score, Scores
from evals.task.load import load_task
from evals.task.spec import PricesSpec


def arm(name: str, kind: str, rate: float, n: int = 100, *, tokens: int = 100, seed: int = 0) -> Scores:
    """`n` binary scores, a share of `rate` right, spread by a seed of its own so that arms are not nested."""
    right = [1.0] * round(rate * n) + [0.0] * (n - round(rate * n))
    random.Random(f"{name}{seed}").shuffle(right)
    items = tuple(
        Score(str(i), s, "x", tokens, 10, 0.1 if tokens else 0.0001, "", {"tolerant": s}) for i, s in enumerate(right)
    )
    return Scores(name, kind, "dev", "accuracy", items)


def evidence(*arms: Scores, probe: Scores | None, target: float | None = None, probes: tuple[Scores, ...] = ()) -> Evidence:
    """Training on all 300 rows was bought where `probe` tells what came of it."""
    trained = (Trained(300, 0, True, probe),) if probe else ()
    return Evidence(tuple(arms), 300, target=target, probes=probes, trained=trained, plan=TrainingPlan(300, 60.0, ()))


def with_passages(given: Evidence, scores: Scores) -> Evidence:
    """The trained weights were also asked with retrieved passages."""
    (one,) = given.trained
    return replace(given, trained=(replace(one, retrieving=scores),))


TRIVIAL = arm("t", "trivial", 0.1, tokens=0)


def test_training_is_recommended_when_the_probe_wins() -> None:
    found = recommend(evidence(TRIVIAL, arm("p", "prompt", 0.4), probe=arm("probe", "tuned", 0.8)))
    assert (found.action, found.reasons[0].rule) == ("fine_tune", "training_pays")
    claim = found.comparisons[found.reasons[0].comparison or 0]
    assert claim.difference == pytest.approx(0.4)
    assert claim.low > 0


def test_trained_weights_that_answer_best_with_passages_are_recommended_so() -> None:
    arms = (TRIVIAL, arm("r", "rag", 0.4))
    given = with_passages(evidence(*arms, probe=arm("probe", "tuned", 0.4)), arm("with", "tuned", 0.8))
    found = recommend(replace(given, retrieval=("Recall is high.",)))
    assert (found.action, found.candidate, found.trains) == ("rag_on_tuned", "rag_on_tuned", True)
    assert "asked with retrieved passages, beats" in found.reasons[0].sentence
    assert ("retrieval", "Recall is high.") in [(one.rule, one.sentence) for one in found.reasons]
    lost = evidence(TRIVIAL, arm("r", "rag", 0.8), probe=arm("p", "tuned", 0.3))
    beaten = recommend(with_passages(lost, arm("with", "tuned", 0.4)))
    assert beaten.action == "rag"


def test_what_the_sentences_on_retrieval_tell_is_not_told_twice() -> None:
    probes = (arm("gold_passage", "probe", 0.9), arm("irrelevant_passage", "probe", 0.1), arm("shots_0", "probe", 0.3))
    given = evidence(TRIVIAL, arm("r", "rag", 0.4), probe=None, probes=probes)
    for retrieval, told in (((), True), (("The model uses the passage.",), False)):
        sentences = [one.sentence for one in recommend(replace(given, retrieval=retrieval)).reasons]
        assert any(one.startswith("Knowledge:") for one in sentences) is told
        assert any(one.startswith("Retrieval loss:") for one in sentences) is told
        assert any(one.startswith("Format:") for one in sentences)


def test_after_training_the_claim_is_of_what_was_advised_against_unchanged_weights(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    task = load_task(make_task(tmp_path / "task"))
    arms = (TRIVIAL, arm("zero_shot", "prompt", 0.2), arm("rag_3", "rag", 0.6))
    given = evidence(*arms, probe=arm("probe", "tuned", 0.9))
    for retrieving, first in ((0.95, "rag_on_tuned"), (0.1, "tuned")):
        found = recommend(with_passages(given, arm("with", "tuned", retrieving)))
        names = _compared(arms, found, True, task)
        assert names[:2] == [first, "rag_3"]
        assert set(names) == {first, "rag_3", "zero_shot", "tuned"}
    # Trained although the advice was another.
    against = recommend(evidence(TRIVIAL, arm("rag_3", "rag", 0.9), probe=arm("probe", "tuned", 0.1)))
    assert _compared(arms, against, True, task)[:2] == ["tuned", "rag_3"]


def test_prompting_is_recommended_when_training_brings_nothing() -> None:
    found = recommend(evidence(TRIVIAL, arm("p", "prompt", 0.85), arm("q", "prompt", 0.5), probe=arm("probe", "tuned", 0.5)))
    assert (found.action, found.candidate) == ("prompt", "p")


def test_retrieval_is_recommended_only_where_it_beats_its_absence() -> None:
    prompt, probe = arm("p", "prompt", 0.1), arm("probe", "tuned", 0.2)
    assert recommend(evidence(TRIVIAL, prompt, arm("r", "rag", 0.8), probe=probe)).action == "rag"
    close = recommend(evidence(TRIVIAL, arm("p", "prompt", 0.80), arm("r", "rag", 0.81), probe=arm("probe", "tuned", 0.3)))
    assert (close.action, close.candidate) == ("prompt", "p")


def test_a_classifier_that_wins_is_named() -> None:
    found = recommend(
        evidence(TRIVIAL, arm("c", "no_llm", 0.9, tokens=0), arm("p", "prompt", 0.4), probe=arm("probe", "tuned", 0.7))
    )
    assert (found.action, found.candidate) == ("no_llm", "c")


def test_nothing_learnt_says_so() -> None:
    found = recommend(evidence(TRIVIAL, arm("p", "prompt", 0.1), arm("r", "rag", 0.12), probe=arm("probe", "tuned", 0.11)))
    assert (found.action, found.reasons[0].rule) == ("collect_data", "nothing_learnt")


def test_a_small_difference_on_few_items_is_undecided_and_says_how_many_more() -> None:
    found = recommend(
        evidence(arm("t", "trivial", 0.0, 40), arm("p", "prompt", 0.6, 40), probe=arm("probe", "tuned", 0.65, 40))
    )
    assert found.action == "undecided"
    assert "more dev items" in found.reasons[0].sentence


def test_the_cheapest_candidate_that_reaches_the_target_wins_even_against_a_better_one() -> None:
    cheap, dear = arm("cheap", "prompt", 0.9, tokens=50), arm("dear", "prompt", 0.99, tokens=5000)
    found = recommend(evidence(TRIVIAL, dear, cheap, probe=None, target=0.8))
    assert (found.action, found.candidate, found.reasons[0].rule) == ("prompt", "cheap", "target_reached")
    # A mean above the target is not enough: the lower bound must reach it.
    assert recommend(evidence(TRIVIAL, arm("p", "prompt", 0.82), probe=arm("probe", "tuned", 0.5), target=0.8)).reasons[
        0
    ].rule != ("target_reached")


def test_knowledge_probes_become_a_sentence_or_are_said_to_be_missing() -> None:
    context = (arm("gold_passage", "probe", 0.9), arm("irrelevant_passage", "probe", 0.1))
    arms = (TRIVIAL, arm("r", "rag", 0.8), arm("p", "prompt", 0.1))
    with_them = recommend(evidence(*arms, probe=arm("probe", "tuned", 0.1), probes=context))
    assert any("Knowledge" in one.sentence and "+80.0" in one.sentence for one in with_them.reasons)
    without = recommend(evidence(*arms, probe=arm("probe", "tuned", 0.1)))
    assert any("knowledge untested" in one.sentence.lower() for one in without.reasons)


def test_a_dev_split_of_five_is_said_to_carry_nothing() -> None:
    found = recommend(evidence(arm("t", "trivial", 0.0, 5), arm("p", "prompt", 0.4, 5), probe=arm("probe", "tuned", 1.0, 5)))
    assert found.action != "fine_tune"
    assert "5 dev items carry hardly any claim" in found.cannot_tell[0]


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    n=st.integers(2, 60),
    names=st.permutations(["triage", "rag", "tuned", "prompt"]),
)
def test_the_action_does_not_depend_on_names_and_never_fails(rates: list[float], n: int, names: list[str]) -> None:
    def found(labels: list[str]) -> str:
        values = [
            Scores(label, kind, "dev", "accuracy", arm(str(index), kind, rate, n).items)
            for index, (label, kind, rate) in enumerate(zip(labels, ["prompt", "rag", "tuned"], rates, strict=True))
        ]
        return recommend(evidence(arm("t", "trivial", 0.05, n), values[0], values[1], probe=values[2])).action

    assert found(names[:3]) == found(["a", "b", "c"])


def test_under_no_effect_training_is_rarely_recommended() -> None:
    """A/A: the probe is as good as the best arm. The best of two arms is chosen on the same items, so under 5% is expected."""
    wrong = 0
    for seed in range(300):
        chance = random.Random(seed)
        draw = lambda: tuple(Score(str(i), float(chance.random() < 0.5), "", 10, 5, 0.1) for i in range(70))  # noqa: E731, B023
        arms = [Scores(name, "prompt", "dev", "accuracy", draw()) for name in "ab"]
        probe = Scores("probe", "tuned", "dev", "accuracy", draw())
        wrong += recommend(evidence(arm("t", "trivial", 0.0, 70), *arms, probe=probe)).action == "fine_tune"
    assert wrong <= 0.05 * 300


def test_candidates_scored_on_different_items_are_refused() -> None:
    one, other = arm("a", "prompt", 0.5, 10), arm("b", "prompt", 0.5, 11)
    with pytest.raises(AdvisorError, match="not scored on the same items"):
        compare(one, other, None)


def test_of_a_served_model_training_is_untested_and_never_called_useless() -> None:
    def served(*arms: Scores) -> Recommendation:
        return recommend(replace(evidence(*arms, probe=None), served=True))

    found = served(TRIVIAL, arm("p", "prompt", 0.6))
    assert (found.action, found.candidate) == ("prompt", "p")
    assert any("training is untested" in one for one in found.cannot_tell)
    assert not any("reaches the target" in one for one in found.cannot_tell)
    assert any("engine: hf" in one for one in found.would_change)
    nothing = served(TRIVIAL, arm("p", "prompt", 0.1))
    assert nothing.action == "undecided"
    assert "Whether training would is untested" in nothing.reasons[0].sentence


def test_served_candidates_are_cheap_by_tokens_and_not_by_the_networks_mood() -> None:
    few, many = arm("few", "prompt", 0.9, tokens=100), arm("many", "prompt", 0.9, tokens=800)
    slow = replace(few, items=tuple(replace(one, seconds=9.0) for one in few.items))
    assert cheapness(slow, PricesSpec(), served=True) < cheapness(many, PricesSpec(), served=True)
    assert cheapness(slow, PricesSpec(), served=False) > cheapness(many, PricesSpec(), served=False)


def test_cost_by_tokens_by_time_and_without_prices() -> None:
    scores = arm("p", "prompt", 0.5, 4, tokens=1000)
    by_tokens = cost_per_1k(scores, PricesSpec(input_per_million=0.15, output_per_million=0.6))
    assert by_tokens.money == pytest.approx(1000 * (1000 * 0.15 + 10 * 0.6) / 1e6)
    by_time = cost_per_1k(scores, PricesSpec(gpu_hour=3.6))
    assert by_time.money == pytest.approx(1000 * 0.1 * 0.001)
    assert cost_per_1k(scores, PricesSpec()).money is None


def test_break_even() -> None:
    assert break_even_requests(10.0, 0.002, 0.001) == pytest.approx(10_000)
    for rival, tuned in itertools.product([None, 0.001], [None, 0.001]):
        assert break_even_requests(10.0, rival, tuned) is None


def wavering(name: str, rates: list[float], seed: int) -> list[Scores]:
    """Draws whose items are right at rates of their own, from nearly never to nearly always."""
    chance = random.Random(seed)
    found = []
    for at in range(1, 6):
        right = [float(chance.random() < rate) for rate in rates]
        items = tuple(Score(str(i), one, "right" if one else f"wrong {at}", 100, 10, 0.1) for i, one in enumerate(right))
        found.append(Scores(f"{name}_{at}", "probe", "dev", "accuracy", items))
    return found


def out_of_reach(*arms: Scores, probe: float = 0.45, probes: tuple[Scores, ...] = (), **more: object) -> Recommendation:
    """A target of 0.9 that nobody reaches, and training that gains nothing."""
    given = evidence(TRIVIAL, *arms, probe=arm("probe", "tuned", probe), target=0.9, probes=probes)
    return recommend(replace(given, **more))  # type: ignore[arg-type]


def test_a_target_out_of_reach_asks_for_what_has_room_and_was_not_measured() -> None:
    prompt = arm("p", "prompt", 0.5)
    samples = tuple(wavering("sample", [0.5] * 100, 0))
    reward = out_of_reach(prompt, probes=samples, verifiable=True)
    assert (reward.action, reward.reasons[0].rule) == ("reinforcement", "headroom_of_sampling")
    # Not where a judge's word would be the reward, and not where draws agree with each other.
    assert out_of_reach(prompt, probes=samples).action != "reinforcement"
    same = tuple(replace(prompt, candidate=f"sample_{at}", kind="probe") for at in range(1, 6))
    assert out_of_reach(prompt, probes=same, verifiable=True).action != "reinforcement"

    pairs = out_of_reach(prompt, preferences=200)
    assert (pairs.action, pairs.reasons[0].rule) == ("preference", "preferences_at_hand")
    assert out_of_reach(prompt, preferences=3).action != "preference"
    for found in (reward, pairs):
        assert not found.sure
        assert not found.trains
        assert found.candidate == "p"


def test_passages_that_are_not_used_ask_for_training_with_passages() -> None:
    gold = arm("gold_passage", "probe", 0.3)
    gold = replace(gold, items=tuple(replace(one, trace=[{HOLDS_ANSWER: True}]) for one in gold.items))
    ignored = (gold, replace(gold, candidate="irrelevant_passage"))
    found = out_of_reach(arm("p", "prompt", 0.3), arm("r", "rag", 0.32), probe=0.3, probes=ignored)
    assert found.cause == "context_use"
    assert (found.action, found.reasons[0].rule) == ("fine_tune_with_context", "context_is_not_used")


def test_a_target_above_every_upper_bound_asks_for_a_bigger_model() -> None:
    low = out_of_reach(arm("p", "prompt", 0.4), probe=0.4)
    assert (low.action, low.sure) == ("bigger_model", True)
    near = evidence(TRIVIAL, arm("p", "prompt", 0.86), probe=arm("probe", "tuned", 0.5), target=0.9)
    assert recommend(near).action == "prompt"
    assert "target_missed" in [one.rule for one in recommend(near).reasons]


def test_no_rule_says_sure_where_another_measured_way_may_be_better_by_more_than_a_point() -> None:
    close = recommend(evidence(TRIVIAL, arm("a", "prompt", 0.70), arm("b", "prompt", 0.69), probe=arm("t", "tuned", 0.2)))
    assert not close.sure
    assert "Not told apart from it on these items: b." in " ".join(one.sentence for one in close.reasons)
    far = evidence(TRIVIAL, arm("a", "prompt", 0.95), arm("b", "prompt", 0.4), probe=arm("t", "tuned", 0.2))
    assert recommend(far).sure
    # One that left the race early, on few items, may be better still.
    early = Left("c", "prompt", 6, 0.8)
    assert not recommend(replace(far, left=(early,))).sure
    assert recommend(replace(far, left=(replace(early, why="proven"),))).sure


def test_where_a_right_answer_has_a_price_a_few_points_do_not_pay_for_any_request() -> None:
    """0.1 s and 10 s at 3.60 an hour cost 0.0001 and 0.01; at 0.02 a right answer the dear one would need 50 points more."""
    cheap, dear = arm("cheap", "prompt", 0.70), arm("dear", "prompt", 0.75)
    dear = replace(dear, items=tuple(replace(one, seconds=10.0) for one in dear.items))
    given = evidence(TRIVIAL, cheap, dear, probe=arm("probe", "tuned", 0.2))
    assert recommend(given).candidate == "dear"
    assert recommend(replace(given, prices=PricesSpec(gpu_hour=3.6))).candidate == "dear"
    assert recommend(replace(given, prices=PricesSpec(gpu_hour=3.6, right_answer=0.02))).candidate == "cheap"
