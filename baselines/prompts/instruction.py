"""The instruction rewritten by rule, without a model: what is asked, the exact form of the answer, one or two worked examples.

The form comes from the task's schema or labels; of JSON without a schema it is read off the training targets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from statistics import quantiles
from typing import Any

from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import Placement, PromptFormat
from evals.engines.engine import Engine
from evals.events import Note, OnEvent
from evals.metrics.structured import parse_object
from evals.task.example import Example
from evals.task.load import Task
from evals.task.targets import come_again

PLACEMENT: Placement = "system"
EXAMPLES = 2
# Characters that are added to what is asked: room for the names of some hundred labels. Sentences around lists are of it.
MAX_ADDED = 6000
SENTENCES = 200
MAX_EXAMPLE = 800
MAX_VALUES = 40
# An enumeration shuts out what no training row had: the share of such values is that of the values seen once (Good 1953).
MAX_UNSEEN = 0.02
# Objects with more keys than this are tables of names, and their keys are values.
MAX_KEYS = 64
MAX_DEPTH = 3

ASKED = {
    "label": "Choose the label that fits the input.",
    "number": "Answer the question in the input with a number.",
    "json": "Write what the input says as JSON.",
    "text": "Answer the input.",
}
TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}


def described_arm(task: Task, engine: Engine, on_event: OnEvent) -> Prompt:
    """Zero-shot with the rewritten instruction: with as many of its examples as the context has room for."""
    answers = answer_format(task, engine)
    longest = max((*task.train, *task.dev), key=lambda one: sum(len(message.content) for message in one.messages))
    room = engine.context_length - answers.max_new_tokens
    for count in range(EXAMPLES, -1, -1):
        asked = PromptFormat(described(task, count), PLACEMENT)
        if engine.count_prompts([asked.messages(longest)])[0] <= room:
            break
    else:
        on_event(Note("zero_shot_described: the rewritten instruction leaves no room for the longest questions", "warning"))
    return Prompt("zero_shot_described", engine, asked, answers, on_event=on_event)


def described(task: Task, examples: int = EXAMPLES) -> str:
    """The first paragraph of the task's instruction, the form of its answers, and up to so many of the training rows.

    At most `MAX_ADDED` characters are added to the paragraph: examples are left out first, then the end of a long list.
    """
    form = _form(task)
    room = MAX_ADDED - SENTENCES - len(form)
    shown = []
    for one in _typical(task.train, examples):
        text = f"Input: {one.text}\nAnswer: {one.target}"
        room -= len(text)
        if room >= 0:
            shown.append(text)
    return "\n\n".join([_asked(task), form, *(["For example:", *shown] if shown else [])])


def _asked(task: Task) -> str:
    """The first paragraph that is no heading, else a plain sentence."""
    paragraphs = [one.strip() for one in task.instruction.split("\n\n")]
    return next((one for one in paragraphs if one and not one.startswith("#")), ASKED[task.output_type])


def _form(task: Task) -> str:
    if task.output_type == "label":
        return "\n".join(
            [
                "Answer with one of these labels, as it is written here, and nothing else:",
                *_listed([_label(one) for one in task.labels]),
            ]
        )
    if task.output_type == "number":
        return "Answer with one number, in digits, and nothing else."
    if task.output_type == "json":
        return _form_of_object(answer_schema(task) or {"type": "object"})
    return _form_of_text([one.target for one in task.train])


def _listed(lines: Sequence[str]) -> list[str]:
    """As many lines as there is room for, each behind a dash; what is left out is said."""
    found: list[str] = []
    room = MAX_ADDED - SENTENCES
    for line in lines:
        room -= len(line) + 3
        if room < 0:
            return [*found, f"- … and {len(lines) - len(found)} more"]
        found.append(f"- {line}")
    return found


def _label(label: str) -> str:
    """As it is; in quotes where a line break or a space at its ends would be lost."""
    return label if label and " ".join(label.splitlines()).strip() == label else _json(label)


def _form_of_text(targets: Sequence[str]) -> str:
    """How many words half of the answers have, and that they stand on one line, where they do."""
    words = [len(target.split()) for target in targets]
    low, _, high = (round(one) for one in quantiles(words, n=4)) if len(words) > 1 else (words[0], 0, words[0])
    length = f"{low} to {high} words" if low < high else f"about {low} word{'s' if low != 1 else ''}"
    line = ", on one line" if not any(target.strip().count("\n") for target in targets) else ""
    return f"Answer in {length}{line}, and write nothing else."


def _form_of_object(schema: dict[str, Any]) -> str:
    said = "Answer with one JSON object and nothing else."
    keys = _keys(schema, schema)
    return "\n".join([f"{said} Its keys:", *_listed(keys)]) if keys else said


def _keys(schema: Any, root: Any) -> list[str]:
    """A line for each key: its name, what its value is, and whether it may be left out."""
    schema = _resolved(schema, root)
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    return [
        f"{_json(key)}: {_value(one, root, 1)}{'' if key in required else '; may be left out'}"
        for key, one in properties.items()
    ]


def _value(schema: Any, root: Any, depth: int) -> str:
    """What a value is, in words: allowed values, type and pattern, as far down as `MAX_DEPTH`, with the schema's description."""
    schema = _resolved(schema, root)
    told = f" ({' '.join(schema['description'].split())})" if isinstance(schema.get("description"), str) else ""
    if "const" in schema:
        return f"always {_json(schema['const'])}{told}"
    if "enum" in schema:
        return f"one of {_values(schema['enum'])}{told}"
    several = schema.get("anyOf") or schema.get("oneOf")
    if several and depth < MAX_DEPTH:
        return " or ".join(dict.fromkeys(_value(one, root, depth + 1) for one in several)) + told
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    text = " or ".join(TYPES[kind] for kind in kinds) or "any value"
    if "array" in kinds and "items" in schema and depth < MAX_DEPTH:
        text += f", each item {_value(schema['items'], root, depth + 1)}"
    if "object" in kinds and depth < MAX_DEPTH and (inner := _inner(schema, root, depth)):
        text += f" with {inner}"
    if isinstance(schema.get("pattern"), str):
        text += f" that matches {schema['pattern']}"
    return text + told


def _inner(schema: Any, root: Any, depth: int) -> str:
    required = schema.get("required", ())
    return ", ".join(
        f"{_json(key)} ({_value(one, root, depth + 1)}{'' if key in required else ', may be left out'})"
        for key, one in schema.get("properties", {}).items()
    )


def _values(values: Sequence[Any]) -> str:
    shown = [_json(one) for one in values[:MAX_VALUES]]
    return ", ".join(shown) + (f" and {len(values) - len(shown)} more" if len(values) > len(shown) else "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _resolved(schema: Any, root: Any) -> dict[str, Any]:
    """The schema that a `$ref` into this very file names (RFC 6901), followed a few times; nothing for what it is not."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        target: Any = root if schema["$ref"].startswith("#") else None
        for step in schema["$ref"].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        schema = target
    return schema if isinstance(schema, dict) else {}


def _typical(rows: Sequence[Example], count: int) -> list[Example]:
    """The shortest rows of one question whose question and answer are no shorter than a quarter of all; their answers differ."""
    lone = [one for one in rows if len(one.messages) == 1 and len(one.text) + len(one.target) <= MAX_EXAMPLE]
    if not lone:
        return []
    least_text, least_target = (sorted(lengths)[(len(lone) - 1) // 4] for lengths in _lengths(lone))
    fitting = [one for one in lone if len(one.text) >= least_text and len(one.target) >= least_target]
    found: dict[str, Example] = {}
    for one in sorted(fitting, key=lambda one: (len(one.text) + len(one.target), one.text, one.id)):
        if len(found) < count:
            found.setdefault(one.target, one)
    return list(found.values())


def _lengths(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    return [len(one.text) for one in rows], [len(one.target) for one in rows]


def answer_schema(task: Task) -> dict[str, Any] | None:
    """The JSON Schema of the task's answers: its own, else what all training targets have in common; None where they are no JSON.

    Answers are objects, whether the task's own schema says so or not.
    """
    if task.output_type != "json":
        return None
    if task.schema is not None:
        return {"type": "object", **task.schema}
    targets = [parse_object(one.target) for one in task.train]
    return inferred_schema([one for one in targets if one is not None])


def inferred_schema(values: Sequence[Any]) -> dict[str, Any]:
    """The narrowest plain schema that all of these JSON values fit.

    Keys that all objects have are required, and there are no others; a list's items have one schema; values of several
    types are any of these. Strings that come again and again are enumerated, where hardly another is to be expected.
    """
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kinds.setdefault(_kind(value), []).append(value)
    shapes = [_shape(kind, members) for kind, members in kinds.items()]
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes} if shapes else {}


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _shape(kind: str, values: Sequence[Any]) -> dict[str, Any]:
    if kind == "number":
        return {"type": "integer" if all(isinstance(one, int) for one in values) else "number"}
    if kind == "string":
        counts = Counter(values)
        seen_once = sum(count == 1 for count in counts.values())
        closed = come_again(len(counts), len(values)) and seen_once <= MAX_UNSEEN * len(values)
        return {"type": "string", "enum": sorted(counts)} if closed else {"type": "string"}
    if kind == "array":
        items = inferred_schema([item for one in values for item in one])
        return {"type": "array", "items": items} if items else {"type": "array"}
    return _object_shape(values) if kind == "object" else {"type": kind}


def _object_shape(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = _in_order(rows)
    if len(keys) > MAX_KEYS:
        return {"type": "object"}
    return {
        "type": "object",
        "properties": {key: inferred_schema([row[key] for row in rows if key in row]) for key in keys},
        "required": [key for key in keys if all(key in row for row in rows)],
        "additionalProperties": False,
    }


def _in_order(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All keys, in an order that every row keeps where there is one: a constraint makes the model write them so."""
    before: dict[str, dict[str, None]] = {}
    for row in rows:
        previous: dict[str, None] = {}
        for key in row:
            before.setdefault(key, {}).update(previous)
            previous = {key: None}
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        return list(before)
