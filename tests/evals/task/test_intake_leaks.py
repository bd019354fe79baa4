"""Leaks and near-duplicates: what is one item, what is not, and that no pair is missed that comparing all pairs would find."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.task.checks.edits import edited
from evals.task.checks.findings import Place, Pool
from evals.task.checks.leaks import LEAST_COSINE, MOST_SHOWN, Text, clusters, leaks, similar
from evals.task.checks.matching import matched
from evals.task.checks.pairs import JACCARD, corpus, distinct, longest_run, near, quoted
from evals.task.checks.wording import BLOCKED, _changes, alike, fixed, is_fixed, lightly_edited, same_fixed, words
from evals.task.reading.documents import Document

LONG = (
    "after the storm the harbour master asked every skipper to moor at the inner pier because the outer wall had lost many of its "
    "stones and nobody could say how it would hold in another night of wind from the west"
)
VOCABULARY = [
    "pay",
    "card",
    "cards",
    "lost",
    "abroad",
    "please",
    "help",
    "5",
    "7",
    "not",
    "fee",
    "account",
    "transfer",
    "transfers",
]


def rows(pool: Pool, *texts: str, group: str | None = None) -> list[Text]:
    return [Text(Place(pool, f"{pool}{at}", f"{pool}.jsonl", at + 1, text), group) for at, text in enumerate(texts)]


def found(first: str, second: str) -> list[str]:
    return [one.check for one in leaks([*rows("train", first), *rows("test", second)])]


@pytest.mark.parametrize(
    ("first", "second", "check"),
    [
        ("Where is my card?", "where is my CARD", "leak.exact"),
        ("How do I log in here?", "How do I login here", "leak.exact"),
        ("Is the top-up free?", "is top up free", "leak.exact"),
        ("My card isn't working", "My card is not working.", "leak.exact"),
        ("It costs 1,000 pounds", "it costs 1000 pounds", "leak.exact"),
        ("I have ben charged twice", "I have been charged twice", "leak.edited"),
        ("Why was my transfer declined?", "Why were my transfers declined? Why was my transfer declined?", None),
        ("Why was my transfer declined?", "Why was my transfer decline?", "leak.edited"),
        ("Please help me to pay my bill", "Help me to pay my bill", "leak.edited"),
        ("How do I pay a bill", "How do I really pay a bill", "leak.edited"),
        (LONG, LONG.replace("skipper", "captain"), "leak.ngram"),
        (f"Someone asked me this: {LONG}. What is the answer?", LONG, "leak.ngram"),
        ("He says: how do I change the number of my phone", "how do I change the number of my phone", "leak.ngram"),
    ],
)
def test_one_item_in_other_words(first: str, second: str, check: str | None) -> None:
    assert found(first, second) == ([check] if check else [])
    assert found(second, first) == ([check] if check else [])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 12+7?", "What is 12+9?"),
        ("What is 2 + 3?", "What is 2 - 3?"),
        ("What is 12+7?", "What is 127?"),
        ("What is -5 times two?", "What is 5 times two?"),
        ("There is a charge of 5 on my account", "There is a charge of 7 on my account"),
        ("I paid $5 for my new card today", "I paid £5 for my new card today"),
        ("I paid two times for my new card today", "I paid three times for my new card today"),
        ("Can you say why my card is working abroad?", "Can you say why my card is not working abroad?"),
        ("I can pay with my card in this shop", "I can't pay with my card in this shop"),
        ("What is the capital of Iran?", "What is the capital of Iraq?"),
        ("How do I pay a bill by card?", "How do I pay a bill by cheque?"),
        ("I would like to know the exchange rate of the euro", "I would like to know the exchange rate of the dollar"),
        ("move money from savings to checking", "move money from checking to savings"),
        ("Cancel", "Cancel transfer"),
        ("Was the cheque accepted?", "Was the cheque rejected?"),
        (f"{LONG} at 5 knots", f"{LONG} at 7 knots"),
        ("?", "!"),
        ("", ""),
    ],
)
def test_two_items_however_alike_their_letters(first: str, second: str) -> None:
    assert found(first, second) == []


def test_a_jaccard_index_is_the_true_one_over_word_pairs() -> None:
    # Three words replaced far from one another leave no run that covers half: it is the Jaccard that finds it.
    first = (LONG + " and the night after that one").split()
    second = [*first]
    second[len(first) // 3], second[2 * len(first) // 3] = "blue", "green"
    one = leaks([*rows("train", " ".join(first)), *rows("test", " ".join(second))])[0]
    bags = [{(a, b) for a, b in pairwise(some)} for some in (words(" ".join(first)), words(" ".join(second)))]
    assert one.check == "leak.near"
    assert one.value == pytest.approx(len(bags[0] & bags[1]) / len(bags[0] | bags[1]))


def test_the_lesser_row_loses_and_both_are_shown() -> None:
    texts = [
        *rows("train", "Where is my new card?", "a row of its own"),
        *rows("dev", "where is my new card", "Who pays the fee for it?"),
        *rows("test", "WHERE IS MY NEW CARD", "who pays the fees for it"),
        *rows("general", "Where is my new card", "Who pays the fee for it?"),
    ]
    seen = {(one.check, one.places[0].id, one.places[1].id) for one in leaks(texts)}
    assert seen == {
        ("leak.exact", "train0", "dev0"),
        ("leak.exact", "train0", "test0"),
        ("leak.exact", "train0", "general0"),
        ("leak.exact", "dev0", "test0"),
        ("leak.edited", "dev1", "test1"),
    }
    assert all(one.level == "warning" and one.drop for one in leaks(texts))
    assert leaks(texts)[0].places[0].text == "Where is my new card?"


def test_each_row_of_both_sides_is_told_once_for_a_pool_by_the_strictest_kind_and_with_its_best_partner() -> None:
    train = rows("train", "How do I pay the bill of my brother")
    test = rows(
        "test",
        "How do I pay bill of my brothers now",
        "How do I pay the bills of my brother",
        "how do I pay the bill of my brother!",
    )
    # Each of the three test rows has been seen, though one training row is behind them all.
    found = [(one.check, one.places[0].id, one.places[1].id) for one in leaks([*train, *test])]
    assert found == [("leak.edited", "train0", "test0"), ("leak.edited", "train0", "test1"), ("leak.exact", "train0", "test2")]
    two = rows("train", "How do I pay the bill of my brother", "How do I pay the bills of my brother")
    found = [(one.check, one.places[0].id, one.places[1].id) for one in leaks([*two, test[2]])]
    assert found == [("leak.exact", "train0", "test2"), ("leak.edited", "train1", "test2")]
    found = [(one.check, one.places[1].id) for one in leaks([*train, *test[:2]])]
    assert found == [("leak.edited", "test0"), ("leak.edited", "test1")]


def test_rows_of_one_pool_leak_nothing_and_rows_of_one_group_are_named() -> None:
    assert leaks(rows("train", "Where is my card?", "where is my card")) == []
    one = leaks([*rows("train", "Where is my card?", group="g7"), *rows("test", "where is my card", group="g7")])[0]
    assert "'g7'" in one.message


def test_an_instruction_in_every_row_makes_no_two_rows_alike() -> None:
    form = (
        "You are a careful clerk. Read the message of the customer and name its intent in one word of the list below. Message:"
    )
    things = ["lost the card abroad", "need another account", "transfer got stuck", "fees look wrong", "who signs contracts"]
    train = [f"{form} {thing} {letter}" for thing in things for letter in ("today", "yesterday morning", "in spring", "at sea")]
    test = [f"{form} why is {thing}" for thing in ("rain wet", "bread dear", "night dark")]
    assert leaks([*rows("train", *train), *rows("test", *test)]) == []
    assert len(set(clusters([*train, *test]))) == len(train) + len(test)
    # And what is the same behind it is still found.
    planted = f"{form} why is the rains wet"
    assert [one.check for one in leaks([*rows("train", *train, planted), *rows("test", *test)])] == ["leak.edited"]


def test_a_document_that_holds_a_question_is_for_review_and_nothing_is_taken_away() -> None:
    question = "How long does a passenger have to claim a lost suitcase?"
    noise = " ".join(f"word{at} stands here" for at in range(30_000))
    bodies = (f"{noise} {question.lower()} {noise}", f"A passenger has 30 days. {LONG}", "a lost suitcase")
    documents = [Document(f"documents{at}", body) for at, body in enumerate(bodies)]
    texts = [*rows("train", question.replace("lost", "late")), *rows("test", question, "Who steers?")]
    started = time.perf_counter()
    (one,) = leaks(texts, documents=documents)
    assert time.perf_counter() - started < 5
    assert (one.check, one.level, one.drop, one.value) == ("leak.ngram", "review", False, 9.0)
    assert [place.id for place in one.places] == ["test0", "documents0"]


def embed(vectors: dict[str, Sequence[float]]):
    return lambda texts: np.array([np.array(vectors[text]) / np.linalg.norm(vectors[text]) for text in texts], dtype=np.float32)


def test_a_row_that_stands_out_among_its_neighbours_is_for_review() -> None:
    # Twenty rows on one side of a circle, all with a cosine near 0.9 to one another; two on the other side that are a pair.
    draw = np.random.default_rng(0)
    crowd = {f"crowd {letter}": [6, 0, *draw.normal(size=6)] for letter in string.ascii_lowercase[:20]}
    vectors = {**crowd, "buy it": [-1, 0.3, 0, 0, 0, 0, 0, 0], "purchase it": [-1, 0, 0.3, 0, 0, 0, 0, 0]}
    train, test = [*list(crowd)[:10], "buy it"], [*list(crowd)[10:], "purchase it"]
    (one,) = similar([*rows("train", *train), *rows("test", *test)], embed(vectors), threshold=1.2)
    assert (one.check, one.level, one.drop) == ("leak.similar", "review", False)
    assert [place.text for place in one.places] == ["buy it", "purchase it"]
    assert one.value == pytest.approx(1 / 1.09, abs=1e-5)


def test_the_score_is_the_cosine_plus_its_margin_over_the_next_neighbours() -> None:
    draw = np.random.default_rng(1)
    vectors = {f"t{letter}": draw.normal(size=4) for letter in string.ascii_lowercase}
    names = list(vectors)
    units = {name: vectors[name] / np.linalg.norm(vectors[name]) for name in names}
    cosines = np.array([[units[a] @ units[b] for b in names[10:]] for a in names[:10]])
    rest = [np.sort(some)[:, ::-1][:, 1:4].mean(1) for some in (cosines, cosines.T)]
    scores = np.where(cosines >= LEAST_COSINE, cosines + cosines - (rest[0][:, None] + rest[1][None, :]) / 2, -9)
    expected = {(f"train{at}", f"test{scores[at].argmax()}") for at in range(10) if scores[at].max() >= 1.0}
    texts = [*rows("train", *names[:10]), *rows("test", *names[10:])]
    assert {(one.places[0].id, one.places[1].id) for one in similar(texts, embed(vectors), threshold=1.0)} == expected
    assert 0 < len(expected) < 10


def test_the_review_leaves_out_other_numbers_and_what_is_reported_and_says_how_many_more() -> None:
    many = [f"thing {chr(97 + at // 10)}{chr(97 + at % 10)}x" for at in range(60)]
    texts = [*rows("train", *many, "pay 5 pounds"), *rows("test", *(f"a {one} too" for one in many), "pay 7 pounds")]
    vectors = {one.place.text: np.eye(61)[at % 61] for at, one in enumerate(texts)}
    seen = similar(texts, embed(vectors))
    assert len([one for one in seen if one.places]) == MOST_SHOWN
    assert (seen[-1].level, seen[-1].value) == ("info", 60 - MOST_SHOWN)
    assert similar(texts, embed(vectors), reported=leaks([*rows("train", *many), *rows("test", *many)])) == []


SYNONYMS = {"billed": "charged", "overseas": "abroad"}


class Spelt:
    """Word pieces are words; each has a direction of its own, but for synonyms, which are near."""

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[sum(map(ord, word)) for word in words(text)] for text in texts]

    def piece_vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([self._vector(word) for word in words(text)], dtype=np.float32) for text in texts]

    def _vector(self, word: str) -> np.ndarray:
        vector = np.random.default_rng(sum(map(ord, SYNONYMS.get(word, word)))).normal(size=64)
        return vector / np.linalg.norm(vector)


def test_a_word_without_a_counterpart_tells_two_questions_apart_whose_embeddings_are_as_near() -> None:
    texts = {
        "Why was I charged abroad?": [1, 0.1],
        "Why was I billed overseas?": [1, 0.1],
        "Why was I refunded abroad?": [1, 0.1],
    }
    (asked, reworded, other), vectors = texts, dict(texts)
    shares = matched([(asked, reworded), (asked, other)], list(texts), Spelt())
    assert shares[0] == pytest.approx(1.0, abs=1e-5)
    assert shares[1] < 0.8
    assert matched([], [], Spelt()) == []
    for text, seen in ((reworded, 1), (other, 0)):
        found = similar([*rows("train", text), *rows("test", asked)], embed(vectors), threshold=1.4, pieces=Spelt())
        assert len(found) == seen


def test_two_texts_alone_are_judged_by_their_cosine() -> None:
    texts = [*rows("train", "one"[::-1]), *rows("test", "other")]
    assert similar(texts, embed({"eno": [1, 0.1], "other": [1, 0]}))[0].value == pytest.approx(1 / np.sqrt(1.01))
    assert similar(texts, embed({"eno": [1, 0.6], "other": [1, 0]})) == []
    assert similar([], embed({})) == []


sentences = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(sentences, max_size=14))
def test_no_pair_is_missed_that_comparing_all_pairs_finds(texts: list[str]) -> None:
    from rapidfuzz.distance import Indel

    some = corpus(distinct(texts)[0])

    def everything(first, second):
        return np.ones(len(first), dtype=bool)

    expected = {
        (one, other)
        for one, other in combinations(range(len(some.texts)), 2)
        if fixed(some.texts[one]) == fixed(some.texts[other])
        and Indel.normalized_similarity(" ".join(some.texts[one]), " ".join(some.texts[other])) >= 0.8
        and lightly_edited(some.texts[one], some.texts[other])
    }
    pairs = edited(some, everything)
    assert {tuple(sorted((pair.first, pair.second))) for pair in pairs} == expected
    assert len(pairs) == len(expected)


def long_texts() -> list[str]:
    """Forty texts, each in four versions with up to three words replaced."""
    draw = random.Random(3)
    base = [[f"w{draw.randrange(400)}x" for _ in range(draw.randrange(20, 60))] for _ in range(40)]
    base = [[word.translate(str.maketrans("0123456789", "abcdefghij")) for word in text] for text in base]
    texts = [[*text] for text in base for _ in range(4)]
    for text in texts:
        for _ in range(draw.randrange(4)):
            text[draw.randrange(len(text))] = draw.choice(("new", "other", "third-rate"))
    return [" ".join(text) for text in texts]


def test_the_exact_search_finds_what_minhash_finds() -> None:
    from datasketch import MinHash, MinHashLSH

    some = corpus(distinct(long_texts())[0])
    bags = [set(pairwise(text)) for text in some.texts]
    index = MinHashLSH(threshold=0.5, num_perm=128)
    sketches = MinHash.bulk([[" ".join(pair).encode() for pair in bag] for bag in bags], num_perm=128)
    for number, sketch in enumerate(sketches):
        index.insert(number, sketch)
    candidates = {tuple(sorted((number, other))) for number, one in enumerate(sketches) for other in index.query(one)}
    expected = {
        (one, other)
        for one, other in candidates
        if one != other
        and len(bags[one] & bags[other]) >= JACCARD * len(bags[one] | bags[other])
        and same_fixed(some.texts[one], some.texts[other])
    }
    ours = near(some, lambda first, _: np.ones(len(first), dtype=bool))
    assert {tuple(sorted((pair.first, pair.second))) for pair in ours} == expected


def test_no_long_pair_is_missed_either() -> None:
    some = corpus(distinct(long_texts())[0])
    bags = [set(pairwise(text)) for text in some.texts]

    def everything(first, second):
        return np.ones(len(first), dtype=bool)

    expected = {
        (one, other)
        for one, other in combinations(range(len(bags)), 2)
        if len(bags[one] & bags[other]) >= JACCARD * len(bags[one] | bags[other])
        and same_fixed(some.texts[one], some.texts[other])
    }
    assert {tuple(sorted((pair.first, pair.second))) for pair in near(some, everything)} == expected
    assert len(expected) > 20


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_longest_run_is_the_longest_common_substring(first: list[int], second: list[int]) -> None:
    from difflib import SequenceMatcher

    expected = SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size
    assert longest_run(np.array(first), np.array(second)) == expected
    assert longest_run(np.array(first), np.array(second), expected + 1) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(sentences, max_size=14), st.randoms(use_true_random=False))
def test_clusters_are_the_same_in_any_order(texts: list[str], draw: random.Random) -> None:
    order = list(range(len(texts)))
    draw.shuffle(order)
    numbers = clusters(texts)
    shuffled = clusters([texts[at] for at in order])
    partition = {frozenset(at for at, one in enumerate(numbers) if one == number) for number in set(numbers)}
    assert partition == {frozenset(order[at] for at, one in enumerate(shuffled) if one == number) for number in set(shuffled)}
    first_seen = list(dict.fromkeys(numbers))
    assert first_seen == list(range(len(first_seen)))


def test_clusters_join_in_chains_and_leave_the_others_alone() -> None:
    texts = [
        "How do I pay the bill now",
        "How do I pay bills now",
        "how do I pay bills now please",
        "Where is it",
        LONG,
        f"{LONG}!",
        "how do I pay 5 bills now",
    ]
    assert clusters(texts) == [0, 0, 0, 1, 2, 2, 3]
    assert clusters([]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(sentences, max_size=10), st.lists(sentences, max_size=10))
def test_what_a_fix_leaves_has_no_leak_and_whole_clusters_leak_nothing(train: list[str], test: list[str]) -> None:
    texts = [*rows("train", *train), *rows("test", *test)]
    gone = {one.places[0].id for one in leaks(texts) if one.drop}
    # What the task repeats is counted anew, so only lists too short for that must come out clean.
    if len(texts) < 10:
        assert leaks([one for one in texts if one.place.id not in gone]) == []
    numbers = clusters([*train, *test])
    side = {number for number in numbers if number % 2}
    split = [
        Text(Place("train" if n in side else "test", str(at), "", 0, text))
        for at, (n, text) in enumerate(zip(numbers, [*train, *test], strict=True))
    ]
    assert leaks(split) == []


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_words_and_is_its_own_copy(text: str) -> None:
    assert words(text)
    assert lightly_edited(words(text), words(text))
    if text.strip():
        assert [one.check for one in leaks([*rows("train", text), *rows("test", text)])] == ["leak.exact"]


@given(st.lists(st.sampled_from(VOCABULARY), max_size=7), st.lists(st.sampled_from(VOCABULARY), max_size=7))
def test_changes_are_the_least_number_over_all_alignments(first: list[str], second: list[str]) -> None:
    def least(one: tuple[str, ...], other: tuple[str, ...], left: str) -> int:
        if not one and not other:
            return 0
        best = BLOCKED
        if one and other and (one[0] == other[0] or alike(one[0], other[0])):
            best = least(one[1:], other[1:], "") + (one[0] != other[0])
        if one and left != "second" and not is_fixed(one[0]):
            best = min(best, least(one[1:], other, "first") + 1)
        if other and left != "first" and not is_fixed(other[0]):
            best = min(best, least(one, other[1:], "second") + 1)
        return best

    expected = least(tuple(first), tuple(second), "")
    ours = _changes(first, second, 100)
    assert ours == _changes(second, first, 100)
    assert ours == min(expected, BLOCKED)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("transfer", "transferred", True),
        ("activate", "activating", True),
        ("country", "countries", True),
        ("stop", "stopped", True),
        ("account", "acount", True),
        ("card", "crad", True),
        ("know", "nkow", True),
        ("card", "cards", True),
        ("card", "carding", True),
        ("beneficiary", "eneficiary", True),
        ("block", "lock", False),
        ("payment", "paymant", True),
        ("iran", "iraq", False),
        ("pay", "pat", False),
        ("lost", "cost", False),
        ("lock", "unlock", False),
        ("accepted", "rejected", False),
        ("austria", "australia", False),
        ("seven", "sevens", False),
    ],
)
def test_slips_and_endings(first: str, second: str, expected: bool) -> None:
    assert alike(first, second) is alike(second, first) is expected


def test_signs_count_between_operands_and_hyphens_do_not() -> None:
    assert words("What is 12+7?") == ["what", "is", "12", "+", "7"]
    assert words("x - y, top-up <b>now</b>") == ["x", "-", "y", "top", "up", "b", "now", "b"]
    assert words("at -5 or 10%, £3.50") == ["at", "-5", "or", "10", "%", "£", "3.50"]
    assert words("今天 the COVID-19") == ["今", "天", "covid", "19"]


def test_texts_that_repeat_one_word_take_no_longer_than_others() -> None:
    started = time.perf_counter()
    assert found("ha " * 100_000, "ha " * 90_000 + "ho") == ["leak.ngram"]
    many = ["yes no maybe so"] * 2000 + [" ".join(f"{w}s" for w in order) for order in combinations(VOCABULARY, 5)]
    clusters(many)
    assert time.perf_counter() - started < 10


def test_pairs_are_asked_for_in_both_orders_of_length() -> None:
    some = corpus([LONG.split(), ["so", *LONG.split(), "it", "was"]])
    (pair,) = quoted(some, lambda first, second: np.ones(len(first), dtype=bool))
    assert pair.value == len(LONG.split())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=8, max_size=60),
    st.lists(st.integers(0, 40), min_size=8, max_size=60),
    st.integers(8, 20),
)
def test_a_quoted_run_is_the_longest_one(first: list[int], second: list[int], length: int) -> None:
    texts = [[f"w{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in some] for some in (first, second)]
    texts[1] = texts[1] + texts[0][:length]
    numbers = [np.array([hash(word) % 2**31 for word in text]) for text in texts]
    expected = longest_run(numbers[0], numbers[1])
    for pair in quoted(corpus(texts), lambda one, other: np.ones(len(one), dtype=bool)):
        assert pair.value == expected
