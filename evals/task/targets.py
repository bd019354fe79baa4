"""What an answer is: the output type, its schema, and the targets that no right answer could have."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.errors import Problem
from evals.metrics.number import parse_number
from evals.metrics.structured import parse_object
from evals.task.reading.formats import Row
from evals.task.spec import OutputType, TaskSpec

MAX_LABELS = 100
MIN_ROWS_FOR_LABELS = 20


def inferred_type(targets: Sequence[str]) -> OutputType:
    """What all targets are: JSON objects, numbers, labels (few that come again and again), or else text."""
    if targets and all(parse_object(target) is not None for target in targets):
        return "json"
    if targets and all(parse_number(target) is not None for target in targets):
        return "number"
    return "label" if come_again(len(set(targets)), len(targets)) else "text"


def come_again(distinct: int, total: int) -> bool:
    """Whether so few different values among so many are labels."""
    return total >= MIN_ROWS_FOR_LABELS and 2 <= distinct <= min(MAX_LABELS, total // 4)


def output_of(spec: TaskSpec, targets: list[str], said: list[str]) -> tuple[OutputType, tuple[str, ...]]:
    """The declared output type (declared labels are one), or the one that all targets of the training file fit."""
    distinct = sorted(set(targets))
    if spec.output.labels and not spec.output.type:
        said.append("output type: label, since labels are declared")
        return "label", spec.output.labels
    if spec.output.type:
        labels = spec.output.labels or (tuple(distinct) if spec.output.type == "label" else ())
        return spec.output.type, labels
    inferred = inferred_type(targets)
    said.append(f"output type: {inferred}, from the targets")
    return inferred, tuple(distinct) if inferred == "label" else ()


def target_problems(
    spec: TaskSpec,
    folder: Path,
    output_type: OutputType,
    labels: tuple[str, ...],
    rows: list[Row],
    schema: dict[str, Any] | None,
) -> list[Problem]:
    """Targets that no right answer could have: not JSON, not of the schema, not a label, not a number."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    problems: list[Problem] = []
    code = any(one.name == "code" for one in spec.metric)
    # An empty registry: a schema that refers to an address is not fetched.
    validator: Any = None if schema is None else Draft202012Validator(schema, registry=Registry())
    for row in rows:
        target = row.example.target
        message = ""
        if output_type == "json":
            body = parse_object(target)
            if body is None:
                message = "the target is not a JSON object"
            elif validator is not None:
                try:
                    error = next(iter(validator.iter_errors(body)), None)
                    message = f"the target breaks the schema: {error.message[:200]}" if error else ""
                except (Unresolvable, RecursionError, re.error) as error:
                    where = str(folder / str(spec.output.json_schema))
                    reason = str(error)[:200]
                    problems.append(Problem(where, 0, "output.schema", f"the schema cannot be followed: {reason}"))
                    validator = None
        elif output_type == "number" and parse_number(target) is None:
            message = "the target is not a number"
        elif output_type == "label" and labels and target not in labels:
            message = f"the target {target[:60]!r} is not one of the labels (declare it in `output: {{labels: […]}}`)"
        if code and not message:
            message = _no_program(target)
        if message:
            problems.append(Problem(row.file, row.line, spec.columns.output, message))
    return problems


def _no_program(target: str) -> str:
    """Why a target is no Python that tests an answer, else an empty string."""
    try:
        return "" if ast.parse(target).body else "the metric `code` runs the tests in the target, and there are none"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"the metric `code` runs the tests in the target, and it is no Python: {error}"


def read_schema(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError, RecursionError) as error:
        reason = getattr(error, "message", str(error))
        problems.append(Problem(str(path), 0, "output.schema", f"not a JSON Schema that can be read: {reason[:200]}"))
        return None
    return schema if isinstance(schema, dict) else None


def metric_problems(spec: TaskSpec, file: str) -> list[Problem]:
    if any(one.name == "json_schema" for one in spec.metric) and not spec.output.json_schema:
        return [Problem(file, 0, "metric", "json_schema checks answers against `output: {schema: FILE}`, which is missing")]
    return []
