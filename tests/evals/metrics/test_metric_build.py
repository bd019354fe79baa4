"""From what a task file says to the metrics that score: each by its name, with its options, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.metrics.build import Surroundings, build_metrics
from evals.metrics.metric import Metric
from evals.metrics.options import NAMES, metric_options
from evals.records import content_hash
from evals.task.example import Example
from evals.task.spec import TaskSpec

SCHEMA = {"type": "object", "required": ["city"]}


def never(*_: Any) -> Any:
    raise AssertionError("nothing is loaded before it is asked for")


def surroundings(folder: Path, labels: tuple[str, ...] = (), schema: dict[str, Any] | None = None) -> Surroundings:
    return Surroundings(folder, "text", labels, schema, never, never, lambda _: None)


def built(wanted: Any, around: Surroundings) -> tuple[Metric, ...]:
    spec = TaskSpec.model_validate({"data": {"train": "t"}, "model": {"model_name_or_path": "m"}, "metric": wanted})
    return build_metrics(spec.metric, around)


def pairs(*rows: tuple[str, str]) -> list[tuple[Example, str]]:
    return [(Example(f"row-{at}", (Message("user", "q"),), target), output) for at, (output, target) in enumerate(rows)]


def body(name: str) -> Any:
    """What a task file has to say at least."""
    needs = {
        "regex": {"pattern": "a.*"},
        "style": {"max_words": 3},
        "judge": {"model": {"model_name_or_path": "m"}, "rubric": "Is it right?"},
    }
    return "python:own.py:f" if name == "python" else {"name": name, **needs.get(name, {})}


def every(folder: Path) -> tuple[Metric, ...]:
    (folder / "own.py").write_text("def f(output, target):\n    return output == target")
    rest = [name for name in NAMES if name not in {"exact", "judge", "similarity"}]
    return built([body(name) for name in ("exact", *rest)], surroundings(folder, ("spam", "ham"), SCHEMA))


def test_every_name_builds_without_loading_a_model(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(output, target):\n    return 1")
    metrics = built([body(name) for name in NAMES], surroundings(tmp_path, schema=SCHEMA))
    assert [metric.name for metric in metrics] == ["f" if name == "python" else name for name in NAMES if name != "consistency"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=()), max_size=30)] * 2), max_size=4))
def test_any_answer_has_a_score(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    for metric in every(tmp_path):
        if metric.name != "code":
            scores = metric(pairs(*rows))
            assert len(scores) == len(rows)
            assert all(type(score) is float and score >= 0 for score in scores)
            assert metric.name == "macro_f1" or all(score <= 1 for score in scores)
            content_hash([metric.name, metric.settings])


def scores(wanted: Any, around: Surroundings, *rows: tuple[str, str]) -> Sequence[Sequence[float]]:
    return [metric(pairs(*rows)) for metric in built(wanted, around)]


def test_options_reach_their_metric(tmp_path: Path) -> None:
    around = surroundings(tmp_path, ("a", "b"), SCHEMA)
    rows = [("100.4", "100"), ("Paris", "paris"), ('{"city": 1}', "x")]
    wanted = [
        "exact_match",
        "exact",
        {"name": "numeric_match", "absolute_tolerance": 0.5},
        {"name": "numeric_match", "called": "close", "relative_tolerance": 0.001},
        {"name": "regex", "pattern": "[A-Z].*"},
        {"name": "regex", "called": "digit", "pattern": r"\d", "search": True},
        {"name": "style", "max_words": 1},
        "json_schema",
    ]
    assert scores(wanted, around, *rows) == [
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 1.0, 0.0],
        [1.0, 0.0, 1.0],
        [1.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
    ]


def test_macro_f1_knows_the_tasks_labels(tmp_path: Path) -> None:
    rows = [("a", "a"), ("b", "a")]
    [_, with_labels] = scores(["accuracy", "macro_f1"], surroundings(tmp_path, ("a", "b")), *rows)
    [_, without] = scores(["accuracy", "macro_f1"], surroundings(tmp_path), *rows)
    assert sum(with_labels) / 2 == pytest.approx(1 / 3)
    assert sum(without) / 2 == pytest.approx(2 / 3)


def test_settings_tell_options_apart_but_not_names(tmp_path: Path) -> None:
    around = surroundings(tmp_path)
    one, other, named = built(
        [
            {"name": "numeric_match"},
            {"name": "numeric_match", "called": "b", "absolute_tolerance": 1},
            {"name": "numeric_match", "called": "c"},
        ],
        around,
    )
    assert one.settings == named.settings != other.settings


def test_what_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="needs a schema"):
        built("json_schema", surroundings(tmp_path))
    with pytest.raises(AdvisorError, match="no such file"):
        built("python:own.py:f", surroundings(tmp_path))
    with pytest.raises(AdvisorError, match="outside"):
        built("python:../own.py:f", surroundings(tmp_path))


def test_metric_options_of_all_names_are_read() -> None:
    for name in NAMES:
        assert metric_options(body(name))["name"] == name
