"""The JSON Schema and the reader of `task.yaml` agree, and errors stand where the file has them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from evals.errors import Problem, ProblemsError
from evals.task.schema import task_schema
from evals.task.spec import read_spec

EXAMPLES = Path(__file__).parents[3] / "advisor" / "examples"
SCHEMA = task_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
LEAST: dict[str, Any] = {"data": {"train": "train.jsonl"}, "model": {"model_name_or_path": "m"}}
# One valid value for each part of a task file; mutations start here.
PARTS: list[dict[str, Any]] = [
    {"schema_version": 1, "name": "n", "instruction": "Do it.", "seed": 3, "target": 0.8},
    {"data": {"train": "a", "dev": None, "test": {"dataset_name": "o/n", "split": "test", "revision": "1"}}},
    {"data": {"train": {"dataset_name": "n"}, "documents": "docs/", "preferences": "p.jsonl"}},
    {"columns": {"input": "q", "output": "a", "group": "g", "time": "t"}},
    {"output": {"type": "label", "labels": ["a", "b"]}},
    {"output": {"type": "json", "schema": "s.json"}},
    {"metric": "accuracy"},
    {"metric": ["accuracy", "macro_f1", {"name": "numeric_match", "relative_tolerance": 0.1, "called": "close"}]},
    {"metric": {"name": "regex", "pattern": "a+", "search": True}},
    {"metric": [{"name": "style", "max_words": 5, "banned": ["x"]}, {"name": "code", "timeout": 2, "memory_mib": 100}]},
    {"metric": [{"name": "judge", "model": {"model_name_or_path": "m"}, "rubric": "r", "scale": 3}, "python:f.py:f"]},
    {"model": {"model_name_or_path": "m", "engine": "hf", "dtype": "float32", "trust_remote_code": False}},
    {"model": {"model_name_or_path": "m", "engine": "endpoint", "base_url": "http://h/v1", "max_concurrency": 2}},
    {"embeddings": {"model_name_or_path": "e"}, "traffic": {"requests_per_month": 5, "months": 2}},
    {"rag": {"reranker": "r", "rewrite": True, "qdrant": {"url": "http://h:6333", "collection": "c", "vector": "dense"}}},
    {
        "rag": {
            "qdrant": {"url": "https://h", "collection": "c", "text": "t", "document": "d.e", "api_key_env": "K", "timeout": 5}
        }
    },
    {"prices": {"gpu_hour": 1.5, "label": 0}, "gate": {"min_gain": 0.1, "max_forgetting": 0.5, "max_cost_per_1k": 1}},
]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 7, 0.5, 1.5, 1e9, 5.0, "", "x", "5", "1e-6", "inf", "label", "hf", "a b"]
VALUES += [
    [],
    ["a"],
    [5],
    [[]],
    {},
    {"x": 1},
    {"name": "accuracy"},
    ["accuracy"],
    "accuracy",
    "json_schema",
    {"dataset_name": "d"},
]


def accepted(body: Any, folder: Path) -> bool:
    """Whether the reader takes it. JSON is YAML, and quicker to write."""
    (folder / "task.yaml").write_text(json.dumps(body))
    try:
        read_spec(folder / "task.yaml")
    except ProblemsError:
        return False
    return True


def places(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], how: str, value: Any) -> dict[str, Any]:
    """A copy with one value put in another's place, or taken away, or its key misspelt, or one more beside it."""
    body = copy.deepcopy(body)
    holder: Any = body
    for key in path[:-1]:
        holder = holder[key]
    if how == "put":
        holder[path[-1]] = value
    elif how == "add" and isinstance(holder, dict):
        holder["unknown_key"] = value
    elif how == "misspelt" and isinstance(holder, dict):
        holder[f"{path[-1]}s"] = holder.pop(path[-1])
    else:
        del holder[path[-1]]
    return body


@pytest.mark.parametrize("name", sorted(one.parent.name for one in EXAMPLES.glob("*/task.yaml")))
def test_the_shipped_examples_keep_to_the_schema(name: str) -> None:
    body = yaml.safe_load((EXAMPLES / name / "task.yaml").read_text())
    assert list(VALIDATOR.iter_errors(body)) == []


def test_it_is_a_schema_and_explains_each_key() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for name, one in SCHEMA["properties"].items():
        meaning = one.get("description") or SCHEMA["$defs"][one["$ref"].rsplit("/")[-1]].get("description")
        assert meaning, name
        assert "\n" not in meaning


def test_each_part_is_accepted_by_both(tmp_path: Path) -> None:
    for part in PARTS:
        body = LEAST | part
        assert accepted(body, tmp_path), part
        assert list(VALIDATOR.iter_errors(body)) == [], part


def test_with_one_change_the_schema_refuses_nothing_that_is_read_and_most_that_is_not(tmp_path: Path) -> None:
    refused = caught = 0
    for part in PARTS:
        for path in places(part):
            changes = [("put", value) for value in VALUES] + [("add", 1), ("misspelt", None), ("leave out", None)]
            for how, value in changes:
                body = changed(LEAST | part, path, how, value)
                read, fine = accepted(body, tmp_path), VALIDATOR.is_valid(body)
                assert fine or not read, body
                refused += not read
                caught += not (read or fine)
    assert refused > 500
    assert caught / refused > 0.97


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_the_schema_refuses_nothing_that_is_read(data: st.DataObject, tmp_path: Path) -> None:
    body = dict(LEAST)
    for part in data.draw(st.lists(st.sampled_from(PARTS), max_size=4)):
        body |= part
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(VALUES)
    values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(body) if body else places(LEAST))))
        how = data.draw(st.sampled_from(["put", "put", "add", "misspelt", "leave out"]))
        body = changed(body or LEAST, path, how, data.draw(values))
    if accepted(body, tmp_path):
        assert list(VALIDATOR.iter_errors(body)) == []


def problems_of(folder: Path, text: str) -> list[Problem]:
    (folder / "task.yaml").write_text("data: {train: x}\nmodel: {model_name_or_path: m}\n" + text)
    with pytest.raises(ProblemsError) as caught:
        read_spec(folder / "task.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (
            "metric:\n- accuracy\n- name: numeric_match\n  relative_tolerence: 1\n",
            6,
            "metric.1.relative_tolerence",
            "did you mean 'relative_tolerance'?",
        ),
        (
            "metric: {name: numeric_match,\n  absolute_tolerence: 1}\n",
            4,
            "metric.absolute_tolerence",
            "did you mean 'absolute_tolerance'?",
        ),
        (
            "metric:\n- name: judge\n  rubric: r\n  model: {model_name_or_path: m,\n    engin: hf}\n",
            7,
            "metric.0.model.engin",
            "did you mean 'engine'?",
        ),
        ("metric: {name: judge, model: {model_name_or_path: m}}\n", 3, "metric.rubric", "this key is required"),
        ("metric: [{name: style, banned: [a, 5]}]\n", 3, "metric.0.banned.1", "write it in quotes"),
        ("metric: {name: regex, pattern: '('}\n", 3, "metric.pattern", "not a regular expression"),
        ("traffic: 5\n", 3, "traffic", "must be a mapping of keys"),
        ("output: {labels: [yes, no]}\n", 3, "output.labels.0", "write it in quotes"),
        ("target: yes\n", 3, "target", "must be a number"),
        ("metric: {name: regex, pattern: a, search: 1}\n", 3, "metric.search", "must be true or false"),
    ],
)
def test_an_error_stands_where_the_file_has_it(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    first = problems_of(tmp_path, text)[0]
    assert (first.line, first.key) == (line, key)
    assert says in first.message


@pytest.mark.parametrize(
    ("train", "keys", "says"),
    [
        ("5", ["data.train"], "must be text, or a mapping with `dataset_name:`"),
        ("[a]", ["data.train"], "must be text, or a mapping with `dataset_name:`"),
        ("{dataset_name: ''}", ["data.train.dataset_name"], "at least 1 character"),
        ("{dataset_name: a, splt: b}", ["data.train.splt"], "did you mean 'split'?"),
        ("{dataset_nam: a}", ["data.train.dataset_name", "data.train.dataset_nam"], "this key is required"),
    ],
)
def test_one_fault_of_a_dataset_is_told_once(tmp_path: Path, train: str, keys: list[str], says: str) -> None:
    (tmp_path / "task.yaml").write_text(f"model: {{model_name_or_path: m}}\ndata:\n  train: {train}\n")
    with pytest.raises(ProblemsError) as caught:
        read_spec(tmp_path / "task.yaml")
    assert [one.key for one in caught.value.problems] == keys
    assert all(one.line == 3 for one in caught.value.problems)
    assert says in caught.value.problems[0].message


def test_a_truth_value_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("data: {train: x}\nmodel: {model_name_or_path: m}\ntrain: {bf16: yes}\n")
    assert read_spec(tmp_path / "task.yaml").train == {"bf16": True}
    found = problems_of(tmp_path, "seed: on\nmetric: [bleu, {name: numeric_match, relative_tolerance: no}]\n")
    assert [(one.line, one.key) for one in found] == [(3, "seed"), (4, "metric.1.relative_tolerance")]
