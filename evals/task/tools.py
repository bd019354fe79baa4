"""`tools:` of a task file: functions that a model may call while it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evals.errors import Problem, did_you_mean
from evals.records import file_hash
from evals.task.reading.strict_json import JsonError, parse
from evals.task.signature import SignatureError, read_signature
from evals.task.strict import Strict

if TYPE_CHECKING:
    # At run time this would be a circle: reading documents needs the spec, which needs this.
    from evals.task.reading.documents import Document

KEY = "tools.functions"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A file of functions is written by hand. More is something else under the name.
MAX_BYTES = 4 * 2**20


class ToolsSpec(Strict):
    """`functions`: `calculator` and `lookup` (over the documents) come built in; `python:FILE.py:FUNCTION` is one of the
    user's, described by its signature and docstring; `FILE.json` declares functions by schema, whose call is the answer.

    A function may take `timeout` seconds and `memory_mib`; an answer may take `max_turns` calls.
    """

    functions: tuple[str, ...] = Field(min_length=1)
    max_turns: int = Field(default=4, ge=1, le=50)
    timeout: float = Field(default=5.0, gt=0, le=600)
    memory_mib: int = Field(default=1024, ge=64)


@dataclass(frozen=True)
class Tool:
    """A function as the model is told of it: `parameters` is the JSON schema of its arguments.

    `kind` says who runs it: we (`builtin`), a process with the user's function (`python`), or nobody (`declared`: the call
    itself is the answer). `file` and `function` are the user's.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    kind: Literal["builtin", "python", "declared"]
    file: str = ""
    function: str = ""
    file_sha256: str = ""

    @property
    def schema(self) -> str:
        """As `Request.tools` has it."""
        body = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return json.dumps({"type": "function", "function": body}, ensure_ascii=False)


def _one_text(argument: str, description: str) -> dict[str, Any]:
    properties = {argument: {"type": "string", "description": description}}
    return {"type": "object", "properties": properties, "required": [argument], "additionalProperties": False}


BUILTIN = {
    "calculator": Tool(
        "calculator",
        "Computes an arithmetic expression exactly.",
        _one_text("expression", "numbers, + - * / // % **, parentheses, round, abs, min, max, sqrt"),
        "builtin",
    ),
    "lookup": Tool(
        "lookup",
        "Finds what the documents say about a question.",
        _one_text("query", "what to look for"),
        "builtin",
    ),
}


class _Faulty(Exception):
    """What is wrong with an entry, and where."""

    def __init__(self, message: str, file: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.message, self.file, self.line = message, file, line


def read_tools(spec: ToolsSpec | None, folder: Path, problems: list[Problem]) -> tuple[Tool, ...]:
    """The tools of a task file, in its order. Whatever is wrong with one is added to `problems`."""
    if spec is None:
        return ()
    tools: dict[str, Tool] = {}
    for entry in spec.functions:
        try:
            found = _tools_of(entry, folder, problems)
        except _Faulty as fault:
            problems.append(Problem(fault.file or str(folder / "task.yaml"), fault.line, KEY, fault.message))
            continue
        for tool in found:
            if tool.name in tools:
                message = f"{entry!r}: there is a tool {tool.name!r} already, and a model calls them by name"
                problems.append(Problem(str(folder / "task.yaml"), 0, KEY, message))
            tools.setdefault(tool.name, tool)
    return tuple(tools.values())


def tool_problems(tools: Sequence[Tool], documents: Sequence[Document], file: str) -> list[Problem]:
    """What the tools need and the task `file` does not give: `lookup` reads documents."""
    if BUILTIN["lookup"] in tools and not documents:
        return [Problem(file, 0, KEY, "lookup searches the documents, and there are none: name them in `data: {documents: …}`")]
    return []


def row_tools(texts: Sequence[str]) -> tuple[Tool, ...]:
    """The tools that a row offers (`Example.tools`), as declared ones. What names none is left out."""
    found = []
    for text in texts:
        try:
            found.append(_declared(parse(text), "", checked=False))
        except (JsonError, _Faulty):
            continue
    return tuple(found)


def _tools_of(entry: str, folder: Path, problems: list[Problem]) -> list[Tool]:
    if entry in BUILTIN:
        return [BUILTIN[entry]]
    if entry.startswith("python:"):
        file, _, function = entry.removeprefix("python:").rpartition(":")
        if not (file.endswith(".py") and function.isidentifier()):
            raise _Faulty(f"{entry[:120]!r} must be python:FILE.py:FUNCTION")
        return [_python(file, function, folder)]
    if entry.endswith(".json"):
        return _declarations(entry, folder, problems)
    if re.search(r"\.py(:|$)", entry):
        raise _Faulty(f"{entry[:120]!r} must be python:FILE.py:FUNCTION")
    meant = did_you_mean(entry, BUILTIN)
    raise _Faulty(f"there is no tool {entry[:120]!r}{meant}: it is calculator, lookup, python:FILE.py:FUNCTION, or FILE.json")


def _text(file: str, folder: Path) -> tuple[str, Path]:
    """What stands in a file of the task's folder or below."""
    root = folder.resolve()
    try:
        path = (root / file).resolve()
        if not path.is_relative_to(root):
            raise _Faulty(f"{file[:120]!r} lies outside the task's folder: put it beside the task file")
        if not path.is_file():
            raise _Faulty(f"there is no file {file[:120]!r} beside the task file")
        if path.stat().st_size > MAX_BYTES:
            raise _Faulty(f"{file[:120]!r} is larger than {MAX_BYTES // 2**20} MiB, and no file of tools")
        return path.read_text(encoding="utf-8-sig"), path
    except (OSError, ValueError, RuntimeError) as error:
        raise _Faulty(f"{file[:120]!r} cannot be read: {error}") from error


def _python(file: str, function: str, folder: Path) -> Tool:
    source, path = _text(file, folder)
    try:
        signature = read_signature(source, function)
    except SignatureError as error:
        raise _Faulty(error.message, str(path), error.line) from error
    if not NAME.fullmatch(function):
        raise _Faulty(f"a tool's name is made of up to 64 of A-Z a-z 0-9 _ -, and {function!r} is not", str(path))
    return Tool(function, signature.description, signature.parameters, "python", file, function, file_hash(path))


def _declarations(file: str, folder: Path, problems: list[Problem]) -> list[Tool]:
    """One function in OpenAI's form, or a list of such: each that is faulty is a problem of its own."""
    text, path = _text(file, folder)
    try:
        body = parse(text)
    except JsonError as error:
        raise _Faulty(error.message, str(path), text.count("\n", 0, error.at) + 1 if error.at >= 0 else 0) from error
    many = body if isinstance(body, list) else [body]
    if not many:
        raise _Faulty("declares no function", str(path))
    digest = file_hash(path)
    found = []
    for at, one in enumerate(many):
        try:
            found.append(replace(_declared(one, file, checked=True), file_sha256=digest))
        except _Faulty as fault:
            place = f"function {at + 1}: " if isinstance(body, list) else ""
            problems.append(Problem(str(path), 0, KEY, f"{place}{fault.message}"))
    return found


def _declared(body: Any, file: str, *, checked: bool) -> Tool:
    """`{"type": "function", "function": {…}}`, or its inner object alone."""
    function = body.get("function", body) if isinstance(body, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Faulty("must be an object of `name`, `description` and `parameters`")
    name = function["name"]
    if not NAME.fullmatch(name) and checked:
        raise _Faulty(f"a tool's name is made of up to 64 of A-Z a-z 0-9 _ -, and {name[:80]!r} is not")
    description = function.get("description") or ""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(description, str):
        raise _Faulty(f"{name[:80]}: `description` must be text")
    if not isinstance(parameters, dict) or (checked and parameters.get("type") != "object"):
        raise _Faulty(f"{name[:80]}: `parameters` must be a JSON schema of type object")
    if checked:
        _check_schema(name, parameters)
    return Tool(name, description, parameters, "declared", file)


def _check_schema(name: str, parameters: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(parameters)
    except (SchemaError, RecursionError, re.error) as error:
        reason = getattr(error, "message", str(error))
        raise _Faulty(f"{name}: `parameters` is no JSON schema: {reason[:200]}") from error
