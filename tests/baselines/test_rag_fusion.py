"""Fusion of rankings by weighted reciprocal ranks, weights fitted on known passages, and reranking."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baselines.rag.chunks import Chunk
from baselines.rag.fusion import CONSTANT, DEPTH, FEWEST, MOST, Hybrid, Reranked, fitted
from baselines.rag.retriever import Found

QUESTIONS = [f"question {at}" for at in range(120)]


def chunk(name: str) -> Chunk:
    return Chunk(name, "title", 0, 0, 9, f"text of {name}")


@dataclass
class Fixed:
    """A retriever whose rankings are given; `asked` counts the questions that it is asked."""

    rankings: Mapping[str, Sequence[str]]
    name: str = "fixed"
    asked: int = 0
    settings: Mapping[str, Any] = field(default_factory=lambda: {"retriever": "fixed"})

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        self.asked += len(questions)
        return [
            [Found(chunk(name), 100.0 - at) for at, name in enumerate(self.rankings[question][:count])]
            for question in questions
        ]


def order(found: Sequence[Found]) -> list[str]:
    return [one.chunk.document for one in found]


def test_scores_are_weighted_reciprocal_ranks() -> None:
    hybrid = Hybrid([Fixed({"q": ["a", "b", "c"]}), Fixed({"q": ["c", "d", "a"]})], [0.75, 0.25], constant=10)
    (found,) = hybrid.search(["q"], 10)
    scores = {one.chunk.document: one.score for one in found}
    assert scores == pytest.approx({"a": 0.75 / 11 + 0.25 / 13, "b": 0.75 / 12, "c": 0.75 / 13 + 0.25 / 11, "d": 0.25 / 12})
    assert order(found) == ["a", "c", "b", "d"]
    assert order(hybrid.search(["q"], 2)[0]) == ["a", "c"]


def test_equals_come_in_the_order_of_the_documents() -> None:
    hybrid = Hybrid([Fixed({"q": ["b", "d"]}), Fixed({"q": ["a", "c"]})], [0.5, 0.5])
    assert order(hybrid.search(["q"], 4)[0]) == ["a", "b", "c", "d"]


rankings = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(rankings, rankings, st.floats(0, 60), st.integers(0, 9))
def test_a_part_of_weight_nothing_is_not_asked_and_the_other_keeps_its_order(
    one: list[str], other: list[str], constant: float, count: int
) -> None:
    silent = Fixed({"q": other})
    assert order(Hybrid([Fixed({"q": one}), silent], [0.3, 0], constant).search(["q"], count)[0]) == one[:count]
    assert silent.asked == 0


@given(rankings, rankings, st.floats(0.1, 10))
def test_weights_count_by_their_ratio_and_each_chunk_comes_once(one: list[str], other: list[str], scale: float) -> None:
    parts = [Fixed({"q": one}), Fixed({"q": other})]
    (plain,) = Hybrid(parts, [0.25, 0.75]).search(["q"], 20)
    (scaled,) = Hybrid(parts, [0.25 * scale, 0.75 * scale]).search(["q"], 20)
    assert sorted(order(plain)) == sorted({*one, *other})
    assert [each.score * scale for each in plain] == pytest.approx([each.score for each in scaled])


def test_chunks_of_a_document_are_told_apart_by_their_place() -> None:
    class Places(Fixed):
        def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
            return [[Found(Chunk("a", "", at, 9 * at, 9 * at + 9, "same"), 1.0) for at in range(3)] for _ in questions]

    (found,) = Hybrid([Places({}), Places({})], [1, 1], constant=0).search(["q"], 9)
    assert [(one.chunk.start, one.score) for one in found] == [(0, 2.0), (9, 1.0), (18, pytest.approx(2 / 3))]


def test_only_the_first_hundred_of_each_part_count() -> None:
    long = [f"x{at:03}" for at in range(150)]
    hybrid = Hybrid([Fixed({"q": long}), Fixed({"q": ["x149"]})], [1, 1], constant=0)
    found = hybrid.search(["q"], 5)[0]
    assert {one.chunk.document: one.score for one in found}["x149"] == 1.0
    assert len(hybrid.search(["q"], 500)[0]) == 150
    assert DEPTH == 100


@pytest.mark.parametrize("weights", [[1.0], [0, 0], [1, -1], []])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Hybrid([Fixed({}), Fixed({})], weights)


def planted(good: float, bad: float, seed: int = 0) -> tuple[Fixed, Fixed]:
    """Two retrievers that rank the passage of a question ("gold<number>") first with these probabilities, and otherwise lose it."""
    rng = random.Random(seed)

    def ranks(share: float, mark: str) -> dict[str, list[str]]:
        rest = [f"{mark}{at}" for at in range(12)]
        return {question: [f"gold{at}", *rest] if rng.random() < share else rest for at, question in enumerate(QUESTIONS)}

    return Fixed(ranks(good, "g")), Fixed(ranks(bad, "b"))


def is_gold(number: int, found: Chunk) -> bool:
    return found.document == f"gold{number}"


def share_first(hybrid: Hybrid) -> float:
    return sum(order(found)[0] == f"gold{at}" for at, found in enumerate(hybrid.search(QUESTIONS, 1))) / len(QUESTIONS)


@pytest.mark.parametrize("turned", [False, True])
def test_the_better_part_gets_the_greater_weight(turned: bool) -> None:
    parts = planted(0.8, 0.3)
    chosen = fitted(parts[::-1] if turned else parts, QUESTIONS, is_gold)
    assert (chosen.weights[0] < chosen.weights[1]) == turned
    assert abs(chosen.weights[0] - chosen.weights[1]) > 0
    # On questions of the same kind that it has not seen: at least as good as the better part, and better than equal weights.
    unseen = planted(0.8, 0.3, seed=1)
    held = Hybrid(unseen[::-1] if turned else unseen, chosen.weights, chosen.constant)
    assert share_first(held) >= share_first(Hybrid(unseen, [1, 0]))
    assert share_first(held) > share_first(Hybrid(unseen, [0.5, 0.5])) + 0.1


def test_parts_of_the_same_worth_stay_equal() -> None:
    one = planted(0.6, 0.6)[0]
    chosen = fitted([one, one], QUESTIONS, is_gold)
    assert (chosen.weights, chosen.constant) == ([0.5, 0.5], CONSTANT)


def test_few_questions_or_none_leave_the_weights_equal() -> None:
    parts = planted(1.0, 0.0)
    for count in (0, 1, FEWEST - 1):
        chosen = fitted(parts, QUESTIONS[:count], is_gold)
        assert (chosen.weights, chosen.constant) == ([0.5, 0.5], CONSTANT)
    assert parts[0].asked == 0
    assert fitted(parts, QUESTIONS[:FEWEST], is_gold).weights != [0.5, 0.5]


def test_a_gain_within_its_error_leaves_the_weights_equal() -> None:
    # One question of 120 is better with the first part, one is worse.
    rest = {question: [f"gold{at}"] for at, question in enumerate(QUESTIONS)}
    first = Fixed({**rest, QUESTIONS[0]: ["z", "gold0"], QUESTIONS[1]: ["gold1"]})
    second = Fixed({**rest, QUESTIONS[0]: ["a", "gold0"], QUESTIONS[1]: ["a", "b", "c"]})
    chosen = fitted([first, second], QUESTIONS, is_gold)
    assert (chosen.weights, chosen.constant) == ([0.5, 0.5], CONSTANT)


def test_passages_are_judged_once_each_and_only_the_first_questions_are_asked() -> None:
    many = [f"question {at % 120}" for at in range(MOST + 100)]
    judged: list[tuple[int, str]] = []

    def judge(number: int, found: Chunk) -> bool:
        judged.append((number, found.document))
        return found.document == f"gold{number % 120}"

    parts = planted(0.8, 0.3)
    fitted(parts, many, judge)
    assert len(judged) == len(set(judged))
    assert parts[0].asked == MOST


def test_three_parts_are_weighed_too() -> None:
    good, bad = planted(0.9, 0.1)
    chosen = fitted([bad, good, bad], QUESTIONS, is_gold)
    assert chosen.weights[1] > max(chosen.weights[0], chosen.weights[2])
    assert sum(chosen.weights) == pytest.approx(1)


class Lengths:
    """Instead of a cross-encoder: the score of a pair is the number in the passage."""

    fingerprint = "f" * 64

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.scores, self.read = scores, list[tuple[str, str]]()

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        self.read += pairs
        return np.asarray([self.scores[passage.rsplit(" ", 1)[-1]] for _, passage in pairs], dtype=np.float32)


def test_the_head_is_reordered_and_the_rest_keeps_its_place() -> None:
    reranker = Lengths({"a": 0.1, "b": 0.9, "c": 0.9, "d": 0.5})
    base = Fixed({"q": ["a", "b", "c", "d", "e", "f"], "empty": [], "short": ["d", "b"]})
    found, none, short = Reranked(base, reranker, depth=4).search(["q", "empty", "short"], 6)
    assert order(found) == ["b", "c", "d", "a", "e", "f"]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].score == pytest.approx(0.9)
    assert none == []
    assert order(short) == ["b", "d"]
    assert reranker.read[:2] == [("q", "title: text of a"), ("q", "title: text of b")]
    assert len(reranker.read) == 6


def test_a_small_count_still_reads_the_whole_head() -> None:
    reranked = Reranked(Fixed({"q": ["a", "b", "c"]}), Lengths({"a": 0.0, "b": 1.0, "c": 2.0}), depth=3)
    assert order(reranked.search(["q"], 1)[0]) == ["c"]


def test_settings_carry_weights_parts_and_reranker() -> None:
    hybrid = Hybrid([Fixed({}), Fixed({})], [0.7, 0.3], 2.0)
    reranked = Reranked(hybrid, Lengths({}))
    assert json.loads(json.dumps(reranked.settings)) == reranked.settings
    assert reranked.settings["base"]["weights"] == [0.7, 0.3]
    assert reranked.settings["base"]["constant"] == 2.0
    assert reranked.settings["reranker"] == "f" * 64
    assert (hybrid.name, reranked.name) == ("hybrid", "hybrid_reranked")
