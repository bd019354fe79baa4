"""What a new task file says: columns, kind of answer, instruction, each from the rows and with its reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from advisor.flow.init import Table
from advisor.flow.sources import Sources
from advisor.flow.task_yaml import Draft
from evals.engines.models import DEMO_MODEL, PINNED_MODELS
from evals.errors import UsageError
from evals.metrics import default_metric
from evals.metrics.options import NAMES, metric_options, plain_options
from evals.metrics.structured import parse_object
from evals.task.example import Example
from evals.task.guess import LOOKED_AT, Column, Output, guess_output, words
from evals.task.reading.formats import Row, read_rows
from evals.task.spec import ColumnsSpec
from evals.task.splits import moment

DRAFTED = "A draft: say what the model is to do, here or in a file (instruction.md). The first paragraph is the short form."
TIME_WORDS = {"time", "date", "timestamp", "created", "datetime"}
ID_WORDS = {"id", "uuid", "guid", "key", "number", "no"}


def draft(
    sources: Sources,
    table: Table,
    columns: Mapping[str, str],
    *,
    name: str | None = None,
    instruction: str | None = None,
    metric: str | None = None,
    model: str | None = None,
) -> Draft:
    """What the task file would say. `columns` are the chosen ones, empty where the format is known. Raises UsageError."""
    if columns and columns["input"] == columns["output"]:
        raise UsageError(f"the column {columns['input']!r} cannot be both", do="name two with --input and --output.")
    _decides(metric)
    rows = _rows(sources, columns)
    bodies = [row.body for row in rows]
    constant = "" if columns else _constant_instruction(bodies)
    reasons = {key: one.reason for key, one in (("input", table.asks), ("output", table.answers)) if one}
    reasons = {key: why for key, why in reasons.items() if columns.get(key) == _value(table, key)}
    hints: tuple[tuple[str, str, str], ...] = ()
    if constant:
        columns = {"input": "input", "output": "output"}
        reasons = {"input": "alone: the instruction is the same in all rows, and stands above"}
    elif columns:
        columns = {**columns, **_id_column(bodies, table)}
        hints = _hints(bodies, table, set(columns.values()))
    examples = [row.example for row in rows if row.example.desirable is not False]
    output = guess_output([one.target for one in examples], columns.get("output", ""))
    said, why = _instruction(sources, constant, output, examples)
    found = Draft(
        source=", ".join(filter(None, [sources.title, f"{len(rows):,} rows", table.detected])),
        data=_data(sources),
        columns=dict(columns),
        column_reasons=reasons | ({"id": "different in every row"} if "id" in columns else {}),
        column_hints=hints,
        output=output,
        name=_usable_name(name if name is not None else sources.name),
        instruction=said,
        instruction_reason=why,
        metric=metric or default_metric(output.type),
        model=DEMO_MODEL,
    )
    return answered(found, sources, instruction, model)


def answered(found: Draft, sources: Sources, instruction: str | None, model: str | None) -> Draft:
    """The draft with what a person said in place of what was guessed. Files that are there are named from the task file."""
    if instruction is not None:
        one_word = instruction.endswith((".md", ".txt")) and " " not in instruction
        there = one_word and Path(instruction).is_file()
        instruction = sources.relative(Path(instruction)) if there else instruction
        if instruction != found.instruction:
            found = replace(found, instruction=instruction, instruction_reason="")
    if model is not None:
        there = model not in PINNED_MODELS and Path(model).exists()
        found = replace(found, model=sources.relative(Path(model)) if there else model)
    return found


def _value(table: Table, key: str) -> str | None:
    guess = table.asks if key == "input" else table.answers
    return guess.value if guess else None


def _data(sources: Sources) -> dict[str, Any]:
    data: dict[str, Any] = {
        key: sources.relative(one) if isinstance(one, Path) else one.model_dump(exclude_unset=True)
        for key, one in sources.splits.items()
    }
    return data | ({"documents": sources.relative(sources.documents)} if sources.documents else {})


def _rows(sources: Sources, columns: Mapping[str, str]) -> list[Row]:
    """Of all splits, as far as they can be read: what is wrong with them is said when the file is read back."""
    found: list[Row] = []
    for split in sources.splits:
        rows, _, _ = read_rows(sources.source(split), sources.folder, ColumnsSpec(**columns), split=split)
        found += rows
    return found


def _constant_instruction(bodies: Sequence[Mapping[str, Any]]) -> str:
    """Of Alpaca rows that all have the same instruction and each an input of its own: then it is the task's."""
    told = {str(body.get("instruction", "")).strip() for body in bodies}
    plain = all(isinstance(body.get("input"), str) and body["input"].strip() and "output" in body for body in bodies)
    more = any(body.get("system") or body.get("history") for body in bodies)
    if not plain or more or len(bodies) < 2 or len(told) > 1:
        return ""
    text = told.pop()
    # One word that ends so would be read as the name of a file.
    return "" if text.endswith((".md", ".txt")) and " " not in text else text


def _id_column(bodies: Sequence[Mapping[str, Any]], table: Table) -> dict[str, str]:
    """A column that is called an id, if it names each row of all splits."""
    for one in table.columns:
        if "id" not in table.keys and ID_WORDS & set(words(one.name)):
            values = [body[one.name] for body in bodies if isinstance(body.get(one.name), str | int) and body[one.name] != ""]
            if len(set(map(str, values))) == len(bodies) > 0:
                return {"id": one.name}
    return {}


def _hints(bodies: Sequence[Mapping[str, Any]], table: Table, taken: set[str]) -> tuple[tuple[str, str, str], ...]:
    """Columns that may say when a row is from, or which rows belong together: offered, since both change how rows are split."""
    free = [one for one in table.columns if one.name not in taken]
    hints = [("time", one.name, "when a row is from: then the latest rows are the test") for one in free if _is_time(one)][:1]
    together = [one.name for one in free if "id" in words(one.name) and 1 < one.distinct < one.filled][:1]
    return (*hints, *(("group", name, "rows that belong together: then they stay in one split") for name in together))


def _is_time(column: Column) -> bool:
    try:
        return bool(TIME_WORDS & set(words(column.name))) and len({moment(one) for one in column.samples}) > 1
    except (ValueError, OverflowError, OSError):
        return False


def _instruction(sources: Sources, constant: str, output: Output, examples: Sequence[Example]) -> tuple[str, str]:
    """The instruction and its reason: the folder's, the rows' own, or a draft."""
    if sources.instruction:
        return sources.relative(sources.instruction), ""
    if constant:
        return constant, "The instruction that all rows have."
    systems = {next((one.content for one in example.messages if one.role == "system"), "") for example in examples}
    if len(systems) == 1 and systems != {""}:
        return "", "All rows bring the same system message: it says what the model is to do."
    return drafted(output, examples, documents=sources.documents is not None), DRAFTED


def drafted(output: Output, examples: Iterable[Example], *, documents: bool = False) -> str:
    """A sensible instruction for a kind of answer."""
    if output.type == "label":
        labels = ", ".join(" ".join(one.split()) for one in output.labels)
        which = f"one of these labels, and nothing else: {labels}." if len(labels) <= 400 else "its label, and nothing else."
        return f"Which label fits the text? Answer with {which}"
    if output.type == "json":
        found = {" ".join(key.split()): None for one in islice(examples, LOOKED_AT) for key in parse_object(one.target) or {}}
        keys = ", ".join(found)
        with_keys = f" with the keys {keys}" if 0 < len(keys) <= 200 else ""
        return f"Read the text and answer with one JSON object{with_keys}, and nothing else."
    if output.type == "number":
        return "Answer the question with one number, and nothing else."
    return "Answer the question from the documents, in a few words." if documents else "Answer the question."


def _decides(metric: str | None) -> None:
    """Raises UsageError for a metric that is unknown, needs options or cannot decide."""
    if metric is None:
        return
    try:
        metric_options(metric)
        one = plain_options(metric) if metric in NAMES else None
    except ValueError as error:
        reason = f"{metric} needs options: write them into the file" if metric in NAMES else str(error)
        raise UsageError(reason, where="--metric", do="name one that stands alone, such as exact_match.") from error
    if one is not None and not one.decides:
        raise UsageError(f"{metric} is a figure of a whole split and cannot decide", where="--metric", do="name another one.")


def _usable_name(name: str) -> str:
    """Letters, digits, dots, hyphens and underscores; at most 80. An accent is left out, not its letter."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:80] or "task"
