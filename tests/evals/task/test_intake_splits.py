"""Splits: whole groups, each label by its share, the future for the test; and what an edit of the data moves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.task.example import Example
from evals.task.reading.formats import Row
from evals.task.splits import ALIKE, NAMES, make_splits, moment, named_groups, row_hash, split_problems, time_problems

WORDS = ["".join(random.Random(n).choices("bdfgklmnprstvaeiou", k=7)) for n in range(200)]


def sentence(number: int) -> str:
    """Six words; two numbers seldom share one."""
    return " ".join(random.Random(number).sample(WORDS, 6)) + f" {number}"


def row(number: int, target: str = "x", **more: str) -> Row:
    example = Example(f"r{number}", (Message("user", sentence(number)),), target, **more)
    return Row(example, "train.jsonl", number + 1)


def where(splits: dict[str, tuple[Row, ...]]) -> dict[str, str]:
    return {one.example.id: name for name in NAMES for one in splits[name]}


def drawn(rows: Sequence[Row], seed: int = 0, *, by_label: bool = False) -> dict[str, tuple[Row, ...]]:
    return make_splits({"train": rows}, seed, by_label=by_label)[0]


def test_each_label_has_its_share_in_every_split() -> None:
    rows = [row(n, "rare" if n % 10 == 0 else "common") for n in range(400)]
    splits = drawn(rows, by_label=True)
    for name, share in (("train", 0.6), ("dev", 0.2), ("test", 0.2)):
        labels = Counter(one.example.target for one in splits[name])
        assert labels == {"rare": round(40 * share), "common": round(360 * share)}, name


def test_labels_with_few_rows_are_shared_out_in_all_about_evenly() -> None:
    rows = [row(n, f"label {n % 77}") for n in range(77 * 3)]
    sizes = [len(drawn(rows, seed, by_label=True)["test"]) for seed in range(20)]
    assert 0.15 < sum(sizes) / 20 / len(rows) < 0.25
    assert len({tuple(sorted(where(drawn(rows, seed, by_label=True)).items())) for seed in range(5)}) == 5


@pytest.mark.parametrize("by_label", [False, True])
def test_the_draw_does_not_depend_on_the_order_of_the_rows(by_label: bool) -> None:
    rows = [row(n, f"l{n % 3}") for n in range(90)]
    mixed = random.Random(1).sample(rows, len(rows))
    assert where(drawn(rows, by_label=by_label)) == where(drawn(mixed, by_label=by_label))


@pytest.mark.parametrize("by_label", [False, True])
def test_an_edit_moves_a_few_rows_at_the_border_and_no_more(by_label: bool) -> None:
    rows = [row(n, f"l{n % 5}") for n in range(500)]
    before = where(drawn(rows, by_label=by_label))
    for edited in (rows[:-7], [*rows, *(row(n, "l1") for n in range(500, 507))]):
        after = where(drawn(edited, by_label=by_label))
        both = before.keys() & after.keys()
        moved = sum(before[one] != after[one] for one in both)
        assert moved <= 8, moved


def test_a_group_is_never_torn() -> None:
    rows = [row(n, f"l{n % 2}", group=f"g{n // 7}") for n in range(210)]
    for by_label in (False, True):
        splits = where(drawn(rows, by_label=by_label))
        assert all(len({splits[f"r{n}"] for n in range(7 * g, 7 * g + 7)}) == 1 for g in range(30))
        assert {"train", "dev", "test"} == set(splits.values())


def test_the_test_lies_in_the_future_of_everything_else() -> None:
    rows = [row(n, time=f"2026-{1 + n % 12:02d}-{1 + n % 28:02d}") for n in range(200)]
    splits, (said,) = make_splits({"train": rows}, 0)
    assert "by time" in said
    spans = {name: [moment(one.example.time) for one in splits[name]] for name in NAMES}
    assert max(spans["train"]) < min(spans["dev"])
    assert max(spans["dev"]) < min(spans["test"])
    assert all(30 <= len(splits[name]) <= 60 for name in ("dev", "test"))


def test_a_group_that_reaches_into_the_future_goes_there_whole() -> None:
    rows = [row(n, time=str(n), group="long" if n in {0, 99} else None) for n in range(100)]
    splits = where(drawn(rows))
    assert splits["r0"] == splits["r99"] == "test"
    train = [int(one[1:]) for one, name in splits.items() if name == "train"]
    test = [int(one[1:]) for one, name in splits.items() if name == "test" and one != "r0"]
    assert max(train) < min(test)


def test_rows_of_one_moment_cannot_be_split_by_time() -> None:
    splits = drawn([row(n, time="2026-01-01") for n in range(50)])
    assert [len(splits[name]) for name in NAMES] == [50, 0, 0]
    assert any(one.key == "data.test" for one in split_problems(splits))


@pytest.mark.parametrize(("text", "seconds"), [("12", 12.0), ("1970-01-02", 86400.0), ("1970-01-01T01:00:00+01:00", 0.0)])
def test_moments(text: str, seconds: float) -> None:
    assert moment(text) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "nan", "inf", "2026-13-01", "1e999"])
def test_what_is_no_moment_is_a_problem_at_its_line(text: str) -> None:
    (problem,) = time_problems([row(0, time="5"), row(1, time=text)], "time")
    assert (problem.line, problem.key) == (2, "time")


def test_a_row_without_the_time_that_others_have_is_a_problem() -> None:
    (problem,) = time_problems([row(0, time="5"), row(1)], "time")
    assert problem.line == 2
    assert time_problems([row(0), row(1)], "time") == []


def alike(rows: Sequence[Row]) -> list[Row]:
    """The same rows once more with a slip of the pen, under other names."""
    return [
        replace(
            one,
            example=replace(one.example, id=one.example.id + "b", messages=(Message("user", one.example.text.upper() + "!"),)),
        )
        for one in rows
    ]


def test_near_duplicates_are_one_group_in_one_split_and_keep_the_name_of_a_group_that_is_given() -> None:
    rows = [row(n) for n in range(60)]
    grouped, found = named_groups({"train": [*rows, *alike(rows[:20])]})
    assert found == 40
    groups = {one.example.id: one.example.group for one in grouped["train"]}
    assert all(groups[f"r{n}"] == groups[f"r{n}b"] for n in range(20))
    assert all(groups[f"r{n}"] is None for n in range(20, 60))
    assert groups["r0"] is not None
    assert groups["r0"].startswith(ALIKE)
    splits = where(make_splits(grouped, 0)[0])
    assert all(splits[f"r{n}"] == splits[f"r{n}b"] for n in range(20))
    named, found = named_groups({"train": [replace(one, example=replace(one.example, group="mine")) for one in rows]})
    assert found == 0
    assert {one.example.group for one in named["train"]} == {"mine"}


def test_a_group_that_was_found_keeps_its_name_and_does_not_change_a_rows_hash() -> None:
    rows = [row(n) for n in range(30)]
    first, _ = named_groups({"train": [*rows, *alike(rows[:5])]})
    second, _ = named_groups({"train": [*alike(rows[:5]), *rows[:-3]]})
    names = {one.example.id: one.example.group for one in first["train"]}
    assert all(one.example.group == names[one.example.id] for one in second["train"])
    assert [row_hash(one.example) for one in first["train"][:30]] == [row_hash(one.example) for one in rows]
    assert row_hash(replace(rows[0].example, group="mine")) != row_hash(rows[0].example)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=10, max_size=80),
    st.integers(0, 2**31 - 1),
    st.booleans(),
)
def test_whatever_the_groups_nothing_is_lost_doubled_or_torn(rows: list[tuple[int, int]], seed: int, by_label: bool) -> None:
    made = [row(n, f"l{label}", group=f"g{group}") for n, (group, label) in enumerate(rows)]
    splits = drawn(made, seed, by_label=by_label)
    assert sorted(where(splits)) == sorted(one.example.id for one in made)
    assert sum(map(len, splits.values())) == len(made)
    homes: dict[str, set[str]] = {}
    for name in NAMES:
        for one in splits[name]:
            homes.setdefault(str(one.example.group), set()).add(name)
    assert all(len(one) == 1 for one in homes.values())
    assert splits["train"] or len(homes) == 1
