"""Citations: read in the forms that models write, taken out of answers, and checked against what was shown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.rag.citations import citation_report, citations, cited_part, defused, supported, without_citations
from evals.scores import Score, Scores


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("47 crowns [1]", [1]),
        ("47 crowns [1, 3].", [1, 3]),
        ("47 [1][2] [1]", [1, 2]),
        ("from [2-4] and [6–7]", [2, 3, 4, 6, 7]),
        ("[1, 3-5; 9 and 2]", [1, 3, 4, 5, 9, 2]),
        ("[Passage 2] [source 3] [^4] [#5] 【6】 [ 7 ]", [2, 3, 4, 5, 6, 7]),
        ("[5-3] [1-999]", [5, 3, 1, 999]),
        # A list's number, a year, a word, a formula, nothing.
        ("(1) in [2020] by [ann] x[i] [] [1.5] [-1] [1,] 1]", []),
    ],
)
def test_the_forms_that_models_write(text: str, numbers: list[int]) -> None:
    assert citations(text) == numbers


numbers = st.lists(st.integers(0, 999), min_size=1, max_size=6)
plain = st.text("abc .,(1)é\n", max_size=20)


@given(st.lists(st.tuples(plain, numbers, st.sampled_from([", ", ",", ";", " and ", " & "])), max_size=6))
def test_what_was_written_is_read_and_nothing_else_goes(parts: list[tuple[str, list[int], str]]) -> None:
    text = "".join(f"{before}[{joint.join(map(str, cited))}]" for before, cited, joint in parts)
    assert citations(text) == list(dict.fromkeys(number for _, cited, _ in parts for number in cited))
    kept = without_citations(text)
    assert not citations(kept)
    # White space of the same line goes with a citation, and nothing but that.
    assert kept == "".join(before.rstrip(" ") for before, *_ in parts)


bracketed = st.lists(st.sampled_from([*"[]()【】 0129,;-–^#\n", "[12]", "[1, 2]", "passage ", "x", "and"]), max_size=40).map(
    "".join
)


@given(bracketed)
def test_no_number_of_a_passages_own_passes_for_ours(text: str) -> None:
    safe = defused(text)
    assert citations(safe) == []
    assert len(safe) == len(text)
    assert all(
        old == new or (old in "[【" and new == "(") or (old in "]】" and new == ")")
        for old, new in zip(text, safe, strict=True)
    )
    if not citations(text):
        assert safe == text


@given(bracketed)
def test_ranges_and_numbers_stay_small(text: str) -> None:
    found = citations(text)
    assert len(set(found)) == len(found)
    assert all(0 <= one <= 999 for one in found)
    assert len(found) <= 51 * (text.count("[") + text.count("【")) * 21
    assert all(left != right for left, right in pairwise(found))


def test_only_the_answers_own_citations_count() -> None:
    assert cited_part("47 crowns [2]\nThe canteen [3] is open.") == "47 crowns [2]"
    assert cited_part("47 crowns\n[2]\n\nSo [1].") == "47 crowns\n[2]\n"
    assert cited_part("[2]\n47 crowns\nmore [1]") == "[2]\n47 crowns"
    assert cited_part("[2]") == "[2]"
    assert cited_part("") == ""


def test_support_is_words_of_a_cited_passage() -> None:
    shown = ["Canteen: Lunch costs 47 crowns.", "Gym: It opens at 06:40."]
    assert supported("47 crowns", [1], shown) is True
    assert supported("the 47 CROWNS!", [2, 1], shown) is True
    assert supported("47 crowns", [2], shown) is False
    # Nothing is supported by a passage that is not there, and 0 is not the last one.
    assert supported("06:40", [0, 3, 999], shown) is False
    assert supported("7 crowns", [1], shown) is False
    assert supported("47 crowns", [], shown) is None


def item(name: str, trace: list[dict[str, Any]], skipped: str = "") -> Score:
    return Score(name, 0.0, "x", skipped=skipped, trace=trace)


def told(cited: list[int], unknown: list[int], by: bool | None) -> list[dict[str, Any]]:
    return [{"passages": [], "cited": cited, "unknown_citations": unknown, "supported": by}]


def test_the_report_gives_shares_of_what_cites() -> None:
    items = (
        item("a", told([1], [], True)),
        item("b", told([1, 9], [9], True)),
        item("c", told([2], [], False)),
        item("d", told([], [], None)),
        item("e", told([3], [], True)),
        item("f", [{"passages": []}], skipped="too long"),
    )
    assert citation_report(Scores("rag", "rag", "dev", "m", items)) == {
        "answers": 5.0,
        "cited": 4 / 5,
        "valid": 3 / 4,
        "supported": 3 / 4,
    }
    assert citation_report(Scores("rag", "rag", "dev", "m", (item("a", told([], [], None)),)))["supported"] == 0.0
    assert citation_report(Scores("rag", "rag", "dev", "m", (item("a", [{"passages": []}]), item("b", [])))) == {}
