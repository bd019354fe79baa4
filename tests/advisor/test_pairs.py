"""Pairs for DPO: the user's own, or made of the model's own mistakes; never of the test, never a right answer as the wrong one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advisor.flow.checks import check_data
from advisor.flow.pairs import preference_rows
from advisor.flow.session import Session
from advisor.flow.tuned import recipe_for
from evals.candidate import PromptFormat
from evals.engines.engine import Request, Response
from evals.errors import AdvisorError, ProblemsError
from evals.events import Event, Note
from evals.task.example import Example
from evals.task.load import Task, load_task
from tests.conftest import jsonl
from trainer.recipe import Recipe

Make = Callable[..., Path]
COLOURS = ["red", "blue", "green", "pink"]
FORMAT = PromptFormat("Name the colour.", "inline")
# All that a recipe asks of an engine.
SIZED: Any = SimpleNamespace(parameters=10**8, context_length=1000)
RECIPE = Recipe(method="dpo", num_generations=3, seed=7)


class Pupil:
    """Greedily right about red (in capitals), wrong about blue, silent about green; drawn, it is wrong about red now and then.

    About pink it is right each time.
    """

    fingerprint = "pupil"
    context_length = 1000

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        self.requests += requests
        for one in requests:
            asked = one.messages[-1].content
            said = {"red": "RED", "blue": "[b]green[/b]", "green": " ", "pink": "pink"}[next(c for c in COLOURS if c in asked)]
            if one.temperature:
                said = random.Random(one.seed).choice([said, "pink"])
            yield Response(one.id, f"{said}\nbecause I say so" if said.strip() else said, 5, 3, 0.1)


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def open_task(make_task: Make, tmp_path: Path, heard: list[Event]) -> Callable[..., tuple[Task, Session, Pupil]]:
    def make(preferences: list[Any] | None = None, **spec: Any) -> tuple[Task, Session, Pupil]:
        if preferences is not None:
            spec["files"] = {"pairs.jsonl": jsonl(preferences)}
            spec["data"] = {**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "preferences": "pairs.jsonl"}
        task = load_task(make_task(tmp_path / "task", **spec))
        session, pupil = Session(task, heard.append), Pupil()
        session.__dict__["engine"] = pupil
        return task, session, pupil

    return make


def rows_for(task: Task, session: Session, tmp_path: Path, rows: Sequence[Example] | None = None) -> tuple[Example, ...]:
    return preference_rows(task, session, RECIPE, task.train if rows is None else rows, FORMAT, tmp_path / "run" / "training")


def notes(heard: list[Event]) -> list[str]:
    return [event.text for event in heard if isinstance(event, Note)]


def test_pairs_are_made_of_the_models_own_mistakes(open_task: Callable[..., Any], tmp_path: Path, heard: list[Event]) -> None:
    task, session, pupil = open_task()
    pairs = rows_for(task, session, tmp_path)
    by_target: dict[str, set[str | None]] = {}
    for one in pairs:
        by_target.setdefault(one.target, set()).add(one.rejected)
    # What is read from the answer, markup as the text that it is. Blank answers are no pair, unless a drawn one says something.
    assert by_target["blue"] == {"[b]green[/b]"}
    assert by_target["red"] == by_target["green"] == {"pink"}
    assert "pink" not in by_target
    # The metric calls RED right, whatever its case: a right answer never loses.
    assert session.metrics[0]([(one, one.rejected or "") for one in pairs]) == [0.0] * len(pairs)
    assert {one.id for one in pairs} < {one.id for one in task.train}
    assert all(replace(one, rejected=None) in task.train for one in pairs)

    ids = {one.id for one in task.train}
    assert {one.id for one in pupil.requests} == ids
    assert all(one.messages[-1].content.startswith("Name the colour.\n\nItem") for one in pupil.requests)
    first, drawn = pupil.requests[: len(ids)], pupil.requests[len(ids) :]
    assert {one.temperature for one in first} == {0.0}
    assert {one.temperature for one in drawn} == {RECIPE.temperature}
    blue = {one.id for one in task.train if one.target == "blue"}
    assert not blue & {one.id for one in drawn}
    assert len({(one.id, one.seed) for one in drawn}) == len(drawn)
    said = notes(heard)[-1]
    assert said.startswith(f"DPO: no pairs were given, so that {len(pairs)} were made of {len(task.train)} training rows")


def test_a_model_that_does_not_know_what_to_say_is_told_of(
    open_task: Callable[..., Any], tmp_path: Path, heard: list[Event]
) -> None:
    task, session, _ = open_task()
    rows_for(task, session, tmp_path)
    assert not any("wrong as it is" in text for text in notes(heard))
    for _ in range(2):
        # Also where the answers are there already.
        rows_for(task, session, tmp_path, [one for one in task.train if one.target == "blue"])
        assert notes(heard)[-1].startswith("DPO: the model answers 6 of 6 training rows wrong as it is")


def test_an_interrupted_run_does_not_ask_again(open_task: Callable[..., Any], tmp_path: Path) -> None:
    task, session, pupil = open_task()
    pairs = rows_for(task, session, tmp_path)
    asked = len(pupil.requests)
    assert rows_for(task, session, tmp_path) == pairs
    assert len(pupil.requests) == asked
    # Other rows, other weights or another form of the question are asked anew.
    rows_for(task, session, tmp_path, task.train[:8])
    pupil.fingerprint = "another"
    rows_for(task, session, tmp_path, task.train[:8])
    assert len(pupil.requests) >= asked + 16


def test_a_model_without_a_mistake_is_an_error_with_a_way_out(open_task: Callable[..., Any], tmp_path: Path) -> None:
    task, session, _ = open_task()
    with pytest.raises(AdvisorError, match="answers all 6 training rows right, 4 times each") as caught:
        rows_for(task, session, tmp_path, [one for one in task.train if one.target == "pink"])
    assert "data: {preferences: pairs.jsonl}" in caught.value.do


GIVEN = [
    {"prompt": f"Thing {number} is {COLOURS[number % 4]}.", "chosen": COLOURS[number % 4], "rejected": "mauve"}
    for number in range(12)
]


def test_given_pairs_come_first_and_whole(open_task: Callable[..., Any], tmp_path: Path, heard: list[Event]) -> None:
    task, session, pupil = open_task(GIVEN)
    pairs = rows_for(task, session, tmp_path)
    assert [(one.text, one.target, one.rejected) for one in pairs] == [tuple(one.values()) for one in GIVEN]
    assert not pupil.requests
    assert notes(heard) == ["DPO: 12 pairs of the task's preferences"]
    # Half of the rows of train: half of the pairs, and a larger part holds the smaller.
    half, quarter = (rows_for(task, session, tmp_path, task.train[:count]) for count in (12, 6))
    assert (len(half), len(quarter)) == (6, 3)
    assert half[:3] == quarter


def test_settings_of_made_pairs_are_refused_where_pairs_are_given(open_task: Callable[..., Any]) -> None:
    drawn = {"method": "dpo", "num_generations": 8, "temperature": 0.5}
    with pytest.raises(ProblemsError) as caught:
        recipe_for(open_task(GIVEN, train=drawn)[0], SIZED)
    assert [one.key for one in caught.value.problems] == ["train.num_generations", "train.temperature"]
    assert "the task has pairs of its own" in caught.value.problems[0].message
    assert recipe_for(open_task(train=drawn)[0], SIZED).num_generations == 8


def test_verdicts_on_single_answers_are_not_pairs(open_task: Callable[..., Any], tmp_path: Path, heard: list[Event]) -> None:
    judged = [{"prompt": f"Is {number} red?", "completion": "red", "label": number % 2 == 0} for number in range(6)]
    task, session, pupil = open_task(judged)
    pairs = rows_for(task, session, tmp_path)
    assert notes(heard)[0].startswith("DPO: 6 rows of preferences have a verdict on one answer and no second one")
    assert pupil.requests
    assert all(one.rejected for one in pairs)


def test_a_preference_whose_prompt_is_a_test_row_is_a_leak(open_task: Callable[..., Any], heard: list[Event]) -> None:
    long = "The harbour was painted beside a saddle and then carried towards the orchard where a {} lantern hid"
    rows = {"test": [{"id": f"t{at}", "input": long.format(one), "output": one} for at, one in enumerate(COLOURS)]}
    planted = {"prompt": long.format("blue").upper() + "!", "chosen": "blue", "rejected": "red"}
    near = {"prompt": long.format("pink").replace("a saddle", "a saddle too"), "chosen": "pink", "rejected": "red"}
    task, _, _ = open_task([*GIVEN, planted, near], rows=rows)
    checks = check_data(task, Session(task, heard.append), heard.append, embed=False).checks
    found = [one for one in checks.findings if one.check.startswith("leak.") and one.places[0].pool == "preferences"]
    pairs = {(one.check, Path(one.places[0].file).name, one.places[0].line, one.places[1].id, one.drop) for one in found}
    assert ("leak.exact", "pairs.jsonl", 13, "t1", False) in pairs
    assert {(line, row) for _, _, line, row, _ in pairs} == {(13, "t1"), (14, "t3")}
    assert {"t1", "t3"} <= checks.tainted("test")
