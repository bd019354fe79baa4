"""The race on dev: few answers, the good ones come through, and what it found is not searched again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from advisor.decision.raced import COME_THROUGH, ROUNDS, Left, Race, raced, shuffled
from advisor.flow.race import race
from evals.candidate import Answer, Kind
from evals.events import CandidateScored, Event, ignore
from evals.scores import task_metrics
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
    assert len(found.through) <= COME_THROUGH + 1
    # Plain zero-shot stays, whatever it scores.
    assert "zero_shot" in found.through
    assert found.spent <= ROUNDS * len(task.dev)
    assert found.spent < len(arms()) * len(task.dev) / 2
    assert {"proven", "schedule"} >= {one.why for one in found.left} >= {"proven"}
    assert {one.candidate for one in found.left} | set(found.through) == {one.name for one in arms()}
    assert [one.items for one in found.left] == sorted(one.items for one in found.left)
    assert all(0 < one.items < len(task.dev) for one in found.left)


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


def test_the_race_asks_for_rows_in_the_shuffled_order_and_each_once(task: Task, tmp_path: Path) -> None:
    some = arms()
    found = race(task, some, session(task), tmp_path / "race.json", ignore)
    order = [task.dev[at].id for at in shuffled(len(task.dev), task.spec.seed)]
    best = next(one for one in some if one.name == "best")
    # Without a cache of answers each round asks again from the start; what counts is where it ends.
    assert best.asked[-found.answered :] == order[: found.answered]


def test_groups_stay_together_in_any_order() -> None:
    groups = ["a", None, "b", "a", None, "b", "a"]
    orders = {tuple(shuffled(7, seed, groups)) for seed in range(50)}
    assert len(orders) > 10
    for order in orders:
        assert sorted(order) == list(range(7))
        places = {name: [at for at, row in enumerate(order) if groups[row] == name] for name in ("a", "b")}
        assert all(max(at) - min(at) == len(at) - 1 for at in places.values())
    assert shuffled(100, 3) == shuffled(100, 3, [None] * 100) != list(range(100))


def cached(means: Sequence[float], items: int, seed: int = 0) -> NDArray[np.float64]:
    return np.asarray(np.random.default_rng(seed).random((len(means), items)) < np.array(means)[:, None], dtype=float)


def run(scores: NDArray[np.float64], **more: Any) -> Race:
    """From kept scores, as a benchmark does."""
    names = [f"arm{at}" for at in range(len(scores))]

    def ask(alive: Sequence[int], rows: Sequence[int]) -> NDArray[np.float64]:
        return np.asarray(scores[np.ix_(alive, rows)])

    return raced(names, ["prompt"] * len(names), lambda at: 100 - at, ask, scores.shape[1], **more)


def test_kept_scores_race_without_a_model() -> None:
    found = run(cached([0.2] * 8 + [0.9], 100))
    assert "arm8" in found.through
    assert found.items == 100
    assert all(one.why == "proven" for one in found.left)
    assert "8 proven worse" in found.sentence()
    assert "cannot be told apart" not in found.sentence()


def test_equal_arms_are_told_to_be_equal() -> None:
    found = run(cached([0.5] * 20, 100))
    assert len(found.equal) == COME_THROUGH == len(found.through)
    assert {one.why for one in found.left} == {"schedule"}
    assert found.sentence() == (
        f"16 of 20 ways to ask left the race on dev ({found.spent} answers instead of 2000); "
        f"16 only as the lowest so far, to save answers; "
        f"4 cannot be told apart from the best of their race on {found.answered} items"
    )
    # Of equal ones the dearer leaves: all 0, and the first cost most.
    assert run(np.zeros((8, 100))).through == ("arm4", "arm5", "arm6", "arm7")


def test_a_cluster_of_equal_answers_proves_nothing() -> None:
    scores = np.repeat(cached([0.2] * 8 + [0.9], 5), 20, axis=1)
    assert any(one.why == "proven" for one in run(scores).left)
    groups = [str(at // 20) for at in range(100)]
    assert not any(one.why == "proven" for one in run(scores, groups=groups).left)


def test_two_races_are_told_as_one() -> None:
    one = Race(("a", "b"), (Left("c", "prompt", 30, 0.1, "proven"),), 100, 200, ("a", "b"), 80)
    other = Race(("r", "q"), (Left("s", "rag", 20, 0.2),), 100, 150, ("r", "q"), 60)
    both = one.joined(other)
    assert (both.through, both.items, both.spent) == (("a", "b", "r", "q"), 100, 350)
    assert (both.equal, both.answered) == (("a", "b", "r", "q"), 60)
    assert [left.candidate for left in both.left] == ["s", "c"]
    assert one.joined(Race(("r",), items=100)).answered == 80
