"""ROUGE-L, BLEU and chrF: the libraries' own numbers, hand computation, every script, and long texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.metrics import overlap
from evals.metrics.overlap import bleu, chrf, rouge_l, words

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", "a"]), max_size=30).map(" ".join)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_rouge_is_the_library_on_plain_english(output: str, target: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    if output and target:
        expected = RougeScorer(["rougeL"]).score(target, output)["rougeL"].fmeasure
        assert rouge_l(output, target) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_long_pairs_take_the_same_number_another_way(output: str, target: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        short = rouge_l(output, target)
        patch.setattr(overlap, "ROUGE_CELLS", 0)
        assert rouge_l(output, target) == pytest.approx(short, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_words_are_those_of_the_library_on_ascii(text: str) -> None:
    from rouge_score.tokenize import tokenize

    # The library's \s knows no separators \x1c to \x1f, but drops them as well.
    assert words(text) == tokenize(text, None)


def test_rouge_by_hand() -> None:
    # LCS "the cat the mat" has 4 words; 6 and 5 words.
    assert rouge_l("The cat sat on the mat.", "the cat and the mat") == pytest.approx(2 * 4 / 11)
    # German: 3 of 4 and 4. The library's own tokenizer would cut the words at their umlauts.
    assert rouge_l("Die Straße führt übers Öd", "die straße führt nach Öd") == pytest.approx(0.8)
    assert words("Über-größe, naïve") == ["über", "grösse", "naïve"]
    # Chinese: signs 今天天气 (4) of 6 and 5.
    assert rouge_l("今天天气很好", "今天天气坏") == pytest.approx(2 * 4 / 11)
    assert rouge_l("Ελλάδα και Κύπρος", "Ελλάδα, Κύπρος") == pytest.approx(0.8)
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert rouge_l("?", "?") == 1.0
    assert rouge_l("?", "!") == rouge_l("", "a") == rouge_l("a", "?") == 0.0


PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("Paris is the capital.", "The capital of France is Paris."),
    ("It costs 3.5% more.", "It costs 3.5 % more!"),
    ("x", "completely different words here"),
]


@pytest.mark.parametrize(("output", "target"), PAIRS)
def test_bleu_and_chrf_are_sacrebleus_sentence_scores(output: str, target: str) -> None:
    from sacrebleu import sentence_bleu, sentence_chrf

    assert bleu(output, target) == pytest.approx(sentence_bleu(output, [target]).score / 100, abs=1e-12)
    assert chrf(output, target) == pytest.approx(sentence_chrf(output, [target]).score / 100, abs=1e-12)


def test_bleu_by_hand() -> None:
    # Precisions 3/4, 2/3, 1/2 and, smoothed, 1/(2*1); lengths are equal.
    assert bleu("the cat sat down", "the cat sat up") == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    # One word of two: a single order counts, and brevity exp(1 - 2/1).
    assert bleu("cat", "cat sat") == pytest.approx(2.718281828459045**-1)


def test_chinese_has_partial_credit() -> None:
    from sacrebleu import sentence_bleu

    output, target = "今天天气非常好,我们去公园", "今天天气很好,我们去公园"
    assert bleu(output, target) == pytest.approx(sentence_bleu(output, [target], tokenize="zh").score / 100)
    assert 0.3 < bleu(output, target) < 1.0
    assert 0.3 < chrf(output, target) < 1.0


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_any_text_has_a_score(output: str, target: str) -> None:
    for metric in (rouge_l, bleu, chrf):
        assert 0.0 <= metric(output, target) <= 1.0
        assert metric(target, target) == 1.0


def test_rouge_is_symmetric_and_order_counts() -> None:
    assert rouge_l("a b c d", "d c b a") == pytest.approx(0.25)
    assert rouge_l("a b c", "c a b d") == rouge_l("c a b d", "a b c")


def test_long_texts_end_soon() -> None:
    started = time.monotonic()
    assert rouge_l("a b " * 20_000, "b c " * 20_000) == pytest.approx(0.5, abs=1e-3)
    assert chrf("a b " * 20_000, "b c " * 20_000) > 0
    assert bleu("a b " * 20_000, "b c " * 20_000) > 0
    assert time.monotonic() - started < 20
