"""Rows of a file -> Examples. The format is detected and named aloud; every bad row is reported with its line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.engines.engine import Message
from evals.errors import Problem
from evals.records import content_hash
from evals.task.example import Example
from evals.task.spec import ColumnsSpec, HubDataset

MAX_LINE = 1_000_000
SURROGATE = re.compile("[\ud800-\udfff]")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """An Example, where it stands (`line` counts from 1; of a table it is the row), and the row as it was read."""

    example: Example
    file: str
    line: int
    body: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Document:
    """One document of the task: `id` is its path below the documents folder."""

    id: str
    text: str


class RowError(Exception):
    """What is wrong with one row: (key, message)."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


def read_rows(source: str | HubDataset, folder: Path, columns: ColumnsSpec) -> tuple[list[Row], list[Problem], str]:
    """All rows of a JSON Lines file, all its problems, and the name of the detected format."""
    path = folder / str(source)
    file = str(path)
    rows: list[Row] = []
    problems: list[Problem] = []
    formats: set[str] = set()
    try:
        if not path.is_file():
            return [], [Problem(file, 0, "", "there is no such file")], ""
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        return [], [Problem(file, 0, "", f"not UTF-8 text (byte {error.start})")], ""
    except OSError as error:
        return [], [Problem(file, 0, "", f"cannot be read: {error.strerror}")], ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            body = parse_line(line)
            detected = detect(body, columns)
            formats.add(detected)
            rows.append(Row(to_example(body, detected, columns), file, number))
        except RowError as error:
            problems.append(Problem(file, number, error.key, error.message))
    if len(formats) > 1:
        problems.append(Problem(file, 0, "", f"rows of different formats in one file: {', '.join(sorted(formats))}"))
    if not rows and not problems:
        problems.append(Problem(file, 0, "", "the file has no rows"))
    return rows, problems, "/".join(sorted(formats))


def parse_line(line: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise RowError("", f"the line is longer than {MAX_LINE:,} characters")
    try:
        body = json.loads(line, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise RowError("", f"broken JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RowError("", "broken JSON: nested too deeply") from error
    except ValueError as error:
        raise RowError("", f"broken JSON: {error}") from error
    if not isinstance(body, dict):
        raise RowError("", "each line is one JSON object")
    return body


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def detect(body: dict[str, Any], columns: ColumnsSpec) -> str:
    """`messages` or `input/output`; what else there is comes with a later version, so it is refused by name."""
    if columns.input in body and columns.output in body:
        return "input/output"
    if "messages" in body:
        return "messages"
    for key in (columns.input, columns.output):
        if (columns.input in body or columns.output in body) and key not in body:
            raise RowError(key, "this key is missing")
    keys = ", ".join(map(str, list(body)[:8]))
    raise RowError(
        "", f"neither {columns.input!r} and {columns.output!r} nor 'messages' is here (keys: {keys}); set `columns:`"
    )


def to_example(body: dict[str, Any], detected: str, columns: ColumnsSpec) -> Example:
    if detected == "messages":
        messages = _messages(body["messages"])
        if messages[-1].role != "assistant":
            raise RowError("messages", "the last message must be the assistant's: it is the target")
        target = messages[-1].content
        messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise RowError("messages", "the message before the last must be the user's: it is the input")
    else:
        messages = (Message("user", _text(body, columns.input)),)
        target = _target(body[columns.output], columns.output)
    if any(SURROGATE.search(text) for text in [target, *(message.content for message in messages)]):
        raise RowError("", "half of a surrogate pair (such as \\ud83d) is no text, and no tokeniser takes it")
    if not messages[-1].content.strip():
        raise RowError(columns.input if detected != "messages" else "messages", "the input is empty")
    if not target.strip():
        raise RowError(columns.output if detected != "messages" else "messages", "the output is empty")
    gold = body.get(columns.gold_passages) or []
    if not isinstance(gold, list) or not all(isinstance(one, str) for one in gold):
        raise RowError(columns.gold_passages, "must be a list of texts")
    group = body.get(columns.group)
    given = body.get(columns.id)
    name = str(given) if given is not None else content_hash([[m.role, m.content] for m in messages] + [target])[:16]
    return Example(name, messages, target, tuple(gold), None if group is None else str(group))


def _text(body: dict[str, Any], key: str) -> str:
    value = body[key]
    if not isinstance(value, str):
        raise RowError(key, f"must be text, not {type(value).__name__}")
    return value


def _target(value: Any, key: str) -> str:
    """Text as it is; an object, list, number or truth value as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        raise RowError(key, "the output is empty")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError("messages", "must be a list of messages")
    messages = []
    for index, one in enumerate(value):
        if not isinstance(one, dict) or not isinstance(one.get("content"), str) or one.get("role") not in ROLES:
            raise RowError(f"messages[{index}]", f"needs `content` as text and `role` of {', '.join(ROLES)}")
        messages.append(Message(one["role"], one["content"]))
    return tuple(messages)


def read_documents(folder: Path) -> tuple[list[Document], list[Problem]]:
    """Markdown and plain text files below `folder`, in order of their paths. Links that lead out of it are refused."""
    if not folder.is_dir():
        return [], [Problem(str(folder), 0, "data.documents", "there is no such folder")]
    documents: list[Document] = []
    problems: list[Problem] = []
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in {".md", ".txt"} or not path.is_file():
            continue
        if root not in path.resolve().parents:
            problems.append(Problem(str(path), 0, "", "a link that leads out of the documents folder"))
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(str(path), 0, "", f"cannot be read as UTF-8 text: {error}"))
            continue
        if text.strip():
            documents.append(Document(path.relative_to(folder).as_posix(), text))
    if not documents and not problems:
        problems.append(Problem(str(folder), 0, "data.documents", "no .md or .txt file with text in it"))
    return documents, problems
