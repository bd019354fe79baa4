"""Turns of a conversation as people write them (OpenAI's messages, ShareGPT's conversations) -> Messages."""

from __future__ import annotations

from typing import Any

from evals.engines.engine import Message, ToolCall
from evals.errors import did_you_mean
from evals.task.reading.strict_json import JsonError, compact, parse

ROLES = ("system", "user", "assistant", "tool")
# ShareGPT's `from`, in LLaMA-Factory's spelling too; a call stands for the assistant, an observation for the tool.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class RowError(Exception):
    """What is wrong with one row: (key, message)."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


def text_of(body: dict[str, Any], key: str) -> str:
    value = body[key]
    if not isinstance(value, str):
        raise RowError(key, f"must be text, not {type(value).__name__}")
    return value


def parsed_list(value: Any, key: str) -> list[Any]:
    """A list, or the JSON text of one."""
    if isinstance(value, str):
        try:
            value = parse(value)
        except JsonError as error:
            raise RowError(key, f"the text is no JSON list: {error.message}") from error
    if not isinstance(value, list):
        raise RowError(key, "must be a list, or the JSON text of one")
    return value


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """OpenAI's messages: `role`, `content`, an assistant's `tool_calls`, a tool's `tool_call_id` and `name`."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed_list(value, key)
    if not isinstance(value, list) or not value:
        raise RowError(key, "must be a list of messages")
    return tuple(_message(one, f"{key}[{at}]") for at, one in enumerate(value))


def _message(one: Any, key: str) -> Message:
    if not isinstance(one, dict):
        raise RowError(key, f"needs `content` as text and `role` of {', '.join(ROLES)}")
    role = one.get("role")
    if role not in ROLES:
        meant = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        raise RowError(f"{key}.role", f"{str(role)[:40]!r} is none: `role` of {', '.join(ROLES)}{meant}")
    given = one.get("tool_calls")
    if given is not None and role != "assistant":
        raise RowError(f"{key}.tool_calls", f"only the assistant calls tools, and this turn is the {role}'s")
    calls = calls_of(given, f"{key}.tool_calls") if given is not None else ()
    content = one.get("content")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise RowError(f"{key}.content", "needs `content` as text" + ("" if content is not None else " (it is missing)"))
    return Message(role, content, calls, _optional(one, "tool_call_id", key), _optional(one, "name", key))


def _optional(one: dict[str, Any], name: str, key: str) -> str:
    value = one.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key}.{name}", "must be text")
    return value or ""


def calls_of(value: Any, key: str) -> tuple[ToolCall, ...]:
    """OpenAI's `tool_calls`: each with a function's name and its arguments, as an object or as the JSON text of one."""
    return tuple(_call(one, f"{key}[{at}]") for at, one in enumerate(parsed_list(value, key)))


def _call(one: Any, key: str) -> ToolCall:
    if not isinstance(one, dict):
        raise RowError(key, "a call is an object with `function`")
    if one.get("type") is not None and one["type"] != "function":
        raise RowError(f"{key}.type", "must be 'function'")
    function = one.get("function", one)
    if not isinstance(function, dict):
        raise RowError(f"{key}.function", "must be an object with `name` and `arguments`")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"{key}.name", "a call needs the name of its function")
    return ToolCall(name, _arguments(function.get("arguments"), f"{key}.arguments"), _optional(one, "id", key))


def _arguments(value: Any, key: str) -> str:
    """The JSON text of an object, as it was written; no arguments are an empty object."""
    if value is None:
        return "{}"
    if not isinstance(value, str):
        if not isinstance(value, dict):
            raise RowError(key, "must be a JSON object, or the JSON text of one")
        return compact(value)
    try:
        parsed = parse(value)
    except JsonError as error:
        raise RowError(key, f"must be the JSON text of an object: {error.message}") from error
    if not isinstance(parsed, dict):
        raise RowError(key, "must be the JSON text of an object")
    return value


def sharegpt_turns(value: Any, key: str) -> tuple[Message, ...]:
    """ShareGPT's turns: `from` and `value`. Turns that are written with `role` and `content` are read as such."""
    turns = parsed_list(value, key)
    if not turns:
        raise RowError(key, "must be a list of turns")
    if isinstance(turns[0], dict) and "role" in turns[0] and "from" not in turns[0]:
        return messages_of(turns, key)
    return tuple(_turn(one, f"{key}[{at}]") for at, one in enumerate(turns))


def _turn(one: Any, key: str) -> Message:
    if not isinstance(one, dict) or not isinstance(one.get("value"), str) or not isinstance(one.get("from"), str):
        raise RowError(key, f"needs `value` as text and `from` of {', '.join(SPEAKERS)}")
    speaker = one["from"]
    if speaker not in SPEAKERS:
        meant = did_you_mean(speaker, SPEAKERS)
        raise RowError(f"{key}.from", f"{speaker[:40]!r} is none: `from` of {', '.join(SPEAKERS)}{meant}")
    if speaker != "function_call":
        return Message(SPEAKERS[speaker], one["value"])
    try:
        called = parse(one["value"])
    except JsonError as error:
        raise RowError(f"{key}.value", f"a function call is JSON: {error.message}") from error
    calls = calls_of(called if isinstance(called, list) else [called], f"{key}.value")
    if not calls:
        raise RowError(f"{key}.value", "a function call names at least one function")
    return Message("assistant", "", calls)


def tools_of(value: Any) -> tuple[str, ...]:
    """The tools on offer, each as JSON text: from a list of objects or of JSON texts, or from the JSON text of such a list."""
    if value == "":
        return ()
    tools = []
    for at, one in enumerate(parsed_list(value, "tools")):
        text = one if isinstance(one, str) else compact(one)
        try:
            body = parse(text)
        except JsonError as error:
            raise RowError(f"tools[{at}]", f"a tool is an object, or its JSON text: {error.message}") from error
        if not isinstance(body, dict):
            raise RowError(f"tools[{at}]", "a tool is an object with its name and its parameters")
        function = body.get("function", body)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
            raise RowError(f"tools[{at}]", "a tool needs a name")
        tools.append(text)
    return tuple(tools)


def answer(turns: tuple[Message, ...], key: str) -> tuple[tuple[Message, ...], Message]:
    """What stands before the last turn, and the last turn, which is the target."""
    if not turns or turns[-1].role != "assistant":
        raise RowError(key, "the last message must be the assistant's: it is the target")
    if len(turns) < 2 or turns[-2].role not in {"user", "tool"}:
        raise RowError(key, "the message before the last must be the user's or a tool's: it is the input")
    return turns[:-1], turns[-1]
