"""The race on dev: few answers, the good ones come through, and what it found is not searched again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.flow.race import COME_THROUGH, ROUNDS, STEP, in_rounds, race
from evals.candidate import Answer, Kind
from evals.events import CandidateScored, Event, ignore
from evals.scores import task_metrics
from evals.statistics.race import rejects_schedule
from evals.task.example import Example
from evals.task.load import Task, load_task
from tests.conftest import colour_rows


@dataclass
class Planted:
    """Right on a share of the items; counts what it was asked."""

    name: str
    rate: float
    kind: Kind = "prompt"
    engine: None = None
    asked: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"rate": self.rate}

    def requests(self, examples: Sequence[Example]) -> list[Answer]:
        self.asked += [one.id for one in examples]
        # By the item's number, so that the share holds on any part of the split.
        return [Answer(one.target if int(one.id.split("-")[1]) % 20 < 20 * self.rate else "none") for one in examples]

    def parse(self, text: str) -> str:
        return text


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task", rows={"train": colour_rows(24), "dev": colour_rows(60, 24), "test": None}))


def session(task: Task) -> Any:
    return SimpleNamespace(metrics=task_metrics(task, ignore))


def arms() -> list[Planted]:
    return [Planted("zero_shot", 0.0), *[Planted(f"p{at}", at / 20) for at in range(12)], Planted("best", 0.9)]


def test_the_best_come_through_for_a_fraction_of_the_answers(task: Task, tmp_path: Path) -> None:
    found = race(task, arms(), session(task), tmp_path / "race.json", ignore)
    assert "best" in found.through
    assert len(found.through) == COME_THROUGH + 1
    # Plain zero-shot stays, whatever it scores.
    assert "zero_shot" in found.through
    assert found.spent <= STEP * ROUNDS * len(task.dev)
    assert found.spent < len(arms()) * len(task.dev) / 2
    assert {one.candidate for one in found.left} | set(found.through) == {one.name for one in arms()}
    assert [one.items for one in found.left] == sorted(one.items for one in found.left)
    assert all(0 < one.items < len(task.dev) for one in found.left)


@given(st.integers(2, 40), st.integers(1, 2000), st.integers(1, 300))
def test_in_fewer_rounds_as_many_leave_and_none_on_fewer_items(arms: int, budget: int, items: int) -> None:
    schedule = rejects_schedule(arms, budget, items)
    rounds = in_rounds(schedule)
    assert sum(leaving for _, leaving in rounds) == len(schedule)
    told = [asked for asked, leaving in rounds for _ in range(leaving)]
    assert all(asked >= planned for asked, planned in zip(told, schedule, strict=True))
    assert all(asked <= STEP * max(1, planned) for asked, planned in zip(told, schedule, strict=True))


def test_another_kind_keeps_its_last_even_where_it_is_lowest(task: Task, tmp_path: Path) -> None:
    some = [*arms(), Planted("rag_1", 0.0, "rag"), Planted("rag_3", 0.3, "rag"), Planted("tools_json", 0.0, "tools")]
    found = race(task, some, session(task), tmp_path / "race.json", ignore)
    assert {"rag_3", "tools_json", "best"} <= set(found.through)
    assert "rag_1" not in found.through


def test_it_is_run_once_and_again_where_an_arm_has_changed(task: Task, tmp_path: Path) -> None:
    first = race(task, arms(), session(task), tmp_path / "race.json", ignore)
    again = arms()
    assert race(task, again, session(task), tmp_path / "race.json", ignore) == first
    assert not any(one.asked for one in again)
    changed = [*arms()[:-1], Planted("best", 0.95)]
    race(task, changed, session(task), tmp_path / "race.json", ignore)
    assert all(one.asked for one in changed if one.name == "best")


def test_few_arms_need_no_race(task: Task, tmp_path: Path) -> None:
    some = arms()[:COME_THROUGH]
    found = race(task, some, session(task), tmp_path / "race.json", ignore)
    assert (found.through, found.left, found.spent) == (tuple(one.name for one in some), (), 0)
    assert not any(one.asked for one in some)


def test_a_handful_of_items_is_no_race(make_task: Callable[..., Path], tmp_path: Path) -> None:
    small = load_task(make_task(tmp_path / "small", rows={"train": colour_rows(24), "dev": colour_rows(5, 24), "test": None}))
    found = race(small, arms(), session(small), tmp_path / "race.json", ignore)
    assert (len(found.through), found.left) == (len(arms()), ())


def test_means_on_few_items_are_not_told_as_results(task: Task, tmp_path: Path) -> None:
    told: list[Event] = []
    race(task, arms(), session(task), tmp_path / "race.json", told.append)
    assert not any(isinstance(one, CandidateScored) for one in told)
    assert any(getattr(one, "task", "") == "the race on dev" and one.done == one.total for one in told)  # type: ignore[attr-defined]
