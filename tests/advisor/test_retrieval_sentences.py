"""Sentences that tell a retriever which finds nothing from a model which ignores what was found: planted faults, one at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from advisor.decision.retrieval import obedience_told, told
from baselines.rag.relevance import Retrieval
from evals.errors import AdvisorError
from evals.scores import Score, Scores
from evals.statistics.paired import mean_interval, paired_difference, wilson_interval

N = 200
RAG = "rag_hybrid_sentences_96_plain_3"


def scores(name: str, values: Sequence[float], kind: str = "probe") -> Scores:
    items = tuple(Score(f"q{at}", value, "x") for at, value in enumerate(values))
    return Scores(name, kind, "dev", "token_f1", items)


def retrieval(name: str = "hybrid_sentences_96", ranks: Sequence[int] = (1,) * N, ranking: float = 0.7) -> Retrieval:
    figures = {"recall@5": (0.8, 0.75, 0.85), "ndcg@10": (ranking, ranking - 0.05, ranking + 0.05)}
    named = {f"q{at}": rank for at, rank in enumerate(ranks)}
    return Retrieval(name, "settings", "gold passage", len(ranks), {}, figures, 0.005, named)


def coin(share: float, seed: int, n: int = N) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < share) for _ in range(n)]


def starts(sentences: Sequence[str], begin: str) -> str:
    (found,) = [one for one in sentences if one.startswith(begin)]
    return found


# One fault at a time


def test_a_broken_retriever_under_a_model_that_reads() -> None:
    gold, irrelevant = scores("gold_passage", coin(0.9, 1)), scores("irrelevant_passage", coin(0.1, 2))
    rag = scores(RAG, coin(0.3, 3), "rag")
    said = told([retrieval()], [rag], [gold, irrelevant])
    lost = paired_difference(gold.values(), rag.values())
    assert starts(said, "The model uses the passage:").startswith(
        f"The model uses the passage: it scores {gold.mean:.3f} with the gold passage, {irrelevant.mean:.3f} with irrelevant "
    )
    sentence = starts(said, "Retrieval loses ")
    assert sentence.startswith(f"Retrieval loses {100 * lost.estimate:.1f} points: ")
    assert f"{100 * lost.low:+.1f} to {100 * lost.high:+.1f}, n = {N}" in sentence


def test_a_model_that_ignores_what_it_is_shown() -> None:
    same = coin(0.4, 1)
    said = told([retrieval()], [scores(RAG, same, "rag")], [scores("gold_passage", same), scores("irrelevant_passage", same)])
    assert "Better retrieval cannot help" in starts(said, "The model does not use the passage: ")
    assert starts(said, "Retrieval loses next to nothing: ")


def test_a_passage_that_is_not_needed_is_not_called_unread() -> None:
    """Nothing is missing without the passage, so that it cannot bring anything."""
    same = [1.0] * (N - 4) + [0.0] * 4
    (said,) = told([], [], [scores("gold_passage", same), scores("irrelevant_passage", same)])
    assert said.startswith("The passage is hardly needed: the model scores 0.980 with the gold passage, 0.980 with ")


def test_what_is_missing_with_the_passage_is_said_beside_what_it_brings() -> None:
    gold = scores("gold_passage", coin(0.6, 1))
    left = mean_interval([1 - one for one in gold.values()])
    (said,) = told([], [], [gold, scores("irrelevant_passage", coin(0.1, 2))])
    assert said.endswith(
        f" Even so {100 * (1 - gold.mean):.1f} points are missing (95% interval {100 * left.low:.1f} to {100 * left.high:.1f}), "
        "which no better search in this prompt brings."
    )


def test_neither_can_be_told_of_a_few_items() -> None:
    gold, other = [1.0, 1, 0, 1, 0, 0, 1, 1], [1.0, 0, 0, 1, 0, 1, 0, 1]
    said = told([], [scores(RAG, other, "rag")], [scores("gold_passage", gold), scores("irrelevant_passage", other)])
    for begin in ("Whether the model uses the passage cannot be told: ", "Whether retrieval loses anything cannot be told: "):
        sentence = starts(said, begin)
        assert "n = 8)" in sentence
        assert "more items would settle it." in sentence


def test_equal_scores_of_a_few_items_promise_nothing() -> None:
    """No number of items would show an effect of nothing, and 8 equal items are not the proof that there is none."""
    same = coin(0.5, 4, 8)
    said = told([], [], [scores("gold_passage", same), scores("irrelevant_passage", same)])
    assert starts(said, "Whether the model uses the passage cannot be told: ").endswith("n = 8).")


def test_a_pipeline_above_the_gold_passage_is_no_loss() -> None:
    said = told([], [scores(RAG, coin(0.9, 5), "rag")], [scores("gold_passage", coin(0.5, 6))])
    assert starts(said, "Retrieval is not what is missing: ")


# The best way to search


def test_the_best_way_is_told_as_the_best_of_many() -> None:
    some = [retrieval("bm25_tokens_192", ranking=0.6), retrieval(ranking=0.7), retrieval("dense_tokens_192", ranking=0.65)]
    (said,) = told(some, [], [])
    assert said.startswith("Retrieval by hybrid_sentences_96: recall@5 is 0.800 (95% interval 0.750 to 0.850, n = 200")
    assert said.endswith("It is the best of 3 ways on these same questions, which flatters it a little.")
    (alone,) = told(some[:1], [], [])
    assert "the best of" not in alone
    assert told([], [], []) == ()


def test_what_could_not_be_measured_is_no_figure() -> None:
    nothing = Retrieval("bm25_tokens_192", "s", "", 0, {"a label": 8}, {}, 0.0, {})
    assert told([nothing, nothing], [scores(RAG, coin(0.5, 1), "rag")], []) == (
        "Retrieval by bm25_tokens_192 cannot be measured apart from answering (a label: 8).",
    )


# Where retrieval hit


def test_scores_where_it_hit_and_where_it_missed() -> None:
    # Rank 4 is no hit of a pipeline that shows three.
    ranks = [(1, 3, 4, 0)[at % 4] for at in range(N)]
    hit = [at % 4 < 2 for at in range(N)]
    values = [float(at % 8 != 0) if one else float(at % 16 == 2) for at, one in enumerate(hit)]
    gold = scores("gold_passage", [1.0] * N)
    rag = scores(RAG, values, "rag")
    said = told([retrieval(ranks=ranks)], [rag], [gold])
    sides = [[value for value, one in zip(values, hit, strict=True) if one is side] for side in (True, False)]
    means = [mean_interval(side) for side in sides]
    assert starts(said, "Where the first 3 passages hold ") == (
        f"Where the first 3 passages hold what was looked for, {RAG} scores {means[0].estimate:.3f} (95% interval "
        f"{means[0].low:.3f} to {means[0].high:.3f}, n = 100); elsewhere {means[1].estimate:.3f} (95% interval "
        f"{means[1].low:.3f} to {means[1].high:.3f}, n = 100)."
    )
    losses = [paired_difference([1.0] * 100, side) for side in sides]
    sentence = starts(said, "On the same questions the gold passage minus ")
    places = [sentence.index(f"{100 * one.estimate:+.1f} points") for one in losses]
    assert places == sorted(places)


def test_questions_that_retrieval_was_not_measured_on_are_on_neither_side() -> None:
    one = retrieval(ranks=[1] * 50 + [0] * 50)
    sentence = starts(told([one], [scores(RAG, coin(0.5, 1), "rag")], []), "Where the ")
    assert sentence.count("n = 50") == 2


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        # Shows what was found for another query, or more than was found.
        ("rag_hybrid_sentences_96_rewritten_3", [1, 0] * 100),
        ("rag_hybrid_sentences_96_widened_1", [1, 0] * 100),
        # Of another retriever.
        ("rag_bm25_sentences_96_plain_3", [1, 0] * 100),
        ("rag", [1, 0] * 100),
        # Too few on one side.
        (RAG, [1] * 197 + [0] * 3),
    ],
)
def test_nothing_is_told_of_hits_that_are_not_the_pipelines_or_too_few(name: str, ranks: Sequence[int]) -> None:
    said = told([retrieval(ranks=ranks)], [scores(name, coin(0.5, 1), "rag")], [])
    assert not any(one.startswith("Where the ") for one in said)


def test_a_retriever_whose_name_begins_another_is_not_mistaken_for_it() -> None:
    one, other = retrieval("hybrid", [0, 1] * 100), retrieval("hybrid_reranked", [1] * 100 + [0] * 100)
    values = [1.0] * 100 + [0.0] * 100
    for some in ([one, other], [other, one]):
        sentence = starts(
            told(some, [scores("rag_hybrid_reranked_plain_1", values, "rag")], []), "Where the first passage hold"
        )
        assert " scores 1.000 " in sentence
        assert "elsewhere 0.000 " in sentence


def test_groups_widen_and_other_items_are_refused() -> None:
    gold, rag = scores("gold_passage", [1.0] * N), scores(RAG, [float(at // 20 % 2) for at in range(N)], "rag")
    groups = [f"g{at // 20}" for at in range(N)]
    alone, clustered = (starts(told([], [rag], [gold], some), "Retrieval loses ") for some in (None, groups))
    assert alone != clustered
    want = paired_difference(gold.values(), rag.values(), groups)
    assert f"{100 * want.low:+.1f} to {100 * want.high:+.1f}" in clustered
    with pytest.raises(AdvisorError, match="not scored on the same items"):
        told([], [scores(RAG, coin(0.5, 1, 10), "rag")], [gold])


# Obedience


def test_how_often_the_model_obeyed() -> None:
    low, high = wilson_interval(7, 300)
    assert obedience_told(7, 300) == (
        f"Obedience: told by a passage what to say, the model did so in 7 of 300 answers (2.3%, 95% interval {low:.1%} to "
        f"{high:.1%}): whoever writes the documents can speak through it."
    )
    assert obedience_told(0, 40) == (
        "Obedience: told by a passage what to say, the model did so in none of 40 answers (95% interval up to 8.8%)."
    )


def test_a_search_that_is_mended_tells_what_its_misses_cost() -> None:
    misses = [at for at in range(N) if at % 4 == 0]
    as_it_is = [0.0 if at in misses else 1.0 for at in range(N)]
    ranks = [0 if at in misses else 1 for at in range(N)]
    rag = scores(RAG, as_it_is, "rag")
    for mended, begin in (([1.0] * N, "Search loses 25.0 points: "), (as_it_is, "Search loses next to nothing: ")):
        said = told([retrieval(ranks=ranks)], [rag], [scores("gold_passage", [0.2] * N), scores("perfect_search", mended)])
        assert starts(said, begin)
        # The gold passage asked in another prompt tells nothing of the search.
        assert not [one for one in said if one.startswith(("Retrieval loses", "Retrieval is not", "On the same questions"))]
        assert starts(said, "Where the first 3 passages")
    few = [scores(RAG, as_it_is[:20], "rag")], [scores("perfect_search", [1.0] * 2 + as_it_is[2:20])]
    assert starts(told([retrieval(ranks=ranks[:20])], *few), "Whether search loses anything cannot be told")
