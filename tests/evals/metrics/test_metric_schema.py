"""JSON answers against a schema: read strictly, never fetched, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.metrics.options import JsonSchema
from evals.metrics.schema import Schema
from evals.task.example import Example

TICKET = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer", "minimum": 0}},
    "required": ["city"],
    "additionalProperties": False,
}
ROW = Example("row", (Message("user", "q"),), "not looked at")


def scores(schema: dict[str, Any], *answers: str) -> list[float]:
    return Schema(JsonSchema(name="json_schema"), schema)([(ROW, answer) for answer in answers])


def test_validity() -> None:
    right = ['{"city": "Bonn"}', ' {"n": 2, "city": ""}\n', '{"city": "x", "n": 2.0}']
    wrong = ['{"n": 2}', '{"city": 1}', '{"city": "x", "n": -1}', '{"city": "x", "other": 1}', "[]", "null"]
    broken = ["", "Bonn", '```json\n{"city": "Bonn"}\n```', '{"city": "Bonn"', '{"city": "x", "n": NaN}', "[" * 100_000]
    assert scores(TICKET, *right, *wrong, *broken) == [1.0] * 3 + [0.0] * 12
    assert scores({"type": ["array", "null"]}, "[1]", "null", "{}") == [1.0, 1.0, 0.0]


@given(st.text(st.characters(exclude_categories=())) | st.text('{}[]":,city0n1 '))
def test_any_text(text: str) -> None:
    assert scores(TICKET, text)[0] in {0.0, 1.0}


def test_references_are_not_fetched(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    for reference in (other.as_uri(), str(other), "http://127.0.0.1:9/s.json", "#/$defs/nowhere"):
        with pytest.raises(AdvisorError, match="cannot be followed"):
            scores({"$ref": reference}, "{}")


def test_a_schema_that_never_ends_scores_nothing() -> None:
    assert scores({"$ref": "#"}, "{}") == [0.0]


def test_the_schema_is_part_of_the_settings() -> None:
    one, other = (Schema(JsonSchema(name="json_schema"), schema) for schema in (TICKET, {}))
    assert one.settings != other.settings
