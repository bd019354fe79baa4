"""Consistency: what is asked again, and how far the answers agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.metrics.consistency import agreement, variants
from evals.metrics.options import Consistency
from evals.metrics.text import containment, exact_match
from evals.task.example import Example

TURNS = (
    Message("system", "Be short."),
    Message("user", "Hello."),
    Message("assistant", "Hello!"),
    Message("user", "Capital of Peru?"),
)


def example(name: str = "peru", paraphrases: tuple[str, ...] = ()) -> Example:
    return Example(name, TURNS, "Lima", group="south", paraphrases=paraphrases)


def options(samples: int = 3, temperature: float = 0.7) -> Consistency:
    return Consistency(name="consistency", samples=samples, temperature=temperature)


def test_paraphrases_replace_the_last_user_turn_and_are_asked_as_the_original_is() -> None:
    found = variants([example(paraphrases=("Peru's capital?", "Which city governs Peru?"))], options(samples=0))
    assert [(one.example.id, one.of, one.kind, one.temperature, one.seed) for one in found] == [
        ("peru~p0", "peru", "paraphrase", 0.0, None),
        ("peru~p1", "peru", "paraphrase", 0.0, None),
    ]
    assert found[0].example.messages == (*TURNS[:3], Message("user", "Peru's capital?"))
    assert (found[1].example.text, found[1].example.target, found[1].example.group) == (
        "Which city governs Peru?",
        "Lima",
        "south",
    )


def test_a_tools_turn_after_the_question_stays() -> None:
    tool = Message("tool", "Lima", name="atlas")
    found = variants([Example("1", (*TURNS, tool), "Lima", paraphrases=("Peru's capital?",))], options(samples=0))
    assert found[0].example.messages[-2:] == (Message("user", "Peru's capital?"), tool)


def test_samples_ask_the_same_question_with_seeds_of_their_own_that_stay() -> None:
    examples = [example("a"), example("b")]
    found = variants(examples, options(samples=3, temperature=0.9))
    assert [one.example.id for one in found] == ["a~s0", "a~s1", "a~s2", "b~s0", "b~s1", "b~s2"]
    assert {one.temperature for one in found} == {0.9}
    assert {one.example.messages for one in found} == {TURNS}
    seeds = [one.seed for one in found]
    assert len(set(seeds)) == 6
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert found == variants(examples, options(samples=3, temperature=0.9))
    assert found[:2] == variants(examples, options(samples=2, temperature=0.9))[:2]


def test_what_has_no_variants_is_not_measured() -> None:
    found = variants([example("a"), example("b", ("Peru's capital?",))], options(samples=0))
    assert {one.of for one in found} == {"b"}
    with pytest.raises(ValueError, match="not measured"):
        agreement("Lima", [], exact_match)


def test_a_paraphrase_that_says_the_same_is_asked_once() -> None:
    same = example(paraphrases=("Capital of Peru?", "Peru's capital?", "Peru's capital?"))
    assert [one.example.text for one in variants([same], options(samples=0))] == ["Peru's capital?"]


def test_agreement_is_the_mean_over_pairs_of_answers() -> None:
    # Of six pairs of L, L, L, C three agree.
    assert agreement("Lima", ["lima", "Cusco", "Lima."], exact_match) == pytest.approx(3 / 6)
    assert agreement("Lima", ["Lima"], exact_match) == 1
    assert agreement("Lima", ["Cusco"], exact_match) == 0
    # The main answer counts like any other: it alone is different here.
    assert agreement("Cusco", ["Lima", "Lima"], exact_match) == pytest.approx(1 / 3)


def test_a_score_that_is_not_symmetric_counts_in_both_directions() -> None:
    assert (containment("It is Lima", "Lima"), containment("Lima", "It is Lima")) == (1, 0)
    assert agreement("It is Lima", ["Lima"], containment) == agreement("Lima", ["It is Lima"], containment) == 0.5


def test_each_pair_of_answers_is_scored_once() -> None:
    asked: list[tuple[str, str]] = []

    def same(a: str, b: str) -> float:
        asked.append((a, b))
        return float(a == b)

    agreement("Lima", ["Lima"] * 20 + ["Cusco"] * 20, same)
    assert sorted(asked) == [("Cusco", "Cusco"), ("Cusco", "Lima"), ("Lima", "Cusco"), ("Lima", "Lima")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=9))
def test_agreement_is_of_equal_pairs_in_any_order(answers: list[str]) -> None:
    count = len(answers)
    equal = sum(answers.count(one) * (answers.count(one) - 1) / 2 for one in set(answers))
    found = agreement(answers[0], answers[1:], lambda a, b: float(a == b))
    assert found == pytest.approx(equal / (count * (count - 1) / 2))
    turned = [*answers[1:], answers[0]]
    assert agreement(turned[0], turned[1:], lambda a, b: float(a == b)) == pytest.approx(found)
