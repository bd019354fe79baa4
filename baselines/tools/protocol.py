"""Tools for models whose chat template has no place for them: told in the instruction, called in plain JSON.

A call is an assistant's turn of `{"tool": NAME, "arguments": {…}}`, its result the next user's turn. The form is short on
purpose: models of 100 M parameters keep to it after a few demonstrations. (ReAct, Yao et al. 2023, without the thoughts.)
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.engines.engine import Message, ToolCall
from evals.errors import did_you_mean
from evals.task.reading.strict_json import JsonError, compact, parse, parse_at
from evals.task.tools import Tool

RULE = (
    'To use a tool write only {"tool": NAME, "arguments": {…}}. Its result comes next. With the result, write only the answer.'
)
LAST = "No more tools: write only the answer."
# Decoding ends where a model begins to make up a result.
STOP = ("\nResult of ", "\nError: ")
ARGUMENTS = ("arguments", "parameters", "args")
LIKE_A_CALL = re.compile(r'"(?:tool|name)"\s*:\s*"([^"]{1,64})"')
AS_PYTHON = re.compile(r"\s*([A-Za-z_][\w-]{0,63})\((.*)\)\s*;?\s*")
# Braces at which a JSON object is tried.
MAX_STARTS = 50


@dataclass(frozen=True)
class NoCall:
    """A text that would be a call and cannot be read. `message` says why, for the model."""

    message: str


def description(tools: Sequence[Tool]) -> str:
    """The tools in a line each, and the rule for using them."""
    return "\n".join(["Tools:", *map(_line, tools), RULE])


def _line(tool: Tool) -> str:
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    names = ", ".join(_argument(name, schema, name in required) for name, schema in properties.items())
    return f"{tool.name}({names}): {tool.description}" if tool.description else f"{tool.name}({names})"


def _argument(name: str, schema: Any, required: bool) -> str:
    if not isinstance(schema, dict):
        return name
    kind = schema.get("type")
    said = "|".join(map(str, schema["enum"])) if isinstance(schema.get("enum"), list) else kind if isinstance(kind, str) else ""
    whole = f"{name}: {said}" if said else name
    return whole if required else f"{whole}, optional"


def call_text(call: ToolCall) -> str:
    """A call as the assistant writes it."""
    return f'{{"tool": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {_spaced(call.arguments)}}}'


def _spaced(arguments: str) -> str:
    """As Python writes JSON, with spaces: what small models have seen most."""
    try:
        return json.dumps(parse(arguments), ensure_ascii=False)
    except JsonError:
        return "{}"


def result_text(name: str, text: str) -> str:
    return f"Result of {name}: {text}"


def in_json(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation with calls and results as one of plain turns, which every chat template takes."""
    turns: list[Message] = []
    names: dict[str, str] = {}
    last = ""
    for message in messages:
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls if call.id}
            last = message.tool_calls[-1].name
            calls = "\n".join(map(call_text, message.tool_calls))
            turns.append(Message("assistant", f"{message.content}\n{calls}" if message.content.strip() else calls))
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id) or last
            turns.append(Message("user", result_text(name, message.content)))
        elif turns and turns[-1].role == message.role == "user":
            # Templates want user and assistant in turns.
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n{message.content}")
            continue
        else:
            turns.append(message)
        if len(turns) > 1 and turns[-1].role == turns[-2].role == "user":
            later = turns.pop()
            turns[-1] = Message("user", f"{turns[-1].content}\n{later.content}")
    return tuple(turns)


def calls_in_text(text: str, tools: Mapping[str, Tool]) -> tuple[ToolCall, ...] | NoCall:
    """The first call in a model's text, with those that follow it at once; none where the text is an answer.

    Read tolerantly: the object may stand in a fence or behind words, name its tool as `tool` or `name` and its arguments
    as `arguments`, `parameters` or beside the name; a lone `name(argument=value)` is a call too. An object that names no
    tool on offer and has no arguments is an answer.
    """
    calls: list[ToolCall] = []
    end = 0
    for body, start, after in _objects(text):
        found = _call(body, tools)
        if found and (not calls or not text[end:start].strip(" \n\t,;`")):
            calls.append(found)
            end = after
        elif calls:
            break
    if calls:
        return tuple(calls)
    written = _as_python(text, tools)
    if written:
        return (written,)
    seen = LIKE_A_CALL.search(text)
    if seen and seen[1] in tools and "{" in text[: seen.start()]:
        return NoCall('the call is no JSON: write only {"tool": NAME, "arguments": {…}}')
    return ()


def _objects(text: str) -> Iterator[tuple[Any, int, int]]:
    """(object, start, end) of the JSON objects in a text, outermost ones, in their order."""
    at, tries = text.find("{"), 0
    while at >= 0 and tries < MAX_STARTS:
        tries += 1
        try:
            body, end = parse_at(text, at)
            yield body, at, end
        except JsonError:
            end = at + 1
        at = text.find("{", end)


def _call(body: Any, tools: Mapping[str, Tool]) -> ToolCall | None:
    inner = body.get("function", body)
    body = inner if isinstance(inner, dict) else body
    if len(body) == 1:
        ((name, value),) = body.items()
        if name in tools and isinstance(value, dict):
            return ToolCall(name, compact(value))
    key = "tool" if "tool" in body else "name"
    name = body.get(key)
    # A name that is none of the tools' makes a call where it is meant as one; else the object is an answer.
    if not isinstance(name, str) or not (name in tools or key == "tool" or did_you_mean(name, tools)):
        return None
    given = next((body[one] for one in ARGUMENTS if one in body), None)
    if isinstance(given, str):
        try:
            given = parse(given)
        except JsonError:
            return ToolCall(name, given) if name in tools else None
    if given is None and name in tools:
        given = {one: value for one, value in body.items() if one not in {key, *ARGUMENTS}}
    if isinstance(given, dict) or (given is not None and name in tools):
        return ToolCall(name.strip(), compact(given))
    return None


def _as_python(text: str, tools: Mapping[str, Tool]) -> ToolCall | None:
    """`name(argument=value)`, or `name(whatever)` of a tool that takes one text."""
    found = AS_PYTHON.fullmatch(text.strip().strip("`"))
    tool = tools.get(found[1]) if found else None
    if found is None or tool is None:
        return None
    names = list(tool.parameters.get("properties", {}))
    try:
        (call,) = [node for node in [ast.parse(f"f({found[2]})", mode="eval").body] if isinstance(node, ast.Call)]
        values = dict(zip(names, [ast.literal_eval(one) for one in call.args], strict=False))
        values |= {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
        return ToolCall(tool.name, compact(values))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ToolCall(tool.name, compact({names[0]: found[2]})) if len(names) == 1 else None
