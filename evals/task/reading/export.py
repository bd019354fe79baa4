"""An Example -> a row of each format, the way back of `evals/task/reading/formats.py`.

`to_row` and `to_example` are inverse: what a format cannot hold is an error that names it, and never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from evals.engines.engine import Message, ToolCall
from evals.errors import AdvisorError, did_you_mean
from evals.task.example import Example, calls_as_text

# By the names under which they are detected.
FORMATS = ("input/output", "messages", "prompt/completion", "alpaca", "sharegpt", "preference", "kto")
# ShareGPT's `from` of plain turns.
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def to_row(example: Example, format: str) -> dict[str, Any]:
    """A row as JSON values. Raises AdvisorError naming what the format cannot hold."""
    if format not in FORMATS:
        raise AdvisorError(f"{format!r} is no format{did_you_mean(format, FORMATS)}", do=f"choose one of {', '.join(FORMATS)}.")
    if example.rejected is not None and format != "preference":
        raise _cannot(example, format, "a rejected answer", "preference")
    if example.desirable is not None and format != "kto":
        raise _cannot(example, format, "whether an answer was liked", "kto")
    return {**WRITERS[format](example), **_beside(example)}


def _beside(example: Example) -> dict[str, Any]:
    """The columns that every format has."""
    columns = {
        "id": example.id,
        "group": example.group,
        "time": example.time,
        "gold_passages": list(example.gold_passages),
        "paraphrases": list(example.paraphrases),
        "images": list(example.images),
        "tools": list(example.tools),
    }
    return {key: value for key, value in columns.items() if value not in (None, [])}


def _cannot(example: Example, format: str, what: str, instead: str) -> AdvisorError:
    return AdvisorError(f"{format} cannot hold {what}", where=f"row {example.id!r}", do=f"write these rows as {instead}.")


def _input_output(example: Example) -> dict[str, Any]:
    _only_text(example, "input/output")
    if len(example.messages) != 1 or example.messages[0] != Message("user", example.text):
        raise _cannot(example, "input/output", "more than one turn", "messages")
    return {"input": example.text, "output": example.target}


def _messages(example: Example) -> dict[str, Any]:
    return {"messages": [*map(_turn, example.messages), _turn(_last(example))]}


def _prompt_completion(example: Example) -> dict[str, Any]:
    return {"prompt": list(map(_turn, example.messages)), "completion": [_turn(_last(example))]}


def _kto(example: Example) -> dict[str, Any]:
    if example.desirable is None:
        raise AdvisorError("kto needs to know whether the answer was liked", where=f"row {example.id!r}")
    return {**_prompt_completion(example), "label": example.desirable}


def _preference(example: Example) -> dict[str, Any]:
    if example.rejected is None:
        raise AdvisorError("preference needs a rejected answer", where=f"row {example.id!r}")
    rejected = Message("assistant", example.rejected)
    return {
        "prompt": list(map(_turn, example.messages)),
        "chosen": [_turn(_last(example))],
        "rejected": [_turn(rejected)],
    }


def _alpaca(example: Example) -> dict[str, Any]:
    """The last turn is the instruction, a first one of the system its `system`, pairs of turns between them its `history`."""
    _only_text(example, "alpaca")
    turns = list(example.messages)
    row: dict[str, Any] = {"instruction": turns[-1].content, "input": "", "output": example.target}
    if len(turns) > 1 and turns[0].role == "system" and turns[0].content:
        row["system"] = turns.pop(0).content
    before = turns[:-1]
    if [one.role for one in turns] != ["user", "assistant"] * (len(before) // 2) + ["user"]:
        raise _cannot(example, "alpaca", "turns that are no pairs of question and answer", "messages")
    if before:
        row["history"] = [[asked.content, said.content] for asked, said in zip(before[::2], before[1::2], strict=True)]
    return row


def _sharegpt(example: Example) -> dict[str, Any]:
    turns = []
    for message in (*example.messages, _last(example)):
        if message.tool_call_id or message.name or any(call.id for call in message.tool_calls):
            raise _cannot(example, "sharegpt", "the ids of tool calls", "messages")
        if message.tool_calls and message.content:
            raise _cannot(example, "sharegpt", "text beside tool calls in one turn", "messages")
        if message.tool_calls:
            turns.append({"from": "function_call", "value": _calls_text(message.tool_calls)})
        else:
            turns.append({"from": SPEAKERS[message.role], "value": message.content})
    return {"conversations": turns}


WRITERS: dict[str, Callable[[Example], dict[str, Any]]] = {
    "input/output": _input_output,
    "messages": _messages,
    "prompt/completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "preference": _preference,
    "kto": _kto,
}


def _only_text(example: Example, format: str) -> None:
    if example.calls or any(message.tool_calls for message in example.messages):
        raise _cannot(example, format, "tool calls", "messages")
    for message in example.messages:
        if message.role == "tool":
            raise _cannot(example, format, "a tool's turn", "messages")
        if message.name or message.tool_call_id:
            raise _cannot(example, format, "the name of a speaker", "messages")


def _last(example: Example) -> Message:
    """The target as the assistant's turn."""
    alone = bool(example.calls) and example.target == calls_as_text(example.calls)
    return Message("assistant", "" if alone else example.target, example.calls)


def _turn(message: Message) -> dict[str, Any]:
    """As OpenAI writes it, with arguments as the text that they are: an object would lose how it was written."""
    return message.turn(arguments_as_text=True)


def _calls_text(calls: tuple[ToolCall, ...]) -> str:
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls], ensure_ascii=False)
