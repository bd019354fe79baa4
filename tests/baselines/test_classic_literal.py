"""Where values stand in their inputs."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baselines.classic.fields import ABSENT
from baselines.classic.literal import Pattern, Run, learn_patterns, runs
from baselines.classic.tokens import features, tokens

TEXT = st.text(alphabet="aB9 .-_é\n[]ß漢", max_size=30)


@given(TEXT)
def test_tokens_are_the_text_in_order_without_its_white_space(text: str) -> None:
    words = tokens(text)
    assert all(text[word.start : word.end] == word.text for word in words)
    assert "".join(word.text for word in words) == "".join(text.split())
    assert len(features(text, words)) == len(words)


@given(TEXT, st.data())
def test_every_run_of_tokens_is_found_where_it_stands(text: str, data: st.DataObject) -> None:
    words = tokens(text)
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    wanted = text[words[first].start : words[last - 1].end]
    found = runs(text, words, wanted)
    assert Run(first, last) in found
    assert all(text[words[run.first].start : words[run.last - 1].end] == wanted for run in found)


def test_a_part_of_a_token_is_no_run() -> None:
    text = "Seattle, seat 9 and seat 19"
    assert len(runs(text, tokens(text), "seat")) == 2
    assert len(runs(text, tokens(text), "9")) == 1
    assert runs(text, tokens(text), "") == runs(text, tokens(text), "t 9") == []


def learnt(rows: list[tuple[str, dict[str, Any]]]) -> dict[str, Pattern]:
    return {one.key: one for one in learn_patterns([text for text, _ in rows], [body for _, body in rows])}


def test_a_fixed_beginning_and_the_usual_other_value_are_learnt() -> None:
    rows = [(f"my order {70000 + at} is late", {"order": f"N-{70000 + at}", "team": "late"}) for at in range(6)]
    rows += [("I want a refund", {"order": "none", "team": "money"})] * 7
    found = learnt(rows)
    assert found["order"] == Pattern("order", "N-", "", False, '"none"')
    assert found["order"].value("123") == '"N-123"'
    assert found.keys() == {"order", "team"}  # "late" stands in the text as well


def test_values_that_mostly_stand_elsewhere_are_no_pattern() -> None:
    rows = [(f"it is {word}", {"word": word}) for word in ("red", "blue", "green", "pink", "grey")]
    other = [("it is something", {"word": f"thing {at}"}) for at in range(8)]
    assert learnt(rows)["word"].otherwise == ABSENT
    assert learnt(rows + other) == {}
    assert learnt(rows[:4]) == {}  # too few


def test_a_value_that_has_less_than_half_of_itself_in_the_text_is_not_there() -> None:
    assert learnt([(f"to number {at}", {"depot": f"OSLO-{at}"}) for at in range(9)]) == {}


def test_numbers_stay_numbers() -> None:
    rows = [(f"{at}.5 kilos please", {"weight": at + 0.5, "whole": at}) for at in range(10, 20)]
    found = learnt(rows)
    assert found["weight"] == Pattern("weight", "", "", True, ABSENT)
    assert found["weight"].value("12.5") == "12.5"
    assert found["weight"].value("007") == ABSENT  # no JSON number
    assert found["weight"].value("true") == ABSENT
    assert json.loads(found["whole"].value("11")) == 11
    assert found["weight"].core("12.5") == ""  # a text, where numbers are wanted
    assert found["weight"].core(True) == ""
