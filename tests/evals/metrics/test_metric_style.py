"""Style: each rule alone, counted syllables, a grade computed by hand, and any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evals.metrics.options import Style as Rules
from evals.metrics.style import kept_share, occurs, reading_grade, syllables

FOUR = "We ship it today."


@pytest.mark.parametrize(
    ("rules", "answer", "share"),
    [
        ({"min_words": 4}, FOUR, 1.0),
        ({"min_words": 5}, FOUR, 0.0),
        ({"max_words": 4}, FOUR, 1.0),
        ({"max_words": 3}, FOUR, 0.0),
        ({"banned": ["synergy", "TODAY"]}, FOUR, 0.0),
        ({"banned": ["synergy", "toda"]}, FOUR, 1.0),
        ({"required": ["we ship", "today"]}, FOUR, 1.0),
        ({"required": ["we ship", "tomorrow"]}, FOUR, 0.0),
        # Rules, not phrases, are counted: 2 of 4.
        ({"min_words": 2, "max_words": 3, "banned": ["today", "ship", "x"], "required": ["it"]}, FOUR, 0.5),
        ({"max_words": 10, "banned": ["x"]}, "  \n", 0.0),
        ({"min_words": 0}, "word", 1.0),
    ],
)
def test_share_of_rules_kept(rules: dict[str, object], answer: str, share: float) -> None:
    assert kept_share(Rules.model_validate({"name": "style", **rules}), answer) == pytest.approx(share)


def test_phrases_are_whole_words_in_any_case_and_script() -> None:
    assert occurs("state of the art", "A State-of-the-Art\n design")
    assert not occurs("art", "startle the party")
    assert occurs("GROSS", "groß ist gross, sagt er")
    assert occurs("C++", "we use c++.")
    assert not occurs("c", "ça va")
    assert occurs("天气", "今天天气很好")
    assert occurs("a.b", "a.b")
    assert not occurs("a.b", "axb")


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1),
        ("make", 1),
        ("whole", 1),
        ("table", 2),
        ("agree", 2),
        ("the", 1),
        ("rhythm", 1),
        ("beautiful", 3),
        ("Café", 1),
        ("banana", 3),
        ("2024", 1),
        ("e", 1),
        ("education", 4),
        ("bye,", 1),
        ("—", 1),
    ],
)
def test_syllables(word: str, count: int) -> None:
    # "Café" loses its accent and so its last syllable, "education" its hiatus: a plain rule.
    assert syllables(word) == count


def test_grade_by_hand() -> None:
    # 6 words in 1 sentence, 6 syllables.
    assert reading_grade("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)
    # 7 words in 2 sentences (3.5 ends none), syllables: it 1 grew 1 by 1 3.5 1, a 1 beautiful 3 table 2 = 10.
    assert reading_grade("It grew by 3.5! A beautiful table?") == pytest.approx(0.39 * 7 / 2 + 11.8 * 10 / 7 - 15.59)
    # A dash is no word; a line apart is a sentence.
    assert reading_grade("One cat —\n\nTwo cats") == pytest.approx(0.39 * 4 / 2 + 11.8 - 15.59)
    assert reading_grade("…?!") == 0.0
    hard = "Institutional considerations necessitate comprehensive documentation."
    rules = Rules.model_validate({"name": "style", "max_grade": 8})
    assert kept_share(rules, hard) == 0.0
    assert kept_share(rules, FOUR) == 1.0


@given(st.text(st.characters(exclude_categories=())), st.text(min_size=1).filter(str.strip))
def test_any_text(answer: str, phrase: str) -> None:
    rules = Rules.model_validate(
        {"name": "style", "min_words": 1, "max_words": 5, "banned": [phrase], "required": [phrase], "max_grade": 9}
    )
    share = kept_share(rules, answer)
    assert share in {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    # A phrase cannot both stand there and not.
    assert share < 1.0


@pytest.mark.parametrize("rules", [{}, {"banned": []}, {"max_words": None}, {"banned": [" "]}, {"required": [""]}])
def test_rules_that_say_nothing_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate({"name": "style", **rules})
