"""Arms that ask no model: the trivial ones, and the fields that classifiers tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines.classic.arms import classic_arms
from baselines.classic.labels import Classifier
from baselines.classic.logistic import Logistic
from baselines.trivial import most_frequent, trivial_arms
from evals.candidate import Answer
from evals.engines.embed import Embedder
from evals.evaluate import evaluate
from evals.events import ignore
from evals.task.load import Task, load_task

MakeTask = Callable[..., Path]


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


def json_task(make_task: MakeTask, folder: Path, targets: list[dict[str, Any]], inputs: list[str] | None = None) -> Task:
    texts = inputs or [f"question {at}" for at in range(len(targets))]
    train = [{"input": text, "output": target} for text, target in zip(texts, targets, strict=True)]
    other = [{"input": f"other {at}", "output": targets[at]} for at in range(4)]
    rows = {"train": train, "dev": other[:2], "test": other[2:]}
    return load_task(make_task(folder, rows=rows, output={"type": "json"}))


def test_the_most_frequent_answer() -> None:
    assert most_frequent(["b", "a", "b"]) == "b"
    assert most_frequent(["b", "a"]) == "b"  # a tie: the first seen
    assert most_frequent([]) == ""
    assert most_frequent(['{"a": 1}', "text", "text"]) == "text"
    objects = [{"q": "x", "n": 1}, {"q": "y", "n": 2}, {"q": "y", "n": 3, "rare": 1}, {"q": "z", "n": 3}]
    # Field by field: no row is this one. A field that most rows lack is left out.
    assert json.loads(most_frequent([json.dumps(one) for one in objects])) == {"q": "y", "n": 3}


def test_trivial_arms_score_what_can_be_had_without_looking(make_task: MakeTask, tmp_path: Path) -> None:
    rows = [{"id": f"d{at}", "input": f"thing {at}", "output": "red" if at < 5 else "blue"} for at in range(8)]
    train = [{"input": f"item {at}", "output": "red" if at % 3 else "blue"} for at in range(24)]
    rows_of_test = [{"input": f"other {at}", "output": "red"} for at in range(4)]
    task = load_task(make_task(tmp_path / "t", rows={"train": train, "dev": rows, "test": rows_of_test}))
    scores = {one.name: evaluate(task, one, "dev", tmp_path / "s", ignore) for one in trivial_arms(task)}
    assert scores["always_most_frequent"].mean == 5 / 8
    assert scores["always_empty"].mean == 0
    assert scores["copy_the_input"].mean == 0
    assert {one.output for one in scores["copy_the_input"].items} == {row["input"] for row in rows}
    assert all(one.kind == "trivial" for one in scores.values())


def test_an_empty_answer_to_a_json_task_is_an_empty_object(make_task: MakeTask, tmp_path: Path) -> None:
    task = json_task(make_task, tmp_path / "t", [{"a": 1}] * 20)
    arms = {one.name: one for one in trivial_arms(task)}
    assert arms["always_empty"].requests(task.dev[:1]) == [Answer("{}")]
    assert arms["always_most_frequent"].requests(task.dev[:1]) == [Answer('{"a":1}')]


def test_only_fields_with_shared_values_are_learnt(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    targets = [
        {"queue": ["a", "b"][at % 2], "free": f"text {at}", "fixed": "same", "pairs": at // 2, "wide": at // 4}
        for at in range(40)
    ]
    task = json_task(make_task, tmp_path / "t", targets)
    classifier = Classifier(task, Logistic(embedder))
    # `free` and `pairs` share too few values, `fixed` has one; `wide`: ten values of four rows each.
    assert classifier.fields.labels == ("queue", "wide")
    for answer in classifier.requests(task.dev):
        assert isinstance(answer, Answer)
        body = json.loads(answer.text)
        assert list(body) == ["queue", "free", "fixed", "pairs", "wide"]
        assert (body["free"], body["fixed"], body["pairs"]) == ("text 0", "same", 0)
        assert body["queue"] in {"a", "b"}


def test_a_field_of_very_many_values_is_no_label(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    targets = [{"most": at % 100, "more": at % 101} for at in range(404)]
    task = json_task(make_task, tmp_path / "t", targets)
    assert Classifier(task, Logistic(embedder)).fields.labels == ("most",)


def test_a_field_that_some_rows_lack_is_left_out_where_it_is_not_expected(
    make_task: MakeTask, embedder: Embedder, tmp_path: Path
) -> None:
    inputs = [f"{'qqqqqqqqqqqq' if at % 2 else 'zzzzzzzzzzzz'} {at}" for at in range(40)]
    # Every second row has the field, every fourth with the rarer value.
    targets = [{"kind": at % 4 > 1, **({"extra": ["there", "other"][at % 4 == 1]} if at % 2 else {})} for at in range(40)]
    task = json_task(make_task, tmp_path / "t", targets, inputs)
    classifier = Classifier(task, Logistic(embedder))
    assert "extra" in classifier.fields.labels
    without, with_it = [json.loads(one.text) for one in classifier.requests(task.train[:2]) if isinstance(one, Answer)]
    assert "extra" not in without
    assert with_it["extra"] in {"there", "other"}


def test_there_is_no_classifier_for_text_or_for_one_label(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    assert classic_arms(load_task(make_task(tmp_path / "t", output={"type": "text"})), embedder) == []
    same = [{"input": f"thing {at}", "output": "red"} for at in range(40)]
    task = load_task(make_task(tmp_path / "u", rows={"train": same, "dev": None, "test": None}))
    assert classic_arms(task, embedder) == []
