"""A judge's word passes a gate when people have scored enough of the same answers, and says what it is until then."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.decision.compare import compare
from advisor.flow.intake import read_task
from advisor.flow.judged import judged_claim, uncalibrated
from advisor.gate.policy import decide
from evals.records import read_jsonl
from evals.scores import Score, Scores
from evals.statistics.margin import non_inferiority
from evals.task.load import Task
from evals.task.spec import GateSpec, PricesSpec

Make = Callable[..., Path]
JUDGE = {"name": "judge", "rubric": "Is the colour right?", "model": {"model_name_or_path": "some-judge"}}
KEPT = non_inferiority([1.0] * 600, [1.0] * 600, 0.05)


def task_of(make_task: Make, folder: Path, labels: str | None = None) -> Task:
    rows = [
        {"id": f"t{n}", "input": f"What is the colour of thing {random.Random(n).random()}?", "output": "red"}
        for n in range(120)
    ]
    metric = JUDGE if labels is None else {**JUDGE, "labels": labels}
    return read_task(str(make_task(folder, rows={"test": rows}, output={"type": "text"}, metric=metric)))


def scores(name: str, task: Task, values: list[float]) -> Scores:
    items = tuple(Score(one.id, value, f"{name} says {one.id}") for one, value in zip(task.test, values, strict=True))
    return Scores(name, "tuned", "test", "judge", items)


@pytest.fixture
def opinions() -> tuple[list[float], list[float], list[float], list[float]]:
    """The judge's and people's scores of two candidates: the judge likes everything a of its own accord by 0.3 too much."""
    draw = random.Random(0)
    human_a = [draw.choice([0.0, 0.5, 0.5]) for _ in range(120)]
    human_b = [draw.choice([0.0, 0.5, 0.5]) for _ in range(120)]
    return [one + 0.3 for one in human_a], list(human_b), human_a, human_b


def test_until_people_have_spoken_nothing_passes_and_what_they_should_score_is_written(
    make_task: Make, tmp_path: Path, opinions: tuple[list[float], ...]
) -> None:
    task = task_of(make_task, tmp_path / "t")
    a, b = scores("tuned", task, opinions[0]), scores("rival", task, opinions[1])
    raw = compare(a, b, None)
    assert raw.better
    claim, state = judged_claim(task, tmp_path, raw, a, b, None)
    assert claim == raw
    assert state is not None
    assert not state.calibrated
    verdict = decide(GateSpec(min_gain=0.03), claim, KEPT, a, PricesSpec(), judge=state)
    assert verdict.verdict == "inconclusive"
    assert "uncalibrated, cannot pass a gate" in uncalibrated(task)[0]
    (path,) = tmp_path.glob("to_label_*.jsonl")
    assert str(path) == state.to_label
    asked = read_jsonl(path)
    assert len(asked) == 120
    assert {one["score"] for one in asked} == {None}
    path.write_text("begun")
    judged_claim(task, tmp_path, raw, a, b, None)
    assert path.read_text() == "begun", "what people have begun to fill in is not written over"


def test_peoples_scores_correct_a_judge_that_favours_one_side(
    make_task: Make, tmp_path: Path, opinions: tuple[list[float], ...]
) -> None:
    task = task_of(make_task, tmp_path / "t", "people.jsonl")
    judge_a, judge_b, human_a, human_b = opinions
    a, b = scores("tuned", task, judge_a), scores("rival", task, judge_b)
    rows = [
        {"id": one.id, "output": one.output, "score": human[at]}
        for side, human in ((a, human_a), (b, human_b))
        for at, one in list(enumerate(side.items))[:60]
    ]
    (tmp_path / "t" / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    raw = compare(a, b, None)
    claim, state = judged_claim(task, tmp_path, raw, a, b, None)
    assert state is not None
    assert state.calibrated
    assert state.labelled == 60
    truth = sum(human_a) / 120 - sum(human_b) / 120
    assert raw.low > truth, "the judge alone is sure of what is not so"
    assert claim.low < truth < claim.high
    assert not list(tmp_path.glob("to_label*"))
    verdict = decide(GateSpec(min_gain=0.03), claim, KEPT, a, PricesSpec(), judge=state)
    assert verdict.verdict != "pass"
    rules = {rule.rule: rule.verdict for rule in verdict.rules}
    assert rules["judge_calibrated"] == "pass"


def test_labels_come_after_a_run_and_do_not_make_another_one(make_task: Make, tmp_path: Path) -> None:
    before = task_of(make_task, tmp_path / "t").hash()
    assert task_of(make_task, tmp_path / "t", "people.jsonl").hash() == before


def test_where_no_judge_decides_the_claim_stays_as_it_is(make_task: Make, tmp_path: Path) -> None:
    task = read_task(str(make_task(tmp_path / "t")))
    a = scores("tuned", task, [1.0] * len(task.test))
    b = replace(scores("rival", task, [0.0] * len(task.test)), metric="judge")
    raw = compare(a, b, None)
    assert judged_claim(task, tmp_path, raw, a, b, None) == (raw, None)
    assert uncalibrated(task) == ()
