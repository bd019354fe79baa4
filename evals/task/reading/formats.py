"""Rows -> Examples. The format is detected and named aloud; every bad row is reported with its line.

One shape for all: turns of a conversation whose last one, the assistant's, is the target (`evals/task/reading/conversation.py`).
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.engines.engine import Message
from evals.errors import Problem
from evals.records import content_hash
from evals.task.example import Example, calls_as_text
from evals.task.reading.conversation import RowError, answer, messages_of, parsed_list, sharegpt_turns, text_of, tools_of
from evals.task.reading.preferences import implicit_prompt
from evals.task.reading.read import open_source, raw_rows
from evals.task.reading.strict_json import compact
from evals.task.spec import ColumnsSpec, HubDataset

MAX_PROBLEMS = 1000
# What a list may be called that a cell of CSV, or a struct of Parquet, holds.
LISTS = ("messages", "conversations", "tools", "prompt", "completion", "chosen", "rejected", "history")
TRUTH = {"true": True, "false": False, "1": True, "0": False}
KINDS = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Row:
    """An Example, where it stands (`line` counts from 1; of a table it is the row), and the row as it was read.

    `body` holds JSON values: written as a line of JSON Lines it is read as the same Example.
    """

    example: Example
    file: str
    line: int
    body: dict[str, Any] = field(default_factory=dict, compare=False)


def read_rows(
    source: str | HubDataset, folder: Path, columns: ColumnsSpec, *, split: str = "train"
) -> tuple[list[Row], list[Problem], str]:
    """All rows of a file (its path below `folder`) or dataset, all its problems, and what was detected ("alpaca in CSV").

    `split` is the task's (train, dev or test): it chooses the Hub's where the source is no more than a dataset's name.
    """
    opened = open_source(source, folder, split)
    rows: list[Row] = []
    problems: list[Problem] = []
    formats: dict[str, None] = {}
    kinds = AnswerKinds(columns)
    for raw in raw_rows(opened):
        if len(problems) >= MAX_PROBLEMS:
            problems.append(Problem(opened.file, 0, "", f"more than {MAX_PROBLEMS:,} problems: reading stopped here"))
            break
        if isinstance(raw, Problem):
            problems.append(raw)
            continue
        try:
            body = raw.body
            if opened.container in {"CSV", "TSV"}:
                body = from_cells(body, columns)
            elif opened.typed:
                body = without_nulls(body)
            detected = detect(body, columns)
            formats.setdefault(detected)
            kinds.see(body, detected, raw.line)
            rows.append(Row(to_example(body, detected, columns), opened.file, raw.line, body))
        except RowError as error:
            problems.append(Problem(opened.file, raw.line, error.key, error.message))
    problems += [Problem(opened.file, line, key, message) for line, key, message in kinds.differ]
    if len(formats) > 1:
        problems.append(Problem(opened.file, 0, "", f"rows of different formats in one file: {', '.join(sorted(formats))}"))
    if not rows and not problems:
        problems.append(Problem(opened.file, 0, "", "the file has no rows"))
    name = "/".join(sorted(formats))
    return rows, problems, name if opened.container == "JSON Lines" or not name else f"{name} in {opened.container}"


class AnswerKinds:
    """Answers of one file are of one JSON type: a label `1` and a label `"1"` are two labels by mistake."""

    def __init__(self, columns: ColumnsSpec) -> None:
        self._columns = columns
        self._first: tuple[str, int] | None = None
        self.differ: list[tuple[int, str, str]] = []

    def see(self, body: dict[str, Any], detected: str, line: int) -> None:
        key = {"input/output": self._columns.output, "alpaca": "output"}.get(detected)
        kind = KINDS.get(type(body.get(key)), "") if key else ""
        if not kind or not key or self.differ:
            return
        if self._first is None:
            self._first = kind, line
        elif kind != self._first[0]:
            first, at = self._first
            message = f"the answer is {kind} here and {first} in line {at}: write all answers as one JSON type"
            self.differ.append((line, key, message))


def detect(body: dict[str, Any], columns: ColumnsSpec) -> str:
    """The format of a row by its keys. What `columns:` says comes first; then the format that says most about the row."""
    named = columns.model_fields_set
    here = {key for key, value in body.items() if value is not None}
    asked = {columns.input, columns.output}
    if named & {"input", "output"} and asked <= set(body):
        return "input/output"
    if "messages" in named and columns.messages in here:
        return "messages"
    if {"chosen", "rejected"} <= here:
        return "preference"
    if columns.messages in here:
        return "messages"
    if "conversations" in here:
        return "sharegpt"
    if {"prompt", "completion"} <= here:
        return "kto" if isinstance(body.get("label"), bool) else "prompt/completion"
    if "instruction" in here and "output" in body and not named & {"input", "output"}:
        return "alpaca"
    if asked <= set(body):
        return "input/output"
    raise _unknown(body, columns)


def _unknown(body: dict[str, Any], columns: ColumnsSpec) -> RowError:
    """Half of a pair is a missing key; else nothing is known."""
    pairs = ((columns.input, columns.output), ("chosen", "rejected"), ("prompt", "completion"), ("instruction", "output"))
    for pair in pairs:
        for key, other in (pair, pair[::-1]):
            if key in body and body.get(other) is None:
                return RowError(other, f"this key is missing (there is {key!r})")
    keys = ", ".join(map(str, list(body)[:8]))
    return RowError(
        "",
        f"neither {columns.input!r} and {columns.output!r} nor {columns.messages!r} nor another known format is here "
        f"(keys: {keys[:300]}); set `columns:`",
    )


def to_example(body: dict[str, Any], detected: str, columns: ColumnsSpec) -> Example:
    """One row of a detected format as an Example. Raises RowError."""
    example = READERS[detected](body, columns)
    if not any(message.role == "user" for message in example.messages):
        raise RowError(_input_key(detected, columns), "no turn is the user's")
    if not example.text.strip():
        raise RowError(_input_key(detected, columns), "the input is empty")
    if not example.target.strip():
        raise RowError(_output_key(detected, columns), "the output is empty")
    example = replace(
        example,
        gold_passages=_texts(body, columns.gold_passages),
        paraphrases=_texts(body, columns.paraphrases),
        images=_texts(body, columns.images),
        group=_name(body, columns.group),
        time=_name(body, columns.time),
        tools=tools_of(body["tools"]) if body.get("tools") is not None else (),
    )
    return replace(example, id=_name(body, columns.id) or _content_name(example))


def _input_key(detected: str, columns: ColumnsSpec) -> str:
    names = {"input/output": columns.input, "messages": columns.messages, "sharegpt": "conversations", "alpaca": "instruction"}
    return names.get(detected, "prompt")


def _output_key(detected: str, columns: ColumnsSpec) -> str:
    names = {"input/output": columns.output, "messages": columns.messages, "sharegpt": "conversations", "alpaca": "output"}
    return names.get(detected, "chosen" if detected == "preference" else "completion")


def _input_output(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    return Example("", (Message("user", text_of(body, columns.input)),), _target(body[columns.output], columns.output))


def _messages(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    return _conversation(messages_of(body[columns.messages], columns.messages), columns.messages)


def _sharegpt(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    turns = sharegpt_turns(body["conversations"], "conversations")
    return _conversation(_system(body) + turns, "conversations")


def _alpaca(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    """Instruction and input joined by a line end, earlier turns in `history`, as LLaMA-Factory reads them."""
    turns = list(_system(body))
    history = parsed_list(body["history"], "history") if body.get("history") is not None else []
    for at, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise RowError(f"history[{at}]", "must be a pair of texts: what the user said, what the assistant answered")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    parts = [text_of(body, key) for key in ("instruction", "input") if _given(body, key)]
    turns.append(Message("user", "\n".join(parts)))
    return Example("", tuple(turns), _target(body["output"], "output"))


def _prompt_completion(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    turns = _prompt(body["prompt"]) + _answers(body["completion"], "completion")
    return _conversation(turns, "completion")


def _kto(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    return replace(_prompt_completion(body, columns), desirable=body["label"])


def _preference(body: dict[str, Any], columns: ColumnsSpec) -> Example:
    prompt, chosen, rejected = implicit_prompt(body.get("prompt"), body["chosen"], body["rejected"])
    example = _conversation(_prompt(prompt) + _answers(chosen, "chosen"), "chosen")
    loser = _conversation(_prompt(prompt) + _answers(rejected, "rejected"), "rejected")
    if loser.messages != example.messages:
        raise RowError("rejected", "chosen and rejected answer different conversations")
    if not loser.target.strip():
        raise RowError("rejected", "the rejected answer is empty")
    if loser.target == example.target:
        raise RowError("rejected", "chosen and rejected are the same")
    return replace(example, rejected=loser.target)


READERS = {
    "input/output": _input_output,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt/completion": _prompt_completion,
    "kto": _kto,
    "preference": _preference,
}


def _conversation(turns: tuple[Message, ...], key: str) -> Example:
    """Turns whose last one is the target. A target that is calls alone is their JSON."""
    before, last = answer(turns, key)
    target = last.content if last.content.strip() or not last.tool_calls else calls_as_text(last.tool_calls)
    return Example("", before, target, calls=last.tool_calls)


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    return messages_of(value, "prompt")


def _answers(value: Any, key: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("assistant", value),)
    return messages_of(value, key)


def _system(body: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("system", text_of(body, "system")),) if _given(body, "system") else ()


def _given(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    return value is not None and value != ""


def _target(value: Any, key: str) -> str:
    """Text as it is; an object, list, number or truth value as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        raise RowError(key, "the output is empty")
    return compact(value)


def _texts(body: dict[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, str) and value.startswith("["):
        value = parsed_list(value, key)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RowError(key, "must be a list of texts")
    return tuple(value)


def _name(body: dict[str, Any], key: str) -> str | None:
    """A name or a moment: text or a number, on one line."""
    if not _given(body, key):
        return None
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(key, f"must be text or a number, not {KINDS[type(value)]}")
    text = str(value)
    if not text.strip() or any(unicodedata.category(sign) in {"Cc", "Zl", "Zp"} for sign in text):
        raise RowError(key, f"{text[:60]!r} is no name: write it on one line, without control characters")
    return text


def _content_name(example: Example) -> str:
    """16 hex digits that only what was asked and answered decides."""
    said: list[Any] = [[message.role, message.content] for message in example.messages]
    more = [one for one in (example.rejected, example.desirable) if one is not None]
    return content_hash([*said, example.target, *more])[:16]


def from_cells(body: dict[str, Any], columns: ColumnsSpec) -> dict[str, Any]:
    """Cells of CSV as JSON values: empty ones are left out, lists are parsed, and a KTO label is a truth value.

    A list of texts may be one text as it is; `prompt` and the like are lists of messages where they start with `[{`.
    """
    row = {key: cell for key, cell in body.items() if cell != "" or key in {columns.input, columns.output}}
    for key in (columns.gold_passages, columns.paraphrases, columns.images):
        if key in row:
            row[key] = parsed_list(row[key], key) if row[key].startswith("[") else [row[key]]
    for key in {*LISTS, columns.messages} - {columns.input, columns.output}:
        if row.get(key, "").lstrip().startswith("[{" if key in LISTS[3:7] else "["):
            row[key] = parsed_list(row[key], key)
    if {"prompt", "completion", "label"} <= set(row) and columns.output != "label":
        row["label"] = TRUTH.get(row["label"].strip().lower(), row["label"])
    return row


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """Turns and tools of a typed column without the keys that only other rows have (a struct has all keys in all rows)."""
    return {key: _dropped(value) if key in LISTS or isinstance(value, list) else value for key, value in body.items()}


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dropped(inner) for key, inner in value.items() if inner is not None}
    return [_dropped(inner) for inner in value] if isinstance(value, list) else value
