"""Free text: SQuAD's normalisation and the three scores on it."""

from __future__ import annotations

import pytest

from evals.metrics.text import containment, exact_match, normalise, token_f1, tokens


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("An apple, a day.", "apple day"),
        ("Don't", "dont"),
        ("ＡＢＣ", "abc"),
        ("Straße", "strasse"),
        ("“¿Qué?”", "qué"),
        ("theatre and Anna", "theatre and anna"),
        ("A", "a"),
        ("?!", "?!"),
        ("  ", ""),
    ],
)
def test_normalise(raw: str, plain: str) -> None:
    assert normalise(raw) == plain


def test_an_answer_that_is_an_article_is_not_the_empty_answer() -> None:
    assert exact_match("", "A") == 0.0
    assert exact_match("a.", "A") == 1.0


def test_f1_from_the_formula() -> None:
    # 2 shared of 3 given and 4 wanted: precision 2/3, recall 2/4, F1 4/7; a repeated word counts as often as in both.
    assert token_f1("cat sat down", "cat cat sat up") == pytest.approx(4 / 7)
    assert token_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert token_f1("cat", "dog") == 0.0


def test_f1_of_empty_answers() -> None:
    assert token_f1("", " ") == 1.0
    assert token_f1("", "cat") == 0.0
    assert token_f1("cat", "") == 0.0


def test_containment_is_by_whole_tokens_in_order() -> None:
    assert containment("I think it is the Eiffel Tower, in Paris.", "eiffel tower") == 1.0
    assert containment("Tower, Eiffel", "Eiffel Tower") == 0.0
    assert containment("a catalogue", "cat") == 0.0
    assert containment("the Eiffel (old) Tower", "Eiffel Tower") == 0.0


def test_an_empty_target_is_contained_in_an_empty_output_only() -> None:
    assert containment("", "") == 1.0
    assert containment("something", "") == 0.0


def test_signs_without_spaces_are_tokens() -> None:
    assert tokens("GPT 很好") == ["gpt", "很", "好"]
    assert containment("首都是北京。", "北京") == 1.0
    assert token_f1("北京市", "北京") == pytest.approx(0.8)
