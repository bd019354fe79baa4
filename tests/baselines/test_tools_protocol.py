"""The plain JSON protocol: what counts as a call, read from whatever a model writes, and conversations told in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.tools.protocol import NoCall, call_text, calls_in_text, description, in_json
from evals.engines.engine import Message, ToolCall
from evals.task.tools import BUILTIN, Tool

PRICE = Tool(
    "price_of",
    "The price.",
    {
        "type": "object",
        "properties": {"item": {"type": "string"}, "unit": {"enum": ["EUR", "USD"]}, "count": {"type": "integer"}},
        "required": ["item"],
    },
    "python",
)
TOOLS = {"price_of": PRICE, "calculator": BUILTIN["calculator"]}


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('{"tool": "price_of", "arguments": {"item": "QX-482"}}', "price_of", {"item": "QX-482"}),
        ('Sure!\n```json\n{"tool": "price_of",\n "arguments": {"item": "a"}}\n```\nDone', "price_of", {"item": "a"}),
        ('{"name": "calculator", "parameters": {"expression": "1"}}', "calculator", {"expression": "1"}),
        ('{"name": "calculator", "arguments": "{\\"expression\\": \\"1\\"}"}', "calculator", {"expression": "1"}),
        ('{"tool": "calculator", "expression": "7 * 36"}', "calculator", {"expression": "7 * 36"}),
        ('{"calculator": {"expression": "7"}}', "calculator", {"expression": "7"}),
        ('{"type": "function", "function": {"name": "calculator", "arguments": {"expression": "7"}}}', "calculator", {"expression": "7"}),
        ('[{"name": "price_of", "arguments": {"item": "a"}}]', "price_of", {"item": "a"}),
        ('{"tool": "prize_of", "arguments": {"item": "a"}}', "prize_of", {"item": "a"}),
        ('{"name": "prise_of", "arguments": {"item": "a"}}', "prise_of", {"item": "a"}),
        ('I think {maybe} {"tool": "calculator", "arguments": {}}', "calculator", {}),
        ('price_of(item="QX-482", count=3)', "price_of", {"item": "QX-482", "count": 3}),
        ("`price_of('QX-482', 'EUR')`", "price_of", {"item": "QX-482", "unit": "EUR"}),
        ("calculator(7 * 36)", "calculator", {"expression": "7 * 36"}),
        ("calculator('7 * 36')", "calculator", {"expression": "7 * 36"}),
    ],
)  # fmt: skip
def test_a_call_is_read_in_the_forms_that_models_write(text: str, name: str, arguments: dict[str, Any]) -> None:
    found = calls_in_text(text, TOOLS)
    assert isinstance(found, tuple)
    assert [(one.name, json.loads(one.arguments)) for one in found] == [(name, arguments)]


@pytest.mark.parametrize(
    "text",
    [
        "252",
        "",
        "The price_of QX-482 is 36.",
        '{"name": "Ada", "age": 36}',
        '{"name": "Ada", "parameters": {"a": 1}}',
        '{"colour": "red"}',
        '{"tool": 3, "arguments": {}}',
        '{"tool": "hammer", "weight": 3}',
        '{"name": "Ada", "broken": ',
        "round(3.5)",
        "f({",
        "calculator",
    ],
)
def test_an_answer_is_no_call(text: str) -> None:
    assert calls_in_text(text, TOOLS) == ()


def test_arguments_that_are_no_object_are_kept_for_the_model_to_be_told() -> None:
    (call,) = calls_in_text('{"tool": "price_of", "arguments": "QX-482"}', TOOLS)  # type: ignore[misc]
    assert call == ToolCall("price_of", "QX-482")
    (call,) = calls_in_text('{"tool": "price_of", "arguments": ["QX-482"]}', TOOLS)  # type: ignore[misc]
    assert call == ToolCall("price_of", '["QX-482"]')


@pytest.mark.parametrize(
    "text",
    [
        '{"tool": "price_of", "arguments": {"item": "a}',
        '{"tool": "price_of", "arguments": {"item": a}}',
        '{"name": "calculator",',
    ],
)
def test_a_call_that_cannot_be_read_is_told(text: str) -> None:
    found = calls_in_text(text, TOOLS)
    assert isinstance(found, NoCall)
    assert "write only" in found.message


def test_calls_that_follow_at_once_are_read_together_and_later_ones_are_not() -> None:
    one, two = '{"tool": "price_of", "arguments": {"item": "a"}}', '{"tool": "price_of", "arguments": {"item": "b"}}'
    assert [json.loads(call.arguments)["item"] for call in calls_in_text(f"{one}\n{two}", TOOLS)] == ["a", "b"]  # type: ignore[union-attr]
    assert [json.loads(call.arguments)["item"] for call in calls_in_text(f"{one}\nResult of price_of: 3\n{two}", TOOLS)] == [
        "a"
    ]  # type: ignore[union-attr]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON, max_size=4),
    st.sampled_from(sorted(TOOLS)),
)
def test_what_is_written_is_read_back(arguments: dict[str, Any], name: str) -> None:
    text = call_text(ToolCall(name, json.dumps(arguments)))
    found = calls_in_text(f"So:\n{text}\n", TOOLS)
    assert isinstance(found, tuple)
    assert [(one.name, json.loads(one.arguments)) for one in found] == [(name, arguments)]


@given(st.text(max_size=300) | st.text(alphabet='{}[]":,\\ tolname_price()argus\n`', max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    found = calls_in_text(text, TOOLS)
    assert isinstance(found, NoCall) or all(isinstance(one, ToolCall) for one in found)


def test_a_deep_text_costs_no_stack_and_little_time() -> None:
    assert calls_in_text('{"tool": ' * 3000, TOOLS) == ()
    assert calls_in_text("calculator(" + "(" * 3000 + ")" * 3001, TOOLS) != ()


def test_tools_are_described_in_a_line_each() -> None:
    lines = description(list(TOOLS.values())).splitlines()
    assert lines[1] == "price_of(item: string, unit: EUR|USD, optional, count: integer, optional): The price."
    assert lines[2] == "calculator(expression: string): Computes an arithmetic expression exactly."
    assert '{"tool": NAME, "arguments": {…}}' in lines[3]


def test_a_conversation_with_calls_becomes_plain_turns_that_alternate() -> None:
    calls = (ToolCall("price_of", '{"item":"a"}', "1"), ToolCall("calculator", '{"expression":"1"}', "2"))
    talk = [
        Message("system", "Be brief."),
        Message("user", "What?"),
        Message("assistant", "Let me see.", calls),
        Message("tool", "36", tool_call_id="1"),
        Message("tool", "1", tool_call_id="2"),
        Message("user", "No more."),
        Message("assistant", "37"),
    ]
    found = in_json(talk)
    assert [one.role for one in found] == ["system", "user", "assistant", "user", "assistant"]
    assert found[2].content == (
        'Let me see.\n{"tool": "price_of", "arguments": {"item": "a"}}\n{"tool": "calculator", "arguments": {"expression": "1"}}'
    )
    assert found[3].content == "Result of price_of: 36\nResult of calculator: 1\nNo more."
    assert not any(one.tool_calls for one in found)
    assert calls_in_text(found[2].content, TOOLS) == (
        ToolCall("price_of", '{"item":"a"}'),
        ToolCall("calculator", '{"expression":"1"}'),
    )
