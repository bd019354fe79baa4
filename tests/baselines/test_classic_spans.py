"""Extraction by patterns learnt from training spans."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from baselines.classic.spans import SpansLearnt
from evals.candidate import Answer
from evals.engines.engine import Message
from evals.evaluate import evaluate
from evals.events import ignore
from evals.metrics.structured import json_fields
from evals.task.example import Example
from evals.task.load import Task, load_task

MakeTask = Callable[..., Path]
Rows = list[dict[str, Any]]
NAMES = ["Ada", "Bo", "Cleo", "Dov", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo", "Kim", "Lou", "Mo", "Ned", "Ole", "Pia"]
SIRNAMES = ["Ames", "Bell", "Cray", "Dahl", "Esk", "Ford", "Gill", "Hart", "Ilves", "Jay", "Kerr", "Lund", "Moe", "Nyst"]


def booking(at: int) -> dict[str, Any]:
    """Every third row says nothing to extract, though it has a name or a number in it."""
    name, hour = NAMES[at % len(NAMES)], f"{at % 12 + 1}pm"
    if at % 3 == 0:
        return {"input": f"[row {at}] ask {name} about room {at % 12 + 1}", "output": {}}
    return {"input": f"[row {at}] table for {name} at {hour}, please", "output": {"name": name, "time": hour}}


def a_task(make_task: MakeTask, folder: Path, train: Rows, dev: Rows | None = None) -> Task:
    other = dev or [booking(at) for at in range(1000, 1020)]
    rows = {"train": train, "dev": other, "test": [booking(at) for at in range(2000, 2004)]}
    return load_task(make_task(folder, rows=rows, output={"type": "json"}, metric="json_fields"))


def said(arm: SpansLearnt, examples: Sequence[Example]) -> list[str]:
    return [one.text for one in arm.requests(examples) if isinstance(one, Answer)]


@pytest.fixture
def task(make_task: MakeTask, tmp_path: Path) -> Task:
    return a_task(make_task, tmp_path / "t", [booking(at) for at in range(60)])


def test_a_planted_pattern_is_learnt_exactly(task: Task, tmp_path: Path) -> None:
    arm = SpansLearnt(task)
    scores = evaluate(task, arm, "dev", tmp_path / "s", ignore)
    assert scores.mean == 1.0
    assert {one.output for one in scores.items} >= {"{}", '{"name":"Ivy","time":"5pm"}'}
    assert all(0 < one.seconds < 1 for one in scores.items)


def test_shuffled_targets_are_not_learnt(make_task: MakeTask, tmp_path: Path) -> None:
    rows = [booking(at) for at in range(60)]
    targets = [row["output"] for row in rows]
    random.Random(0).shuffle(targets)
    shuffled = [{**row, "output": target} for row, target in zip(rows, targets, strict=True)]
    task = a_task(make_task, tmp_path / "t", shuffled)
    answers = said(SpansLearnt(task), task.dev)
    found = [json_fields(one, example.target) for one, example in zip(answers, task.dev, strict=True)]
    empty = sum(example.target == "{}" for example in task.dev) / len(task.dev)
    assert sum(found) / len(found) <= empty + 0.1


def test_an_answer_hangs_on_its_question_alone(task: Task) -> None:
    arm = SpansLearnt(task)
    together = said(arm, task.dev)
    assert together == [said(arm, [one])[0] for one in task.dev]
    assert together == said(arm, task.dev[::-1])[::-1]
    assert together == said(SpansLearnt(task), task.dev)
    assert arm.requests([]) == []


def test_values_come_as_they_stand_in_the_input(task: Task) -> None:
    odd = "table for Zoë-Ann O'Hara at\t11pm, please"
    for text in ("", "   ", "\N{FIRE}", "[row 1]", odd, odd * 100):
        (answer,) = said(SpansLearnt(task), [Example("x", (Message("user", text),), "{}")])
        assert all(value in text for value in json.loads(answer).values())


def test_of_two_spans_of_a_key_the_surer_one_counts(task: Task) -> None:
    (answer,) = said(SpansLearnt(task), [Example("x", (Message("user", "table for Mo at 3pm, please, ask Gus"),), "{}")])
    assert json.loads(answer) == {"name": "Mo", "time": "3pm"}


def test_a_value_within_another_has_a_tagger_of_its_own(make_task: MakeTask, tmp_path: Path) -> None:
    def person(at: int) -> dict[str, Any]:
        first, last = NAMES[at % len(NAMES)], SIRNAMES[at % len(SIRNAMES)]
        target = {"whole": f"{first} {last}", "first": first, "queue": "call" if at % 2 else "post"}
        return {"input": f"{'please ring' if at % 2 else 'a letter to'} {first} {last} in {at}", "output": target}

    task = a_task(make_task, tmp_path / "t", [person(at) for at in range(60)], [person(at) for at in range(70, 80)])
    arm = SpansLearnt(task)
    assert [one.key for one in arm.patterns] == ["whole", "first"]
    assert [one.keys for one in arm._taggers] == [("whole",), ("first",)]
    # `queue` is no span: it is told by the words around.
    assert evaluate(task, arm, "dev", tmp_path / "s", ignore).mean == 1.0


def test_a_value_that_stands_twice_leaves_a_place_for_its_twin(make_task: MakeTask, tmp_path: Path) -> None:
    def trip(at: int) -> dict[str, Any]:
        start, end = NAMES[at % len(NAMES)], NAMES[at * 3 % len(NAMES)]
        return {"input": f"leave {start} reach {end} on day {at}", "output": {"start": start, "end": end}}

    # Every eighth row has the same name in both places.
    task = a_task(make_task, tmp_path / "t", [trip(at) for at in range(64)], [trip(at) for at in range(100, 116)])
    arm = SpansLearnt(task)
    assert [one.keys for one in arm._taggers] == [("start", "end")]
    assert evaluate(task, arm, "dev", tmp_path / "s", ignore).mean == 1.0


def test_settings_follow_the_training_rows(make_task: MakeTask, task: Task, tmp_path: Path) -> None:
    other = a_task(make_task, tmp_path / "u", [booking(at) for at in range(61)])
    assert SpansLearnt(task).settings != SpansLearnt(other).settings
    assert SpansLearnt(task).settings == SpansLearnt(task).settings
    # Rows that are asked are none of them.
    assert SpansLearnt(task.with_split("dev", task.dev[:3])).settings == SpansLearnt(task).settings


def test_text_and_labels_have_no_patterns(make_task: MakeTask, tmp_path: Path) -> None:
    assert SpansLearnt(load_task(make_task(tmp_path / "t"))).patterns == []
