"""Planted faults of rows are found, each by its check and with its numbers; and whole, ordinary rows are left in peace."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.task.checks.findings import Finding
from evals.task.checks.places import SHOWN_CHARACTERS, shortened
from evals.task.checks.quality import row_checks
from evals.task.example import Example
from evals.task.reading.formats import Row
from evals.task.spec import OutputType

SENTENCE = "The parcel number {} was sent to the old address last week and came back."


def row(at: int | str, text: str, target: str, **more: Any) -> Row:
    return Row(Example(f"row-{at}", (Message("user", text),), target, **more), "train.jsonl", at if isinstance(at, int) else 1)


def ordinary(count: int) -> list[Row]:
    """Rows of different questions and of whole sentences, no two of the same length for long."""
    return [
        row(at, f"Where is parcel {at}{'?' * (1 + at % 3)}", SENTENCE.format(at) + " It is here." * (at % 7))
        for at in range(count)
    ]


def checked(
    rows: Sequence[Row],
    output_type: OutputType = "text",
    check: str = "",
    *,
    labels: Sequence[str] = (),
    **splits: Sequence[Row],
) -> list[Finding]:
    given = {"train": rows, **splits}
    found = row_checks(given, output_type=output_type, labels=labels, count_tokens=None, context_length=None)
    return [one for one in found if not check or one.check == check]


def ids(found: Sequence[Finding]) -> list[str]:
    return [one.places[0].id.removeprefix("row-") for one in found]


def test_ordinary_rows_are_left_in_peace() -> None:
    assert checked(ordinary(200)) == []


def test_a_text_of_invisible_signs_is_empty() -> None:
    rows = [*ordinary(5), row(5, "a", "\u200b\u2060 "), row(6, "\u3164", "b"), row(7, "👍", "+")]
    found = checked(rows, check="empty")
    assert ids(found) == ["5", "6"]
    assert "U+200B" in found[0].message
    assert [one.level for one in found] == ["warning", "warning"]


@pytest.mark.parametrize("target", ["N/A", "TODO", "[null]", "-", "...", "none", "#N/A"])
def test_a_stand_in_for_a_target_is_seen(target: str) -> None:
    found = checked([*ordinary(30), row(30, "What is it called?", target)], check="empty")
    assert ids(found) == ["30"]


def test_a_stand_in_that_many_rows_have_is_said_once() -> None:
    rows = [*ordinary(30), *(row(30 + at, f"Is there a number {at}?", "None") for at in range(10))]
    found = checked(rows, check="empty")
    assert len(found) == 1
    assert found[0].value == 10
    assert "10 of 40 rows" in found[0].message


def test_a_label_called_none_is_a_label_and_one_called_todo_is_not() -> None:
    rows = [row(at, f"text {at}", label) for at, label in enumerate(["none", "todo", "yes", "no"] * 6)]
    found = checked(rows, "label", "empty", labels=["none", "todo", "yes", "no"])
    assert [one.value for one in found] == [6.0]
    assert "'todo'" in found[0].message


def test_an_empty_object_is_an_answer() -> None:
    assert checked([row(at, f"text {at}", "{}") for at in range(30)], "json", "empty") == []


@pytest.mark.parametrize(
    ("target", "sign"),
    [
        ("Run this:\n```python\nprint(1)\n", "code fence"),
        ('{"name": "Ann", "tags": ["a", "b"', "2 brackets"),
        ('{"name": "An', "2 brackets or quotes"),
        ("The first half of it is here. [truncated]", "says itself"),
        ("The first half of it [+1204 chars]", "says itself"),
    ],
)
def test_what_is_left_open_was_cut(target: str, sign: str) -> None:
    found = checked([*ordinary(30), row(30, "Go on?", target)], check="truncated")
    assert ids(found) == ["30"]
    assert sign in found[0].message


@pytest.mark.parametrize(
    "target",
    ["```\nok\n```", '{"a": [1, {"b": "}"}]}', '{"a": "x"} is what I would write.', "See {this} [there](url).", '["a]", "b"]'],
)
def test_what_is_closed_was_not_cut(target: str) -> None:
    assert checked([*ordinary(30), row(30, "Go on?", target)], check="truncated") == []


def test_a_target_that_stops_in_mid_sentence_among_whole_ones() -> None:
    cut = row(30, "And then?", "The parcel was sent to the old address last week and then the")
    assert ids(checked([*ordinary(30), cut], check="truncated")) == ["30"]
    # Where a third of the targets end without a mark, it is how they are written.
    bare = [row(40 + at, f"Parcel {at}, please", SENTENCE.format(at).rstrip(".")) for at in range(15)]
    assert checked([*ordinary(30), *bare], check="truncated") == []


def test_targets_that_all_stop_at_one_length_were_cut_there() -> None:
    story = "".join(f"and then number {at} came along " for at in range(40))
    rows = [
        *ordinary(40),
        *(row(40 + at, f"Tell story {at}", (f"Story {at}: {story}")[:300].ljust(300, "x")) for at in range(8)),
    ]
    found = [one for one in checked(rows, check="truncated") if "exactly" in one.message]
    assert len(found) == 1
    assert found[0].value == 8
    assert "8 targets are exactly 300 characters" in found[0].message
    assert found[0].details["ids"] == [f"row-{at}" for at in range(40, 48)]


def test_whole_texts_of_one_length_were_not_cut() -> None:
    news = "is on its way to you and will be there soon " * 4 + "."
    rows = [row(at, f"Where is parcel {at}?", f"Parcel {at:04d} {news}") for at in range(40)]
    assert checked(rows, check="truncated") == []


def test_a_long_input_that_ends_in_an_ellipsis_was_perhaps_cut_and_a_short_one_hesitates() -> None:
    rows = [*ordinary(30), row(30, "Hm...", "Yes, this is a whole answer."), row(31, "long " * 60 + "...", "Yes.")]
    assert ids(checked(rows, check="truncated")) == ["31"]


def test_rows_over_the_context_are_told_with_both_numbers_and_only_they_are_counted() -> None:
    asked: list[str] = []

    def count(texts: Sequence[str]) -> list[int]:
        asked.extend(texts)
        return [len(text.split()) for text in texts]

    rows = [row(0, "word " * 9000, "end"), row(1, "w" * 9000, "end"), row(2, "short", "end")]
    found = row_checks({"test": rows}, output_type="text", labels=(), count_tokens=count, context_length=8192)
    overlong = [one for one in found if one.check == "overlong"]
    assert [one.message for one in overlong] == ["the input and target are 9,001 tokens, the model's context is 8,192"]
    assert (overlong[0].value, overlong[0].places[0].pool, overlong[0].drop) == (9001.0, "test", False)
    # A row of fewer bytes than the context has tokens cannot be too long.
    assert len(asked) == 2


def test_everything_that_the_model_reads_counts_towards_its_context() -> None:
    long = "word " * 50
    more = [
        Row(Example("system", (Message("system", long), Message("user", "a")), "b"), "f", 1),
        Row(Example("rejected", (Message("user", "a"),), "b", rejected=long), "f", 2),
        Row(Example("tools", (Message("user", "a"),), "b", tools=(long,)), "f", 3),
    ]
    found = row_checks(
        {"train": more},
        output_type="text",
        labels=(),
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        context_length=40,
    )
    assert ids([one for one in found if one.check == "overlong"]) == ["system", "rejected", "tools"]


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("a caf\u00c3\u00a9", "'é'"),
        ("caf\u00e9 it\u00e2\u20ac\u2122s", "’"),
        ("nothing \ufffd here \ufffd", "2 signs"),
        ("Tom &amp; Jerry&#39;s", "2 HTML escapes"),
        ("\u00d0\u00bf\u00d1\u20ac\u00d0\u00b8\u00d0\u00b2\u00d0\u00b5\u00d1\u201a", "'привет'"),
    ],
)
def test_damage_of_the_encoding_is_seen(text: str, sign: str) -> None:
    found = checked([*ordinary(3), row(3, text, "Yes.")], check="encoding")
    assert ids(found) == ["3"]
    assert sign in found[0].message


@pytest.mark.parametrize(
    "text",
    [
        "« voilà\u00a0», dit-il «NON»",
        "AT&T; R&D",
        "<p>Tom &amp; Jerry</p>",
        "Ä“ und Ñandú, SÃO PAULO",
        "naïve café — “so”…",
        "привет",
    ],
)
def test_honest_signs_are_no_damage(text: str) -> None:
    assert checked([*ordinary(3), row(3, text, "Yes.")], check="encoding") == []


@given(st.text(alphabet=st.characters(min_codepoint=0xA0, max_codepoint=0x17F), min_size=1, max_size=20))
def test_text_is_never_called_damaged_unless_a_repair_reads_it(text: str) -> None:
    for one in checked([row(0, text, "Yes.")], check="encoding"):
        assert "such as" in one.message


def test_the_same_input_with_two_labels_contradicts_itself_across_splits() -> None:
    rows = [row(0, "Where is my card?", "card"), row(1, "Other", "card")]
    test = [row(2, "where is  my card", "transfer")]
    found = checked(rows, "label", "contradiction", labels=["card", "transfer"], test=test)
    assert [(one.level, [place.id for place in one.places], [place.pool for place in one.places]) for one in found] == [
        ("warning", ["row-0", "row-2"], ["train", "test"])
    ]
    assert "'card' (1); 'transfer' (1)" in found[0].message


@pytest.mark.parametrize(
    ("output_type", "one", "other", "same"),
    [
        ("json", '{"a": 1, "b": 2}', '{"b": 2, "a": 1.0}', True),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("number", "1,000", "1000.0", True),
        ("number", "7", "8", False),
        ("text", "In Paris.", "in paris", True),
        ("text", "In Paris.", "In Rome.", False),
        ("label", "Yes", "yes", False),
    ],
)
def test_what_counts_as_another_target(output_type: OutputType, one: str, other: str, same: bool) -> None:
    found = checked([row(0, "q", one), row(1, "q", other)], output_type, "contradiction")
    assert len(found) == (0 if same else 1)
    if found:
        assert found[0].level == ("review" if output_type == "text" else "warning")


@pytest.mark.parametrize("other", ["What is 2-2?", "What is 22?", "What is 2.2?", "What is -2+2?"])
def test_signs_of_arithmetic_make_another_question(other: str) -> None:
    assert checked([row(0, "What is 2+2?", "4"), row(1, other, "0")], "number", "contradiction") == []


def test_the_context_of_a_question_makes_another_question() -> None:
    rows = [
        Row(Example("a", (Message("system", "English"), Message("user", "Hi")), "Hello."), "f", 1),
        Row(Example("b", (Message("system", "French"), Message("user", "Hi")), "Salut."), "f", 2),
        row("c", "Hi", "Yes?", tools=('{"name": "x"}',)),
        row("d", "Hi", "No.", images=("x.png",)),
    ]
    assert checked(rows, check="contradiction") == []


def test_preferences_contradict_each_other_only_about_the_same_answers() -> None:
    agreeing = [row(0, "q", "good", rejected="bad"), row(1, "q", "fine", rejected="poor")]
    assert checked(agreeing, check="contradiction") == []
    assert len(checked([*agreeing, row(2, "q", "bad", rejected="good")], check="contradiction")) == 1
    liked = [row(0, "q", "good", desirable=True), row(1, "q", "bad", desirable=False)]
    assert checked(liked, check="contradiction") == []
    found = checked([*liked, row(2, "q", "bad", desirable=True)], check="contradiction")
    assert [one.level for one in found] == ["warning"]


def test_of_equal_rows_in_a_split_the_later_ones_may_be_dropped() -> None:
    rows = [row(0, "Where?", "Here."), row(1, "where", "Here."), row(2, "Where? ", "Here."), row(3, "Where?", "Here.")]
    found = checked(rows, check="duplicate", test=[row(4, "Where?", "Here.")])
    assert [([place.id for place in one.places], one.drop) for one in found] == [
        (["row-1", "row-0"], False),
        (["row-2", "row-0"], True),
        (["row-3", "row-0"], True),
    ]


def test_rows_that_differ_in_what_they_carry_are_not_dropped() -> None:
    rows = [row(0, "q", "a", gold_passages=("x",)), row(1, "q", "a", gold_passages=("y",))]
    assert [one.drop for one in checked(rows, check="duplicate")] == [False]


def test_class_balance_in_numbers() -> None:
    rows = [row(at, f"text {at}", label) for at, label in enumerate(["a"] * 60 + ["b"] * 17 + ["c"] * 3)]
    test = [row(100, "new", "d"), row(101, "old", "a")]
    found = checked(rows, "label", "class_balance", labels=["a", "b", "c", "d", "e"], test=test)
    shares, few, unseen, silent = found
    assert shares.level == "review"
    assert shares.value == 0.75
    assert shares.details == {"counts": {"a": 60, "b": 17, "c": 3}, "majority_share": 0.75, "imbalance": 20.0}
    assert "3 to 60 rows each (1 to 20)" in shares.message
    assert few.details == {"c": 3}
    assert (unseen.details, unseen.places[0].pool) == ({"d": 1}, "test")
    assert silent.details == {"e": 0}


def test_a_majority_that_looks_good_by_itself_is_a_warning() -> None:
    rows = [row(at, f"text {at}", "a" if at % 10 else "b") for at in range(100)]
    assert [(one.level, one.value) for one in checked(rows, "label", "class_balance")] == [("warning", 0.9)]


def test_even_classes_are_one_sentence() -> None:
    rows = [row(at, f"text {at}", "ab"[at % 2]) for at in range(100)]
    assert [one.level for one in checked(rows, "label", "class_balance", labels=["a", "b"])] == ["info"]


def test_nothing_is_deleted_unasked() -> None:
    rows = [row(0, "q", "TODO"), row(1, "q", "Yes."), row(2, "x" * 400 + "...", "N/A"), row(3, "a", "\u200b")]
    assert not any(one.drop for one in checked(rows))


@given(st.text(max_size=3000), st.text(max_size=200))
def test_any_text_is_checked_and_shown_on_one_short_line(text: str, target: str) -> None:
    for one in checked([*ordinary(2), row("x", text, target), row("y", text, target + "!")]):
        assert json.dumps(one.details, ensure_ascii=True)
        for place in one.places:
            assert "\n" not in place.text
    assert len(shortened(text)) <= SHOWN_CHARACTERS


@pytest.mark.parametrize(
    "piece", ["[", '{"a":', '["', "&amp", "<a", "\u00c3", "```\n", "...", " ", "\u200b", '\\"', "a. ", '"\\'], ids=repr
)
def test_a_hostile_megabyte_takes_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    checked([row(0, "a" + text, text + "a"), row(1, "<" + text, '{"' + text)])
    assert time.perf_counter() - started < 3
