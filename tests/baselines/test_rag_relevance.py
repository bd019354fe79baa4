"""Which chunks are relevant, and how a ranking of them is measured: against longest common runs, brute force and scikit-learn."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from baselines.rag.chunks import Chunk
from baselines.rag.overlap import EDGE, covers_half, folded, share_covered
from baselines.rag.relevance import DEPTH, Retrieval, Truth, context_precision, first_rank, measured, ndcg, reciprocal_rank
from baselines.rag.retriever import Found
from evals.engines.engine import Message
from evals.events import Event, Note
from evals.records import jsonable
from evals.statistics.paired import mean_interval
from evals.task.example import Example
from evals.task.reading.documents import Document

GOLD = "The harbour canteen opens at seven and closes at half past two."
SHORT = st.text("ab .", max_size=24)
RANKING = st.lists(st.frozensets(st.integers(0, 3)), max_size=25)


def chunk(text: str, document: str = "d", start: int = 0) -> Chunk:
    return Chunk(document, "Title", 0, start, start + len(text), text)


def example(name: str = "q", *golds: str, target: str = "half past two", group: str | None = None) -> Example:
    return Example(name, (Message("user", f"question {name}"),), target, golds, group)


class Given:
    """A retriever that finds what it is told to by question; keeps what it was asked, call by call."""

    name = "given"

    def __init__(self, found: Mapping[str, Sequence[str]]) -> None:
        self.found = found
        self.asked: list[list[str]] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"found": self.found}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        self.asked.append(list(questions))
        texts = [self.found.get(one.strip().removeprefix("question "), ())[:count] for one in questions]
        return [[Found(chunk(text, start=1000 * at), -float(at)) for at, text in enumerate(some)] for some in texts]


# How much of a passage a chunk covers


@given(SHORT.map(folded), SHORT.map(folded))
@settings(max_examples=500)
def test_half_is_covered_where_the_longest_common_run_says_so(text: str, passage: str) -> None:
    run = SequenceMatcher(None, text, passage, autojunk=False).find_longest_match().size
    assert covers_half(text, passage) is (bool(passage) and 2 * run >= len(passage))


def test_half_is_enough_and_less_is_not() -> None:
    gold = "abcdefghijklmnopqrstuvwxyz0123456789ABCD"
    for start in range(21):
        assert covers_half(f"xx {gold[start : start + 20]} xx", gold)
        assert not covers_half(f"xx {gold[start : start + 19]} xx", gold)
        # Two runs of a chunk do not add up.
        assert not covers_half(f"{gold[:19]} {gold[20:39]}", gold)


def test_text_that_repeats_itself_does_not_take_long() -> None:
    started = time.perf_counter()
    assert not covers_half("a" * 15_000 + "c" * 5000 + "a" * 15_000, "a" * 20_000 + "b" * 20_001)
    assert time.perf_counter() - started < 5


@given(st.integers(0, 200), st.lists(st.tuples(st.integers(0, 240), st.integers(0, 240)), max_size=5))
def test_pieces_of_a_document_cover_what_they_overlap(begin: int, cuts: list[tuple[int, int]]) -> None:
    """Against the positions in the document, of which `share_covered` knows nothing."""
    document = "".join(map(chr, range(0x4E00, 0x4E00 + 240)))
    passage = document[begin : begin + 40]
    pieces = [(min(cut), max(cut)) for cut in cuts]
    parts = [range(max(start, begin), min(end, begin + 40)) for start, end in pieces]
    # A part of fewer characters is not told from chance.
    covered = {at for part in parts if len(part) >= EDGE for at in part}
    assert share_covered([document[start:end] for start, end in pieces], passage) == pytest.approx(len(covered) / 40)


def test_pieces_cover_together_what_none_covers_alone() -> None:
    # Cut inside a word, then at a space, which is in neither piece.
    thirds = [f"before it {GOLD[:21]}", GOLD[21:38], f"{GOLD[39:]} And after it."]
    assert (len(GOLD), GOLD[38]) == (63, " ")
    assert [share_covered([one], GOLD) for one in thirds] == pytest.approx([21 / 63, 17 / 63, 24 / 63])
    assert share_covered(thirds[:2], GOLD) == pytest.approx(38 / 63)
    assert share_covered(thirds[1:], GOLD) == pytest.approx(42 / 63)
    # What no text covers between two others is not.
    assert share_covered(thirds[::2], GOLD) == pytest.approx(45 / 63)
    assert not any(covers_half(one, GOLD) for one in thirds)
    assert share_covered(thirds, GOLD) == share_covered([*thirds, *thirds, GOLD], GOLD) == 1
    assert share_covered(["the canteen opens, the harbour closes", "", "The", "canteen opens"], GOLD) == 0
    assert share_covered([], GOLD) == share_covered([GOLD], "") == 0


# What is relevant for a question


def test_a_chunk_hits_each_gold_passage_that_it_covers() -> None:
    other = "The ferry leaves the northern pier at nine."
    truth = Truth([example("q", GOLD, other)])
    assert truth.known(0) == 2
    assert truth.found(0, chunk(f"{GOLD} {other}")) == {0, 1}
    assert truth.found(0, chunk("ferry leaves the\n\n  northern pier at nine. Then")) == {1}
    assert truth.found(0, chunk("The ferry harbours the canteen.")) == frozenset()
    # The answer alone is no hit where the passage is known, and no title is looked at.
    assert not truth.hits(0, chunk("half past two"))
    assert not truth.hits(0, Chunk("d", GOLD, 0, 0, 4, "Word"))


def test_where_only_the_answer_is_known_its_words_are_looked_for() -> None:
    truth = Truth([example("q", target="Half past TWO.")])
    assert truth.kind == "answer"
    assert truth.hits(0, chunk("It closes at “half past two”, they say"))
    assert not truth.hits(0, chunk("half past twofold"))
    assert not truth.hits(0, chunk("two past half"))
    assert truth.covered(0, [chunk("half past two")]) is None


@pytest.mark.parametrize(
    ("target", "output_type", "reason"),
    [
        ("yes", "text", "yes, no or the like"),
        ("No.", "text", "yes, no or the like"),
        ("Nein", "text", "yes, no or the like"),
        ("7", "number", "a number of one digit"),
        ("-7", "number", "a number of one digit"),
        ("47", "number", ""),
        ("3.90", "text", ""),
        ("ok", "text", "an answer of under three characters"),
        ("the", "text", ""),
        ("  ", "text", "an empty answer"),
        ('{"a": 1}', "text", "JSON"),
        ("[1, 2]", "text", "JSON"),
        ("[sic] a word", "text", ""),
        ("[" * 100_000, "text", ""),
        ("plain", "json", "JSON"),
        ("billing", "label", "a label"),
        ("Lantern House", "text", ""),
    ],
)
def test_answers_that_no_text_can_be_searched_for_are_left_out_with_their_reason(
    target: str, output_type: str, reason: str
) -> None:
    truth = Truth([example("q", target=target)], output_type=output_type)
    assert truth.unmeasured == ({reason: 1} if reason else {})
    assert len(truth.questions) == (not reason)
    # A gold passage can be found whatever the answer is.
    assert Truth([example("q", GOLD, target=target)], output_type=output_type).unmeasured == {}


def test_answers_that_stand_in_no_document_are_not_the_retrievers_fault() -> None:
    examples = [example("a"), example("b", target="nowhere to be found"), example("c", GOLD, target="neither this")]
    truth = Truth(examples, documents=[Document("x", "Nothing."), Document("y", f"# Canteen\n\n{GOLD}")])
    assert truth.ids == ["a", "c"]
    assert truth.unmeasured == {"the answer stands in no document": 1}
    assert truth.kind == "gold passage or answer"
    assert Truth(examples).ids == ["a", "b", "c"]


def test_blank_gold_passages_are_none() -> None:
    assert Truth([example("q", " \n")]).kind == "answer"
    assert Truth([example("q", " ", GOLD)]).known(0) == 1


# Figures of one ranking


@given(RANKING, st.integers(4, 12), st.integers(1, 20))
def test_rank_reciprocal_rank_and_gain_by_brute_force(ranking: list[frozenset[int]], known: int, depth: int) -> None:
    ranks = [at + 1 for at in range(len(ranking)) if ranking[at]]
    assert first_rank(ranking) == min(ranks, default=0)
    assert reciprocal_rank(ranking, depth) == max((1 / rank for rank in ranks if rank <= depth), default=0)
    first = {thing: next(at + 1 for at, hit in enumerate(ranking) if thing in hit) for hit in ranking for thing in hit}
    gain = sum(1 / math.log2(1 + rank) for rank in first.values() if rank <= depth)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(known, depth) + 1))
    assert ndcg(ranking, known, depth) == pytest.approx(min(1, gain / ideal))


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(1, 15))
def test_ndcg_is_scikit_learns_where_each_chunk_hits_a_passage_of_its_own(hits: list[bool], depth: int) -> None:
    if not any(hits):
        return
    ranking = [frozenset([at] if hit else []) for at, hit in enumerate(hits)]
    scores = -np.arange(len(hits), dtype=float)
    assert ndcg(ranking, sum(hits), depth) == pytest.approx(ndcg_score([hits], [scores], k=depth))


def test_chunks_that_overlap_do_not_gain_twice_and_one_that_holds_all_is_ideal() -> None:
    one, both, none = frozenset([0]), frozenset([0, 1]), frozenset[int]()
    assert ndcg([one, one, one], 1, 10) == 1
    assert ndcg([one, one], 2, 10) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg([both], 2, 10) == 1
    assert ndcg([none] * 10 + [one], 1, 10) == 0
    # More known passages than are looked at: the ideal has as many as fit.
    assert ndcg([frozenset([at]) for at in range(10)], 50, 10) == pytest.approx(1)


@given(st.lists(st.booleans(), max_size=10))
def test_context_precision_is_the_mean_of_precisions_at_the_hits(hits: list[bool]) -> None:
    running = list(accumulate(map(int, hits)))
    expected = [running[at] / (at + 1) for at in range(len(hits)) if hits[at]]
    assert context_precision(hits) == pytest.approx(float(np.mean(expected)) if expected else 0)
    assert context_precision([True, False, True]) == pytest.approx((1 + 2 / 3) / 2)


# A retriever over all questions


def planted(count: int, seed: int = 0) -> tuple[list[Example], dict[str, list[str]], list[int]]:
    """Questions, what is found for each, and the rank (0: none) at which its passage was put."""
    draw = random.Random(seed)
    examples, found, ranks = [], {}, []
    for number in range(count):
        gold = " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(8))
        rank = draw.choice([0, 1, 2, 3, 4, 6, 11, 20, 21])
        texts = ["".join(draw.choices("klmnop ", k=40)) for _ in range(25)]
        if rank:
            texts[rank - 1] = f"xyz {gold[10:50]} xyz"
        examples.append(example(f"{number}", gold, group=f"g{number // 3}"))
        found[f"{number}"] = texts
        ranks.append(rank)
    return examples, found, ranks


def test_the_figures_are_those_of_the_planted_ranks() -> None:
    examples, found, ranks = planted(60)
    told = measured(Given(found), examples)
    groups = [one.group for one in examples]
    for depth in (1, 3, 5, 10, 20):
        want = mean_interval([float(0 < rank <= depth) for rank in ranks], groups)
        assert told.figures[f"recall@{depth}"] == pytest.approx((want.estimate, want.low, want.high))
        assert told.found(depth) == {one.id: 0 < rank <= depth for one, rank in zip(examples, ranks, strict=True)}
    in_ten = [rank if rank <= 10 else 0 for rank in ranks]
    assert told.figures["mrr@10"][0] == pytest.approx(np.mean([1 / rank if rank else 0 for rank in in_ten]))
    assert told.ranking == told.figures["ndcg@10"][0]
    assert told.ranking == pytest.approx(np.mean([1 / math.log2(1 + rank) if rank else 0 for rank in in_ten]))
    in_five = [rank if rank <= 5 else 0 for rank in ranks]
    assert told.figures["context_precision@5"][0] == pytest.approx(np.mean([1 / rank if rank else 0 for rank in in_five]))
    # 40 of the 55 characters of each passage stand in its chunk, inside and between other text: no end of it is covered.
    assert told.figures["context_recall@5"][0] == 0
    assert list(told.ranks.values()) == [rank if rank <= DEPTH else 0 for rank in ranks]
    assert told.hits == [float(0 < rank <= 5) for rank in ranks]
    assert (told.n, told.kind, told.unmeasured, told.name) == (60, "gold passage", {}, "given")


def test_what_comes_in_pieces_is_context_recall_and_no_hit() -> None:
    pieces = [f"before it {GOLD[:21]}", GOLD[21:38]]
    told = measured(Given({"a": pieces, "b": [GOLD], "c": []}), [example(one, GOLD) for one in "abc"])
    assert told.figures["recall@5"][0] == pytest.approx(1 / 3)
    assert told.figures["context_recall@5"][0] == pytest.approx((38 / 63 + 1 + 0) / 3)
    assert told.figures["context_precision@5"][0] == pytest.approx(1 / 3)


def test_chunks_that_are_too_short_to_hit_are_told_from_a_ranking_that_misses() -> None:
    long, short = " ".join([GOLD] * 3), "The ferry leaves at nine."
    examples = [example("a", long), example("b", short), example("c", long, short), example("d", target="Lantern House")]
    found = {one: [GOLD, short, GOLD] for one in "abcd"}
    told = measured(Given(found), examples)
    assert told.out_of_reach == 1
    assert told.found(5)["a"] is False
    assert "In 1 of 4 questions half of the gold passage is longer than the typical chunk" in told.sentence()
    assert measured(Given(found), examples[1:]).out_of_reach == 0
    assert "half of" not in measured(Given(found), examples[1:]).sentence()


def test_questions_that_cannot_be_measured_are_not_misses() -> None:
    examples = [example("a", GOLD), example("b", target="yes"), example("c", target="Lantern House"), example("d", target="7")]
    told = measured(Given({"a": [GOLD], "c": ["in the lantern house"], "b": ["yes"]}), examples)
    assert told.recall == 1
    assert (told.n, told.unmeasured) == (2, {"yes, no or the like": 1, "a number of one digit": 1})
    assert list(told.ranks) == ["a", "c"]
    # Only one of the two has a passage to be covered.
    assert told.figures["context_recall@5"][0] == 1
    assert "2 questions are left out (yes, no or the like: 1; a number of one digit: 1)." in told.sentence()


def test_where_nothing_can_be_measured_that_is_said_and_nothing_is_asked() -> None:
    retriever = Given({})
    told = measured(retriever, [example("a", target="yes")], name="x_tokens")
    assert retriever.asked == []
    assert told.sentence() == "Retrieval by x_tokens cannot be measured apart from answering (yes, no or the like: 1)."
    assert (told.ranking, told.figures, told.hits) == (0.0, {}, [])
    assert math.isnan(told.recall)
    assert measured(retriever, []).sentence().endswith("(no questions).")


def test_finding_nothing_is_a_miss_and_is_said() -> None:
    notes: list[Event] = []
    told = measured(Given({"a": [GOLD]}), [example("a", GOLD), example("b", GOLD)], notes.append)
    assert told.recall == 0.5
    (note,) = [one for one in notes if isinstance(one, Note)]
    assert note.level == "warning"
    assert note.text == "given finds nothing at all for 1 of 2 questions"


def test_seconds_are_of_questions_asked_alone_that_nobody_remembers() -> None:
    class Slow(Given):
        """Remembers what it was asked, as an embedder does."""

        def __init__(self, found: Mapping[str, Sequence[str]]) -> None:
            super().__init__(found)
            self.known: set[str] = set()

        def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
            time.sleep(0.01 * len(set(questions) - self.known))
            self.known |= set(questions)
            return super().search(questions, count)

    examples, found, _ = planted(60)
    retriever = Slow(found)
    first, second = measured(retriever, examples), measured(retriever, examples)
    # The second visit takes as long, though it was asked all of it before.
    assert min(first.seconds, second.seconds) >= 0.01
    assert first.milliseconds == 1000 * first.seconds
    alone = [one[0] for one in retriever.asked if len(one) == 1]
    assert len(alone) == len(set(alone)) == 2 * (1 + 30)
    assert measured(Given(found), examples, timed=0).seconds == 0


def test_a_record_gives_back_the_same() -> None:
    examples, found, _ = planted(30)
    told = measured(Given(found), Truth([*examples, example("x", target="no")]), name="given_sentences_96")
    body = json.loads(json.dumps(jsonable(asdict(told))))
    assert Retrieval(**body) == told
    changed = measured(Given({**found, "0": []}), examples)
    assert (changed.settings == told.settings) is False


def test_a_thousand_questions_take_seconds() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=120)) for _ in range(400)]
    examples = [example(f"{number}", draw.choice(texts)[200:700]) for number in range(1000)]
    truth = Truth(examples)
    chunks = [chunk(text) for text in texts]
    started = time.perf_counter()
    for number in range(1000):
        for one in draw.sample(chunks, 20):
            truth.hits(number, one)
    assert time.perf_counter() - started < 3
