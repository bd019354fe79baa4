"""How answers change in kind: lengths, refusals, languages, silence. Planted changes are found, and none is made up."""

from __future__ import annotations

import math
import statistics

import pytest

from evals.general.divergence import general_texts
from evals.general.drift import NEITHER, UNTOLD, Drift, drift, language, refuses, words

ENGLISH = list(general_texts())
GERMAN = [
    "Der Fluss entspringt im Gebirge und fließt durch die Stadt zum Meer.",
    "Ich kann heute leider nicht kommen, weil der Zug nicht fährt.",
    "Die Bibliothek ist am Montag geschlossen, aber am Dienstag wird sie wieder geöffnet.",
    "Wasser kocht auf einem Berg bei einer niedrigeren Temperatur als im Tal.",
    "Das Buch gehört meiner Schwester, und sie hat es schon zweimal gelesen.",
]
NONE = [
    "Le chien dort devant la maison et le chat est dans la cuisine.",
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed",
    "red blue green pink red blue green pink red",
]


def found_in(base: list[str], tuned: list[str]) -> Drift:
    found = drift(base, tuned)
    assert found is not None
    return found


def test_languages_are_told_apart_and_short_answers_are_left_alone() -> None:
    assert {language(one) for one in ENGLISH} == {"English"}
    assert {language(one) for one in GERMAN} == {"German"}
    assert [language(one) for one in NONE] == [NEITHER] * 3
    assert [language(one) for one in ("Paris.", "42", "", "red, blue", "Haus")] == [UNTOLD] * 5


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist with this request.",
        "Sorry, I can't do that.",
        "I cannot provide instructions for that.",
        "As an AI, I have to decline.",
        "I am unable to answer this.",
        "\n\nI won't help you with this.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Ich kann dir dabei nicht helfen.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 4.",
        "I can help with that.",
        "She said: I'm sorry.",
        "I cannot swim.",
        "I am afraid of spiders.",
        "I'm happy to help.",
        "Ich kann nicht schwimmen.",
        "Entschuldigung heißt excuse me.",
        "",
        *general_texts(),
    ],
)
def test_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not refuses(text)


def test_answers_that_stayed_as_they_were_show_no_drift() -> None:
    found = found_in(ENGLISH, ENGLISH)
    assert (found.n, found.switched) == (60, 0.0)
    assert found.switched_high < 0.1
    assert sum(one.tuned for one in found.languages) == pytest.approx(1.0)
    for one in found.changes:
        assert one.difference == 0.0
        assert one.low <= 0.0 <= one.high
        assert not one.shown


def test_lengths_are_paired_and_their_interval_is_the_t_interval() -> None:
    from scipy.stats import t

    shorter = [" ".join(one.split()[: 10 + at % 7]) for at, one in enumerate(ENGLISH)]
    found = found_in(ENGLISH, shorter).words
    gaps = [len(words(b)) - len(words(a)) for a, b in zip(ENGLISH, shorter, strict=True)]
    reach = t.ppf(0.975, 59) * statistics.stdev(gaps) / math.sqrt(60)
    assert found.difference == pytest.approx(statistics.mean(gaps)) == pytest.approx(found.tuned - found.base)
    assert (found.low, found.high) == pytest.approx((found.difference - reach, found.difference + reach))
    assert found.shown


def test_planted_silence_refusals_and_another_language_are_found() -> None:
    base = ENGLISH[:40]
    found = found_in(base, ["", " \n"] * 6 + base[12:])
    assert (found.empty.tuned, found.empty.shown) == (0.3, True)
    found = found_in(base, ["I'm sorry, I can't help with that."] * 12 + base[12:])
    assert (found.refused.base, found.refused.tuned, found.refused.shown) == (0.0, 0.3, True)
    found = found_in(base, GERMAN * 2 + base[10:])
    by_name = {one.name: one for one in found.languages}
    assert by_name["English"].difference == pytest.approx(-0.25)
    assert by_name["German"].difference == pytest.approx(0.25)
    assert by_name["German"].shown
    assert (found.told, found.switched) == (40, 0.25)
    assert 0.1 < found.switched_low < 0.25 < found.switched_high
    # A third language is neither, and not one of the two that were swapped.
    found = found_in(base, NONE * 4 + base[12:])
    assert {one.name: one.tuned for one in found.languages}[NEITHER] == 0.3
    assert (found.told, found.switched) == (28, 0.0)


def test_no_answers_no_drift_and_other_numbers_of_answers_are_refused() -> None:
    assert drift([], []) is None
    with pytest.raises(ValueError, match="zip"):
        drift(["a"], [])
    found = found_in(["1"], ["2"])
    assert (found.told, found.switched_low, found.switched_high) == (0, 0.0, 1.0)
