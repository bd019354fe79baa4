"""JSON answers: strict and tolerant reading, equality of values, hostile input."""

from __future__ import annotations

import json
import time

import pytest

from evals.metrics.structured import MAX_DEPTH, equal, find_object, json_exact, json_fields, parse_object


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1]",
        '{"a": 1} ok',
        '```json\n{"a": 1}\n```',
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a":1,}',
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        "\ufeff{}",
        "\ud800",
    ],
)
def test_what_is_no_object(text: str) -> None:
    assert parse_object(text) is None


def test_objects() -> None:
    assert parse_object(' \n{"a": [1, {"b": null}]} ') == {"a": [1, {"b": None}]}
    assert parse_object('{"a": 1, "a": 2}') == {"a": 2}
    assert parse_object('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH) is not None


def test_find_object_takes_the_first_whole_one() -> None:
    assert find_object('Use {x}: ```json\n{"a": {"b": 1}}\n``` or {"c": 2}') == {"a": {"b": 1}}
    assert find_object('{broken: {"a": 1}}') == {"a": 1}
    assert find_object('{"line": "one\ntwo"}') == {"line": "one\ntwo"}
    assert find_object("{} then") == {}
    assert find_object("no object { here") is None


@pytest.mark.parametrize("text", ['{"a":' * 100_000, ('{"a":' * 900 + " x ") * 100, "{" * 300_000, '{"a":"' * 50_000])
def test_hostile_text_is_read_in_no_time(text: str) -> None:
    started = time.perf_counter()
    find_object(text)
    parse_object(text)
    # Quadratic reading took 3 to 15 seconds.
    assert time.perf_counter() - started < 2


def test_equality_is_that_of_json() -> None:
    assert equal({"a": 1, "b": [1.0, None]}, {"b": [1, None], "a": 1.0})
    assert not equal(True, 1)
    assert not equal([False], [0])
    assert not equal({"a": None}, {})
    assert not equal([1, 2], [2, 1])
    assert not equal("1", 1)


def test_fields_over_the_union_of_keys() -> None:
    target = json.dumps({"a": 1, "b": {"c": [1, 2]}, "d": "x"})
    assert json_fields(target, target) == 1.0
    # a wrong, b right, d missing, e invented: 1 of 4.
    assert json_fields('{"b": {"c": [1, 2]}, "a": true, "e": 0}', target) == 0.25
    assert json_fields("not json", target) == 0.0
    assert json_fields("[1]", target) == 0.0
    assert json_fields("{}", "{}") == 1.0
    assert json_fields("{}", '{"a": 1}') == 0.0


def test_targets_that_are_no_objects() -> None:
    assert json_fields("[1,  2]", "[1, 2]") == 1.0
    assert json_fields("[1, 3]", "[1, 2]") == 0.0
    assert json_exact("plain", "Plain!") == 1.0
    assert json_exact("null", "null") == 1.0
    assert json_exact("nothing", "null") == 0.0
