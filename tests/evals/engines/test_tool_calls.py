"""Tool calls as the families of models write them: each form is read, what is no whole call stays text, nothing raises."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines.engine import ToolCall
from evals.engines.tool_calls import FORMS, as_call, parsed_by_tokenizer, read_calls


def tool(name: str, **types: str) -> str:
    parameters = {"type": "object", "properties": {key: {"type": value} for key, value in types.items()}}
    return json.dumps({"type": "function", "function": {"name": name, "parameters": parameters}})


WEATHER = tool("weather", city="string", days="integer", metric="boolean", at="array")
OTHER = tool("rain", place="string")
ARGUMENTS: dict[str, Any] = {"city": "Zürich", "days": 3, "metric": True}
ONE = '{"name": "weather", "arguments": {"city": "Zürich", "days": 3, "metric": true}}'
TWO = '{"name": "rain", "arguments": {"place": "Bern"}}'


def plain(text: str, *tools: str) -> tuple[str, list[tuple[str, Any, str]]]:
    rest, calls = read_calls(text, tools or (WEATHER, OTHER))
    return rest, [(one.name, json.loads(one.arguments), one.id) for one in calls]


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
        f"<tool_call>{ONE}\n{TWO}</tool_call>",
        f"<tool_call>\n{ONE}\n</tool_call><tool_call>{TWO}",  # the end mark is a stop token, or was forgotten
        f"[TOOL_CALLS] [{ONE}, {TWO}]",
        '[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 3, "metric": true}[TOOL_CALLS]rain[ARGS]{"place": "Bern"}',
        f"<|tool_call|>[{ONE}, {TWO}]<|/tool_call|>",
        f"<|tool_call|>[{ONE}, {TWO}]</tool_call>",
        "<|tool_call_start|>[weather(city=\"Zürich\", days=3, metric=True), rain(place='Bern')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city=\"Zürich\", days=3, metric=true), rain(place='Bern')]",
        f"<|python_tag|>{ONE}; {TWO}<|eom_id|>",
        f"{ONE}; {TWO}".replace('"arguments"', '"parameters"'),
        f"[{ONE}, {TWO}]",
        "<start_function_call>call:weather{city:<escape>Zürich<escape>,days:3,metric:true}<end_function_call>"
        "<start_function_call>call:rain{place:<escape>Bern<escape>}<end_function_call>",
        '<|tool_call>call:weather{city:<|"|>Zürich<|"|>,days:3,metric:true}<tool_call|>'
        '<|tool_call>call:rain{place:<|"|>Bern<|"|>}<tool_call|>',
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<parameter=metric>\nTrue\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=rain>\n<parameter=place>\nBern\n</parameter>\n</function>\n</tool_call>",
    ],
)
def test_each_familys_form_is_read(text: str) -> None:
    assert plain(text) == ("", [("weather", ARGUMENTS, ""), ("rain", {"place": "Bern"}, "")])
    rest, calls = plain(f"Let me look.\n{text}")
    if text.startswith(("{", "[{")):
        assert (rest, calls) == (f"Let me look.\n{text}", [])  # without marks it must be the whole text
    else:
        assert (rest, len(calls)) == ("Let me look.", 2)


def test_ids_are_kept_and_arguments_may_be_text_or_missing() -> None:
    with_id = '{"name": "rain", "arguments": "{\\"place\\": \\"Bern\\"}", "id": "a1b2c3d4e"}'
    assert plain(f"[TOOL_CALLS] [{with_id}]") == ("", [("rain", {"place": "Bern"}, "a1b2c3d4e")])
    assert plain('[TOOL_CALLS]rain[CALL_ID]a1b2c3d4e[ARGS]{"place": "Bern"}')[1] == [("rain", {"place": "Bern"}, "a1b2c3d4e")]
    assert plain('<tool_call>{"name": "now"}</tool_call>')[1] == [("now", {}, "")]
    wrapped = {"type": "function", "id": "x", "function": {"name": "rain", "arguments": ""}}
    assert as_call(wrapped) == ToolCall("rain", "{}", "x")
    assert as_call({"tool_name": "rain", "parameters": {"a": 1}, "tool_call_id": 0}) == ToolCall("rain", '{"a": 1}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is 3 degrees.",
        "<tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"city": "Zür',  # cut off
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "Zürich"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>',  # no UTF-8 says this
        '<tool_call>{"name": "we\\nather", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        f'<tool_call>[{ONE}, {{"arguments": {{}}}}]</tool_call>',  # half of what was asked for is not run
        "<tool_call>" + "[" * 5000,
        '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        "<tool_call><function=weather><parameter=city>Zürich</function></tool_call>",
        "<|tool_call_start|>[weather('Zürich')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(days=1+open('x'))]<|tool_call_end|>",
        "<|tool_call_start|>[weather(**{'a': 1})]<|tool_call_end|>",
        "<|tool_call_start|>f(a=" + "-" * 9000 + "1)",
        "<|tool_call_start|>" + "f(" * 4000,
        '<start_function_call>call:weather{city:"1"}<end_function_call>',
        "[TOOL_CALLS]weather[ARGS]3",
        '{"name": "unknown", "parameters": {}}',
        '{"name": "weather"}',
        '{"name": "weather", "parameters": {}} and so on',
    ],
)
def test_what_is_no_whole_call_stays_in_the_text(text: str) -> None:
    assert read_calls(text, (WEATHER, OTHER)) == (text, ())


def test_a_broken_call_beside_a_whole_one_stays_in_the_text() -> None:
    text = f"One: <tool_call>{{oops}}</tool_call> two: <tool_call>{TWO}</tool_call> done."
    assert plain(text) == ("One: <tool_call>{oops}</tool_call> two:\ndone.", [("rain", {"place": "Bern"}, "")])


def test_reasoning_holds_no_calls() -> None:
    thought = f"<think>I could <tool_call>{ONE}</tool_call>, but no.</think>"
    assert plain(f"{thought}\nIt rains.") == (f"{thought}\nIt rains.", [])
    assert plain(f"{thought}\n<tool_call>{TWO}</tool_call>") == (thought, [("rain", {"place": "Bern"}, "")])
    assert plain(f"{thought}\n{TWO}") == (thought, [("rain", {"place": "Bern"}, "")])


def test_values_that_stand_there_as_text_have_the_types_of_the_schema() -> None:
    def written(**values: str) -> str:
        inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
        return f"<tool_call>\n<function=weather>\n{inside}</function>\n</tool_call>"

    assert plain(written(city="75001", days="7", metric="False", at='["a", 1]', extra="9"))[1][0][1] == {
        "city": "75001",
        "days": 7,
        "metric": False,
        "at": ["a", 1],
        "extra": "9",
    }
    assert plain(written(city="two\nlines", days="seven"))[1][0][1] == {"city": "two\nlines", "days": "seven"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(), JSON, max_size=4)), min_size=1, max_size=3)
# Texts without marks. One that begins like JSON could be taken for a call behind it.
SAID = st.text(st.characters(codec="utf-8", exclude_characters="<[{|")).map(str.strip)


@given(CALLS, SAID)
def test_calls_come_back_as_they_were_rendered(calls: list[tuple[str, dict[str, Any]]], said: str) -> None:
    bodies = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
    hermes = said + "".join(f"\n<tool_call>\n{one}\n</tool_call>" for one in bodies)
    mistral = f"{said}[TOOL_CALLS] [{', '.join(bodies)}]"
    newer = said + "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)
    for text in (hermes, mistral, newer):
        rest, found = read_calls(text)
        assert rest == said
        assert [(one.name, json.loads(one.arguments)) for one in found] == calls


WORDS = [*FORMS, "</tool_call>", "<tool_call|>", "call:f{", "[ARGS]", "<function=f>", "<parameter=a>", "</parameter>"]
WORDS += [
    "</function>",
    "<escape>",
    '<|"|>',
    ONE,
    '{"name":',
    '"f"',
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "a=",
    "1",
    ",",
    ";",
    "</think>",
    "\\",
]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30).map("".join))
def test_no_text_is_too_strange(text: str) -> None:
    """Whatever comes: calls with arguments that are objects, or the text as it was."""
    rest, calls = read_calls(
        text, (WEATHER, "no JSON", "3", '{"function": 3}', '{"function": {"name": "f", "parameters": []}}')
    )
    assert all(isinstance(json.loads(one.arguments), dict) and one.name for one in calls)
    if not calls:
        assert rest == text


def test_many_marks_do_not_take_long() -> None:
    for mark in [*FORMS, "<tool_call><function=f><parameter=a>", "<start_function_call>call:f{"]:
        assert read_calls(mark * 3000, ()) == (mark * 3000, ())


def test_a_tokenisers_own_way_comes_first_and_its_failures_do_no_harm() -> None:
    call = {"type": "function", "function": {"name": "rain", "arguments": {"place": "Bern"}}}

    def ships(**message: Any) -> SimpleNamespace:
        return SimpleNamespace(response_template={}, parse_response=lambda text, prefix, tools: message)

    assert parsed_by_tokenizer(SimpleNamespace(), "x", "", ()) is None
    assert parsed_by_tokenizer(ships(content="x"), "x", "", ()) is None
    assert parsed_by_tokenizer(ships(content="x", tool_calls=[call, {"function": {}}]), "x", "", ()) is None
    assert parsed_by_tokenizer(SimpleNamespace(response_template={}), "x", "", ()) is None  # parse_response raises
    expected = "so", (ToolCall("rain", '{"place": "Bern"}'),)
    assert parsed_by_tokenizer(ships(content="so", tool_calls=[call]), "x", "", (OTHER,)) == expected
