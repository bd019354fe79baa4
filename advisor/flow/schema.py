"""The JSON Schema of a task file as it is published: the task's own keys, and under `train` the keys of the recipe."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from evals.task.schema import AsRead, task_schema
from trainer.recipe import SHORTHANDS, Recipe


def published_schema() -> dict[str, Any]:
    """What an editor completes, explains and underlines. Accepts every task file whose `train` the trainer would accept."""
    schema = task_schema()
    recipe = TypeAdapter(Recipe).json_schema(schema_generator=AsRead)
    for one in recipe["properties"].values():
        # No defaults: the recommended recipe depends on the data and the model.
        one.pop("default", None)
        one.pop("title", None)
    recipe["properties"]["method"]["enum"] += SHORTHANDS
    schema["properties"]["train"] |= {"properties": recipe["properties"], "additionalProperties": False}
    return schema


def schema_text() -> str:
    """`advisor/task.schema.json`, which is made by `advisor init --schema`."""
    return json.dumps(published_schema(), indent=2, ensure_ascii=False) + "\n"
