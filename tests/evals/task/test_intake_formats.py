"""Every format and container gives the same Example, and an Example goes out and comes back unchanged."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from evals.engines.engine import Message, ToolCall
from evals.errors import AdvisorError, Problem
from evals.task.example import Example, calls_as_text
from evals.task.reading.export import FORMATS, to_row
from evals.task.reading.formats import Row, read_rows
from evals.task.spec import ColumnsSpec, HubDataset

USUAL = ColumnsSpec()
USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def read(tmp_path: Path, rows: list[Any], columns: ColumnsSpec = USUAL) -> tuple[list[Row], list[Problem], str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows("rows.jsonl", tmp_path, columns)


def one(tmp_path: Path, row: dict[str, Any], columns: ColumnsSpec = USUAL) -> tuple[Example, str]:
    rows, problems, detected = read(tmp_path, [row], columns)
    assert not problems, problems
    return rows[0].example, detected


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("row", "format", "messages", "target"),
    [
        ({"input": "q", "output": "a"}, "input/output", [("user", "q")], "a"),
        ({"input": "q", "output": [1, {"b": None}]}, "input/output", [("user", "q")], '[1,{"b":null}]'),
        ({"messages": [USER, BOT]}, "messages", [("user", "q")], "a"),
        ({"prompt": "q", "completion": "a"}, "prompt/completion", [("user", "q")], "a"),
        ({"prompt": [USER], "completion": [BOT]}, "prompt/completion", [("user", "q")], "a"),
        (
            {"prompt": [USER], "completion": [BOT, USER, {**BOT, "content": "z"}]},
            "prompt/completion",
            [("user", "q"), ("assistant", "a"), ("user", "q")],
            "z",
        ),
        ({"instruction": "do", "input": "this", "output": "a"}, "alpaca", [("user", "do\nthis")], "a"),
        ({"instruction": "do", "input": "", "output": "a"}, "alpaca", [("user", "do")], "a"),
        ({"instruction": "do", "output": "a"}, "alpaca", [("user", "do")], "a"),
        (
            {"instruction": "do", "input": "", "output": "a", "system": "s", "history": [["h", "i"]]},
            "alpaca",
            [("system", "s"), ("user", "h"), ("assistant", "i"), ("user", "do")],
            "a",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            [("system", "s"), ("user", "q")],
            "a",
        ),
        ({"conversations": [USER, BOT]}, "sharegpt", [("user", "q")], "a"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", [("user", "q")], "a"),
        (
            {"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "content": "b"}]},
            "preference",
            [("user", "q")],
            "a",
        ),
        ({"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "b"}]}, "preference", [("user", "q")], "a"),
        (
            {"prompt": "q", "chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "b"}]},
            "preference",
            [("user", "q")],
            "a",
        ),
        ({"chosen": "2 and 2 is 4", "rejected": "2 and 2 is 42"}, "preference", [("user", "2 and 2 is")], "4"),
        (
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: q\n\nAssistant: all",
                "rejected": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: q\n\nAssistant: any",
            },
            "preference",
            [("user", "hi"), ("assistant", "yes?"), ("user", "q")],
            "all",
        ),
        ({"prompt": "q", "completion": "a", "label": True}, "kto", [("user", "q")], "a"),
        ({"prompt": [USER], "completion": [BOT], "label": False}, "kto", [("user", "q")], "a"),
        # What says most about a row comes first; keys that are null are not there.
        ({"messages": [USER, BOT], "input": "x", "output": "y"}, "messages", [("user", "q")], "a"),
        ({"messages": None, "input": "q", "output": "a"}, "input/output", [("user", "q")], "a"),
        ({"prompt": "q", "completion": "a", "label": "sports"}, "prompt/completion", [("user", "q")], "a"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "messages": [USER, BOT]},
            "preference",
            [("user", "q")],
            "a",
        ),
    ],
)
def test_each_format_is_detected_and_read(
    tmp_path: Path, row: dict[str, Any], format: str, messages: list[tuple[str, str]], target: str
) -> None:
    example, detected = one(tmp_path, row)
    assert (detected, turns(example), example.target) == (format, messages, target)
    if "rejected" in row:
        assert example.rejected in {"b", "42", "any"}
    assert example.desirable is (row["label"] if format == "kto" else None)


def test_columns_that_are_named_say_what_a_row_is(tmp_path: Path) -> None:
    alpaca = {"instruction": "do", "input": "this", "output": "a"}
    assert one(tmp_path, alpaca, ColumnsSpec(input="instruction"))[1] == "input/output"
    assert turns(one(tmp_path, alpaca, ColumnsSpec(input="input"))[0]) == [("user", "this")]
    kto = {"prompt": "q", "completion": "a", "label": True}
    example, detected = one(tmp_path, kto, ColumnsSpec(input="prompt", output="label"))
    assert (detected, example.target, example.desirable) == ("input/output", "true", None)
    both = {"talk": [USER, BOT], "chosen": "a", "rejected": "b"}
    assert one(tmp_path, both, ColumnsSpec(messages="talk"))[1] == "messages"
    # Other files of the task may be of another format.
    assert one(tmp_path, {"messages": [USER, BOT]}, ColumnsSpec(input="question", output="answer"))[1] == "messages"


def test_all_columns_of_an_example_are_read(tmp_path: Path) -> None:
    columns = ColumnsSpec(id="key", group="g", time="at", gold_passages="gold", paraphrases="ways", images="pictures")
    more = {"key": 7, "g": 3, "at": 12.5, "gold": ["text"], "ways": ["r?"], "pictures": ["a.png"], "tools": [TOOL]}
    for body in ({"input": "q", "output": "a"}, {"messages": [USER, BOT]}, {"prompt": "q", "chosen": "a", "rejected": "b"}):
        example, _ = one(tmp_path, {**body, **more}, columns)
        assert (example.id, example.group, example.time) == ("7", "3", "12.5")
        assert (example.gold_passages, example.paraphrases, example.images) == (("text",), ("r?",), ("a.png",))
        assert [json.loads(tool) for tool in example.tools] == [TOOL]


def test_tools_and_calls_are_read_in_openais_form(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    as_object = {**CALL, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    answer = {"role": "tool", "content": "3 degrees", "tool_call_id": "c1", "name": "weather"}
    example, _ = one(tmp_path, {"messages": [USER, said, answer, BOT], "tools": json.dumps([TOOL])})
    assert example.messages[1] == Message("assistant", "", (ToolCall("weather", '{"city": "Oslo"}', "c1"),))
    assert example.messages[2] == Message("tool", "3 degrees", (), "c1", "weather")
    assert (example.target, example.calls, example.text) == ("a", (), "q")
    assert [json.loads(tool) for tool in example.tools] == [TOOL]
    # A target of calls alone is their JSON; one with text keeps both.
    example, _ = one(tmp_path, {"messages": [USER, {**said, "tool_calls": [CALL, as_object]}]})
    assert json.loads(example.target) == [{"name": "weather", "arguments": {"city": "Oslo"}}] * 2
    assert example.target == calls_as_text(example.calls)
    assert [call.arguments for call in example.calls] == ['{"city": "Oslo"}', '{"city":"Oslo"}']
    example, _ = one(tmp_path, {"messages": [USER, {**said, "content": "Let me look."}]})
    assert (example.target, len(example.calls)) == ("Let me look.", 1)


def test_sharegpt_calls_functions(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "cold"},
    ]
    example, _ = one(tmp_path, {"conversations": talk, "tools": json.dumps([TOOL["function"]])})
    assert [message.role for message in example.messages] == ["user", "assistant", "tool"]
    assert example.messages[1].tool_calls == (ToolCall("weather", '{"city":"Oslo"}'),)
    example, _ = one(tmp_path, {"conversations": talk[:2]})
    assert example.target == '[{"name": "weather", "arguments": {"city":"Oslo"}}]'


def calling(**change: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{**CALL, **change}]}]}


BAD_ROWS = [
    ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "messages[1].role", "did you mean 'assistant'"),
    ({"messages": [USER, {"role": ["assistant"], "content": "a"}]}, "messages[1].role", "`role` of"),
    ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "it is missing"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages", "the output is empty"),
    ({"messages": [{"role": "system", "content": "s"}, {"role": "tool", "content": "t"}, BOT]}, "messages", "no turn is"),
    ({"messages": [{**USER, "tool_calls": [CALL]}, BOT]}, "messages[0].tool_calls", "only the assistant"),
    ({"messages": [USER, {**BOT, "name": 7}]}, "messages[1].name", "must be text"),
    (calling(function={"arguments": "{}"}), "messages[1].tool_calls[0].name", "needs the name"),
    (calling(function={"name": "f", "arguments": "[1]"}), "messages[1].tool_calls[0].arguments", "text of an object"),
    (calling(function={"name": "f", "arguments": "{broken"}), "messages[1].tool_calls[0].arguments", "broken JSON"),
    (calling(function={"name": "f", "arguments": [1]}), "messages[1].tool_calls[0].arguments", "must be a JSON object"),
    (calling(function="f"), "messages[1].tool_calls[0].function", "must be an object"),
    (calling(type="code"), "messages[1].tool_calls[0].type", "'function'"),
    ({"messages": [USER, BOT], "tools": "[{"}, "tools", "no JSON list"),
    ({"messages": [USER, BOT], "tools": [{"parameters": {}}]}, "tools[0]", "needs a name"),
    ({"messages": [USER, BOT], "tools": {"name": "f"}}, "tools", "must be a list"),
    ({"conversations": [{"from": "humn", "value": "q"}]}, "conversations[0].from", "did you mean 'human'"),
    ({"conversations": [{"from": "human", "value": "q"}]}, "conversations", "must be the assistant's"),
    ({"conversations": [{"from": "human", "value": 5}]}, "conversations[0]", "`value` as text"),
    ({"conversations": []}, "conversations", "a list of turns"),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "weather()"}]},
        "conversations[1].value",
        "a function call is JSON",
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[]"}]},
        "conversations[1].value",
        "at least one",
    ),
    ({"prompt": "q"}, "completion", "this key is missing"),
    ({"prompt": "q", "chosen": "a"}, "rejected", "this key is missing"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected", "the rejected answer is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "are the same"),
    ({"prompt": "q", "chosen": "a", "rejected": [BOT]}, "rejected", "both"),
    ({"chosen": "yes", "rejected": "no"}, "prompt", "share no beginning"),
    ({"chosen": [BOT], "rejected": [{**BOT, "content": "b"}]}, "prompt", "share no beginning"),
    ({"prompt": [USER], "completion": []}, "completion", "a list of messages"),
    ({"prompt": [USER], "completion": [USER]}, "completion", "must be the assistant's"),
    ({"instruction": ["do"], "output": "a"}, "instruction", "must be text"),
    ({"instruction": "", "input": "", "output": "a"}, "instruction", "the input is empty"),
    ({"instruction": "do", "output": "a", "history": [["q"]]}, "history[0]", "a pair"),
    ({"instruction": "do", "output": "a", "system": {"a": 1}}, "system", "must be text"),
    ({"instruction": "do"}, "output", "this key is missing"),
    ({"input": "q", "output": "a", "id": {"n": 1}}, "id", "text or a number"),
    ({"input": "q", "output": "a", "id": "a\x1b[31m"}, "id", "control characters"),
    ({"input": "q", "output": "a", "group": "a\nb"}, "group", "control characters"),
    ({"input": "q", "output": "a", "time": True}, "time", "text or a number"),
    ({"input": "q", "output": "a", "paraphrases": "r"}, "paraphrases", "a list of texts"),
    ({"input": "q", "output": "a", "images": [{"path": "x"}]}, "images", "a list of texts"),
    ({"x": 1}, "", "set `columns:`"),
    ({}, "", "set `columns:`"),
]


@pytest.mark.parametrize(("row", "key", "says"), BAD_ROWS)
def test_a_row_that_no_format_allows_is_told_by_its_key(tmp_path: Path, row: dict[str, Any], key: str, says: str) -> None:
    rows, (problem,), _ = read(tmp_path, [row])
    assert not rows
    assert (problem.key, problem.line) == (key, 1)
    assert says in problem.message


def test_answers_of_two_json_types_are_one_problem(tmp_path: Path) -> None:
    outputs: list[Any] = ["a", "b", 1, {"x": 1}, "c", 2]
    rows, (problem,), _ = read(tmp_path, [{"input": f"q{at}", "output": one} for at, one in enumerate(outputs)])
    assert len(rows) == 6
    assert (problem.line, problem.key) == (3, "output")
    assert "a number here and text in line 1" in problem.message
    for alike in ([1, 2.5], [True, False], [[1], ["a"]], [{"a": 1}, {}]):
        assert not read(tmp_path, [{"input": f"q{at}", "output": one} for at, one in enumerate(alike)])[1]
    assert len(read(tmp_path, [{"input": "q", "output": 1}, {"input": "r", "output": True}])[1]) == 1


# One Example in every container and format.

name = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).filter(
    lambda text: bool(text.strip()) and not text.lstrip().startswith("[")
)
maybe = st.one_of(st.none(), name)
texts = st.lists(words, max_size=2).map(tuple)
arguments = st.dictionaries(name, st.none() | st.integers(-9, 9) | words, max_size=2).map(json.dumps)
calls = st.lists(st.builds(ToolCall, name, arguments, st.just("") | name), min_size=1, max_size=2).map(tuple)
plain = st.builds(Message, st.sampled_from(["user", "assistant", "system"]), words)
tool_turn = st.builds(Message, st.just("tool"), words, st.just(()), st.just("") | name, st.just("") | name)
calling_turn = st.builds(Message, st.just("assistant"), words | st.just(""), calls)
question = st.builds(Message, st.just("user"), words)
tool_texts = st.lists(st.builds(lambda one: json.dumps({"name": one, "parameters": {"a": None}}), name), max_size=2).map(tuple)


@st.composite
def examples(draw: Callable[..., Any]) -> Example:
    before = draw(st.lists(plain | tool_turn | calling_turn, max_size=3))
    messages = (*before, draw(question), *draw(st.just([]) | st.lists(tool_turn, max_size=1)))
    simple = draw(st.booleans())
    if simple:
        pairs = [Message(role, draw(words)) for role in ["user", "assistant"] * draw(st.integers(0, 2))]
        messages = (*draw(st.lists(st.builds(Message, st.just("system"), words), max_size=1)), *pairs, draw(question))
    called = () if simple else draw(st.just(()) | calls)
    target = calls_as_text(called) if called and draw(st.booleans()) else draw(words)
    rejected = draw(st.none() | words.filter(lambda text: text != target))
    return Example(
        draw(name),
        messages,
        target,
        draw(texts),
        draw(maybe),
        draw(maybe),
        draw(texts),
        draw(texts),
        rejected,
        draw(st.booleans()) if rejected is None and draw(st.booleans()) else None,
        draw(tool_texts),
        called,
    )


def cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write(path: Path, container: str, row: dict[str, Any]) -> None:
    if container == "JSON Lines":
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    elif container == "JSON":
        path.write_text(json.dumps({"version": 1, "rows": [row]}, indent=1, ensure_ascii=False), encoding="utf-8", newline="")
    elif container == "Parquet":
        # Structs without keys, and lists without elements, have no type that Parquet can write.
        parquet.write_table(pa.table({key: [value] for key, value in row.items()}), path)
    else:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if container == "TSV" else ",")
        writer.writerows([row.keys(), map(cell, row.values())])
        path.write_bytes(text.getvalue().encode())


CONTAINERS = {"JSON Lines": "jsonl", "JSON": "json", "CSV": "csv", "TSV": "tsv", "Parquet": "parquet"}


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(example=examples(), format=st.sampled_from(FORMATS))
def test_an_example_goes_out_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, container: str, example: Example, format: str
) -> None:
    if format == "preference" and example.rejected is None:
        example = replace(example, rejected=example.target + "!", desirable=None)
    elif format == "kto" and example.desirable is None:
        example = replace(example, rejected=None, desirable=True)
    elif format not in {"preference", "kto"}:
        example = replace(example, rejected=None, desirable=None)
    try:
        row = to_row(example, format)
    except AdvisorError:
        row = {}
    if not row:
        assert format in {"input/output", "alpaca", "sharegpt"}
        return
    path = tmp_path_factory.getbasetemp() / f"trip.{CONTAINERS[container]}"
    write(path, container, row)
    rows, problems, detected = read_rows(path.name, path.parent, USUAL)
    assert not problems
    assert rows[0].example == example
    assert detected == (format if container == "JSON Lines" else f"{format} in {container}")
    # What was read, written once more as JSON Lines, is the same row again.
    again = path.with_name("again.jsonl")
    again.write_text(json.dumps(rows[0].body) + "\n")
    assert read_rows(again.name, again.parent, USUAL)[0][0].example == example


@pytest.mark.parametrize(
    ("change", "format", "what"),
    [
        ({"calls": (ToolCall("f", "{}"),)}, "alpaca", "tool calls"),
        ({"calls": (ToolCall("f", "{}"),)}, "input/output", "tool calls"),
        ({"calls": (ToolCall("f", "{}", "c1"),), "target": '[{"name": "f", "arguments": {}}]'}, "sharegpt", "the ids"),
        ({"rejected": "b"}, "kto", "a rejected answer"),
        ({"desirable": True}, "messages", "whether an answer was liked"),
        ({}, "preference", "needs a rejected answer"),
        ({}, "kto", "whether the answer was liked"),
        ({"messages": (Message("user", "a"), Message("user", "b"))}, "alpaca", "no pairs"),
        ({"messages": (Message("user", "a"), Message("user", "b"))}, "input/output", "more than one turn"),
        ({}, "alpacca", "did you mean 'alpaca'"),
    ],
)
def test_what_a_format_cannot_hold_is_an_error(change: dict[str, Any], format: str, what: str) -> None:
    fields = {"id": "r1", "messages": (Message("user", "q"),), "target": "a", **change}
    with pytest.raises(AdvisorError, match=what):
        to_row(Example(**fields), format)


ROWS = [{"id": f"r{at}", "input": f"q, {at}", "output": f"a;{at}"} for at in range(3)]


@pytest.mark.parametrize(
    ("file", "text", "detected", "lines"),
    [
        ("a.json", json.dumps(ROWS), "JSON", [1, 2, 3]),
        ("a.json", json.dumps(ROWS, indent=2), "JSON", [2, 7, 12]),
        ("a.json", json.dumps({"meta": {"n": [1]}, "rows": ROWS}, indent=1), "JSON", [8, 13, 18]),
        ("a.json", json.dumps({"rows": ROWS}), "JSON", [1, 2, 3]),
        ("a.json", "\n".join(map(json.dumps, ROWS)), "", [1, 2, 3]),
        ("a.txt", "\n\n".join(map(json.dumps, ROWS)), "", [1, 3, 5]),
        ("a", "[" + ",\n".join(map(json.dumps, ROWS)) + "]", "JSON", [1, 2, 3]),
        ("a.jsonl", "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]", "JSON", [2, 3, 4]),
        ("a.csv", 'id,input,output\nr0,"q, 0",a;0\nr1,"q, 1",a;1\n\nr2,"q, 2",a;2', "CSV", [2, 3, 5]),
        ("a.csv", '\ufeffid;input;output\r\nr0;q, 0;"a;0"\r\nr1;q, 1;"a;1"\r\nr2;q, 2;"a;2"\r\n', "CSV", [2, 3, 4]),
        ("a.tsv", "id\tinput\toutput\nr0\tq, 0\ta;0\nr1\tq, 1\ta;1\nr2\tq, 2\ta;2\n", "TSV", [2, 3, 4]),
        ("a.csv", "id|input|output\rr0|q, 0|a;0\rr1|q, 1|a;1\rr2|q, 2|a;2\r", "CSV", [2, 3, 4]),
    ],
)
def test_the_container_is_found_by_content(tmp_path: Path, file: str, text: str, detected: str, lines: list[int]) -> None:
    (tmp_path / file).write_bytes(text.encode())
    rows, problems, said = read_rows(file, tmp_path, USUAL)
    assert not problems
    assert [{"id": row.example.id, "input": row.example.text, "output": row.example.target} for row in rows] == ROWS
    assert [row.line for row in rows] == lines
    assert said == "input/output" + (f" in {detected}" if detected else "")


def test_a_cell_over_several_lines_keeps_them_and_the_next_row_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'input,output\n"one\r\ntwo\rthree\n",a\nq,b\nq,b,c\nr,d\n')
    rows, (problem,), _ = read_rows("a.csv", tmp_path, USUAL)
    assert [(row.example.text, row.line) for row in rows] == [("one\r\ntwo\rthree\n", 2), ("q", 6), ("r", 8)]
    assert (problem.line, problem.message) == (7, "3 cells in this row, and 2 columns in the header")


def test_cells_hold_lists_and_truth_values(tmp_path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "completion", "label", "gold_passages", "images"])
    writer.writerow([json.dumps([USER]), "a", "False", "one text", '["a.png", "b.png"]'])
    writer.writerow(["[1, 2] is what?", "a", "1", "", ""])
    (tmp_path / "a.csv").write_text(text.getvalue())
    rows, problems, detected = read_rows("a.csv", tmp_path, USUAL)
    assert (detected, problems) == ("kto in CSV", [])
    first, second = (row.example for row in rows)
    assert (turns(first), first.desirable) == ([("user", "q")], False)
    assert (first.gold_passages, first.images) == (("one text",), ("a.png", "b.png"))
    assert (second.text, second.desirable, second.gold_passages) == ("[1, 2] is what?", True, ())


def test_parquet_of_any_type_of_column(tmp_path: Path) -> None:
    import datetime

    table = pa.table(
        {
            "input": pa.array(["q", "r"], pa.large_string()),
            "output": pa.array(["a", "b"]).dictionary_encode(),
            "time": pa.array([datetime.date(2026, 5, 1), None]),
            "id": pa.array([1, 2], pa.int8()),
            "picture": pa.array([b"\xff", b"\0"]),
            "score": pa.array([float("nan"), 1.5]),
            "group": pa.array([None, "g"]),
            "gold_passages": pa.array([None, ["x", "x"]]),
        }
    )
    parquet.write_table(table, tmp_path / "a.bin", row_group_size=1)
    rows, problems, detected = read_rows("a.bin", tmp_path, USUAL)
    assert (problems, detected) == ([], "input/output in Parquet")
    assert [(row.example.id, row.example.text, row.example.target, row.line) for row in rows] == [
        ("1", "q", "a", 1),
        ("2", "r", "b", 2),
    ]
    assert [row.example.time for row in rows] == ["2026-05-01", None]
    assert (rows[1].example.group, rows[1].example.gold_passages) == ("g", ("x", "x"))
    assert rows[0].body["score"] is None
    assert "picture" not in rows[0].body


def test_a_struct_of_parquet_has_no_keys_that_only_other_rows_have(tmp_path: Path) -> None:
    said = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {key: 1}}}]} for key in "ab"]
    answers = [{"role": "tool", "content": "", "tool_call_id": "c"}, BOT]
    parquet.write_table(pa.table({"messages": [[USER, one, *answers] for one in said]}), tmp_path / "a.parquet")
    rows, problems, _ = read_rows("a.parquet", tmp_path, USUAL)
    assert not problems
    assert [row.example.messages[1].tool_calls for row in rows] == [(ToolCall("f", f'{{"{key}":1}}'),) for key in "ab"]


def dataset_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({**row, "input": f"{split} {row['id']}"}) + "\n" for row in ROWS)
        )
    return folder


def test_a_local_dataset_is_read_by_split(tmp_path: Path) -> None:
    dataset_folder(tmp_path)
    for split, called in (("train", "train"), ("dev", "validation"), ("test", "test")):
        rows, problems, detected = read_rows("data", tmp_path, USUAL, split=split)
        assert (problems, detected) == ([], "input/output in a local dataset")
        assert [row.example.text for row in rows] == [f"{called} r{at}" for at in range(3)]
        assert [row.line for row in rows] == [1, 2, 3]
    rows, problems, _ = read_rows(HubDataset(dataset_name="data", split="test[:2]"), tmp_path, USUAL)
    assert ([row.example.text for row in rows], problems) == (["test r0", "test r1"], [])
    _, (problem,), _ = read_rows(HubDataset(dataset_name="data", split="tset"), tmp_path, USUAL)
    assert "no split 'tset' (did you mean 'test'?)" in problem.message
    _, (problem,), _ = read_rows(HubDataset(dataset_name="data", dataset_config="en"), tmp_path, USUAL)
    assert "no configuration 'en'" in problem.message


def test_a_dataset_out_of_reach_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("someone/nothing-here", HubDataset(dataset_name="someone/nothing-here")):
        rows, (problem,), detected = read_rows(source, tmp_path, USUAL)
        assert (rows, detected, problem.file) == ([], "", "someone/nothing-here")
        assert "cannot be reached" in problem.message
        assert "connect to the network" in problem.message


@pytest.mark.parametrize("name", ["data/train.jsonl", "gone.jsonl", "../x", "/a/b", "a/b/c", "here/gone"])
def test_a_name_that_looks_like_a_file_is_never_asked_of_the_hub(tmp_path: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    _, (problem,), _ = read_rows(name, tmp_path, USUAL)
    assert problem.message == "there is no such file"


HUB = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()
    def do_GET(self):
        gated = "gated" in self.path
        code = "GatedRepo" if gated else "RepoNotFound"
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "Access to dataset is restricted" if gated else "Repository not found")
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from pathlib import Path
from evals.task.reading.formats import read_rows
from evals.task.spec import ColumnsSpec
for name in ("someone/nothing", "someone/gated"):
    _, problems, _ = read_rows(name, Path(sys.argv[1]), ColumnsSpec())
    print(json.dumps([one.message for one in problems]))
"""


def test_the_hubs_answers_are_told_apart(tmp_path: Path) -> None:
    """A Hub of our own on loopback, in a process of its own: the library reads its address once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (nothing,), (gated,) = map(json.loads, done.stdout.splitlines())
    assert "no such dataset" in nothing
    assert "gated" in gated
    assert "hf auth login" in gated


def test_the_labels_of_a_dataset_are_told_by_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "intent": ClassLabel(names=["lost_card", "top_up"])})
    rows = {"text": ["Where is my card?", "My top up failed.", "Hm?"], "intent": [0, 1, -1]}
    (tmp_path / "org" / "set").mkdir(parents=True)
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "org" / "set" / "train.parquet")
    columns = ColumnsSpec(input="text", output="intent")
    found, problems, detected = read_rows(HubDataset(dataset_name="org/set"), tmp_path, columns)
    assert [one.example.target for one in found] == ["lost_card", "top_up"]
    assert [(one.line, one.key) for one in problems] == [(3, "intent")]
    assert "dataset" in detected
