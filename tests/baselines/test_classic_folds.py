"""Folds that keep clusters whole, and settings chosen by them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baselines.classic.folds import FOLDS, MOST_VALUES, choose, clusters, folds, sample
from evals.engines.engine import Message
from evals.task.example import Example


def example(text: str, group: str | None = None) -> Example:
    return Example(text, (Message("user", text),), "x", group=group)


def test_a_cluster_is_a_group_or_the_rows_that_ask_the_same() -> None:
    names = clusters([example("Red?", "one"), example("blue", "one"), example("red"), example("RED!"), example("one")])
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert len(set(names)) == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=60))
def test_no_cluster_is_in_two_folds(rows: list[tuple[str, int]]) -> None:
    names = [f"cluster {number}" for _, number in rows]
    places = folds([value for value, _ in rows], names)
    seen = defaultdict(set)
    for name, place in zip(names, places, strict=True):
        seen[name].add(int(place))
    assert all(len(some) == 1 for some in seen.values())
    assert set(places) <= set(range(FOLDS))


def test_folds_of_single_rows_hold_each_value_evenly() -> None:
    values = ["a"] * 30 + ["b"] * 9 + ["c"] * 2
    places = folds(values, [str(at) for at in range(len(values))])
    for value, most in (("a", 10), ("b", 3), ("c", 1)):
        assert max(Counter(place for place, one in zip(places, values, strict=True) if one == value).values()) == most


def test_a_sample_is_the_same_rows_in_any_order() -> None:
    names = [f"cluster {at // 2}" for at in range(40)]
    found = sample(names, 10)
    backwards = sample(names[::-1], 10)
    assert {names[at] for at in found} == {names[::-1][at] for at in backwards}
    assert len(found) == 10
    assert len({names[at] for at in found}) == 5
    assert sample(names, 1000) == list(range(40))


def test_the_setting_is_chosen_that_is_right_most_often_on_rows_that_were_not_learnt_from() -> None:
    values = ["a", "b"] * 10
    names = [str(at // 2) for at in range(20)]
    asked: list[int] = []

    def right(setting: str, learn: Any, ask: Any) -> int:
        assert not {names[at] for at in learn} & {names[at] for at in ask}
        asked.extend(ask)
        return {"poor": 1, "good": 3, "equal": 3}[setting]

    assert choose(["poor", "good", "equal"], "usual", values, names, right) == "good"
    assert sorted(asked) == sorted([*range(20)] * 3)


def test_where_nothing_can_be_held_out_the_usual_setting_stands() -> None:
    def right(setting: str, learn: Any, ask: Any) -> int:
        raise AssertionError("there is nothing to learn from")

    assert choose(["a"], "usual", ["x", "y"], ["one", "one"], right) == "usual"
    # More values than are worth the time.
    many = [str(at // 2) for at in range(2 * MOST_VALUES + 2)]
    assert choose(["a"], "usual", many, [str(at) for at in range(len(many))], right) == "usual"
    # All rows but one have one value: without that row there is nothing to tell apart, with it nothing to ask about it.
    calls = []
    assert choose(["a"], "usual", ["x"] * 5, list("12345"), lambda *given: calls.append(given) or 0) == "usual"
    assert calls == []
