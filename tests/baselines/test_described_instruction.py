"""The rewritten instruction tells the form that right answers have, and no other; what is read off the targets fits them all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baselines.prompts.instruction import MAX_ADDED, MAX_KEYS, answer_schema, described, described_arm, inferred_schema
from evals.engines.engine import Message, Request
from evals.events import Event, Note, ignore
from evals.task.example import Example
from evals.task.load import Task, load_task

# --- what is read off the targets -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80)
@given(values=st.lists(st.dictionaries(st.text(max_size=2), JSON, max_size=4), min_size=1, max_size=30))
def test_every_target_fits_the_schema_that_is_read_off_them(values: list[Any]) -> None:
    schema = inferred_schema(values)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert all(validator.is_valid(one) for one in values)
    # What no target has is shut out.
    assert not validator.is_valid({**values[0], "no such key": 1})
    assert not validator.is_valid([])
    for key in set.intersection(*(set(one) for one in values)):
        assert not validator.is_valid({name: value for name, value in values[0].items() if name != key})


def test_the_schema_says_types_keys_and_values() -> None:
    rows = [
        {"kind": ["a", "b"][at % 2], "name": f"n{at}", "count": at, "share": at / 2, "ok": True, "tags": ["x"] * (at % 3)}
        | ({"inner": {"low": None if at % 4 else at, "odd": at}} if at % 2 else {})
        for at in range(40)
    ]
    assert inferred_schema(rows) == {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["a", "b"]},
            "name": {"type": "string"},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "ok": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "inner": {
                "type": "object",
                "properties": {"low": {"type": "null"}, "odd": {"type": "integer"}},
                "required": ["low", "odd"],
                "additionalProperties": False,
            },
        },
        "required": ["kind", "name", "count", "share", "ok", "tags"],
        "additionalProperties": False,
    }


def test_values_of_several_types_may_be_any_of_these() -> None:
    assert inferred_schema([1, None, "a", 2.5, True, [], {}]) == {
        "anyOf": [
            {"type": "number"},
            {"type": "null"},
            {"type": "string"},
            {"type": "boolean"},
            {"type": "array"},
            {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
        ]
    }


def strings(counts: Sequence[int]) -> list[str]:
    return [f"v{at}" for at, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "closed"),
    [
        ([10, 10], True),
        ([10, 9], False),  # too few rows to know
        ([20], False),  # one value is none of several
        ([5, 5, 5, 5, 5], True),
        ([4, 4, 4, 4, 4], True),
        ([4, 4, 4, 4, 3], False),  # more values than a quarter of the rows
        ([49, 50, 1], True),  # one row in a hundred has a value of its own
        ([97, 1, 1, 1], False),  # three in a hundred: the next row may have another
    ],
)
def test_strings_are_enumerated_where_hardly_another_is_to_be_expected(counts: list[int], closed: bool) -> None:
    values = strings(counts)
    enumerated = {"type": "string", "enum": sorted(set(values))}
    assert inferred_schema(values) == (enumerated if closed else {"type": "string"})


def test_keys_come_in_the_order_that_rows_have_them_whichever_they_leave_out() -> None:
    rows = [{"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1}, {"c": 1, "d": 1}, {"d": 1}]
    for some in (rows, rows[::-1]):
        assert list(inferred_schema(some)["properties"]) == ["a", "b", "c", "d"]
    # Rows that disagree have no such order.
    assert set(inferred_schema([*rows, {"c": 1, "b": 1}])["properties"]) == set("abcd")


def test_objects_whose_keys_are_values_stay_open() -> None:
    table = [{f"key{at}": 1} for at in range(MAX_KEYS + 1)]
    assert inferred_schema(table) == {"type": "object"}
    assert len(inferred_schema(table[:-1])["properties"]) == MAX_KEYS


# --- the text ---------------------------------------------------------------------------------------------------------


@dataclass
class Characters:
    """An engine whose tokens are characters."""

    context_length: int = 100_000
    name: str = "characters"
    fingerprint: str = "characters"
    takes_tools: bool = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(len(one.content) for one in turns) for turns in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Any]:
        yield from ()


def make(folder: Path, rows: Sequence[tuple[str, str]], instruction: str = "Do it.", **output: Any) -> Task:
    """A task with these (input, output) rows to train on; nothing of a model is needed to read it."""
    parts = {"train": list(rows), "dev": [("dev question", rows[0][1])] * 2, "test": [("test question", rows[-1][1])] * 2}
    for name, body in parts.items():
        lines = [
            {"id": f"{name}{at}", "input": f"{text}{'' if name == 'train' else at}", "output": target}
            for at, (text, target) in enumerate(body)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {name: f"{name}.jsonl" for name in parts}
    spec = {
        "schema_version": 1,
        "instruction": instruction,
        "data": data,
        "output": output,
        "model": {"model_name_or_path": "x"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(spec))
    return load_task(folder)


def rows_of(targets: Sequence[str], count: int = 24) -> list[tuple[str, str]]:
    return [(f"Here is question {at}.", targets[at % len(targets)]) for at in range(count)]


def test_labels_are_all_named_as_they_are_written(tmp_path: Path) -> None:
    labels = ["card", "card lost", " odd ", 'say "x"']
    task = make(tmp_path, rows_of(labels), "# Intents\n\nName the intent.\n\nMore about it.", type="label", labels=labels)
    assert described(task) == (
        "Name the intent.\n\n"
        "Answer with one of these labels, as it is written here, and nothing else:\n"
        '- card\n- card lost\n- " odd "\n- say "x"\n\n'
        "For example:\n\n"
        "Input: Here is question 0.\nAnswer: card\n\n"
        "Input: Here is question 2.\nAnswer:  odd "
    )


def test_a_hundred_labels_are_all_there_and_of_thousands_it_is_said_how_many_are_not(tmp_path: Path) -> None:
    labels = [f"an_intent_with_a_long_name_{at}" for at in range(100)]
    text = described(make(tmp_path, rows_of(labels, 100), type="label", labels=labels))
    assert all(f"- {one}\n" in text for one in labels)
    assert "For example" in text
    many = [f"an_intent_with_a_long_name_{at}" for at in range(3000)]
    (tmp_path / "many").mkdir()
    text = described(make(tmp_path / "many", rows_of(many), "Name it.", type="label", labels=many))
    assert len(text) <= len("Name it.") + MAX_ADDED + 10
    listed = text.count("- an_intent")
    assert 0 < listed < 3000
    assert f"- … and {3000 - listed} more" in text
    assert "For example" not in text


TICKET = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {"place": {"type": "string", "description": "a town"}},
    "type": "object",
    "required": ["product", "order", "place"],
    "properties": {
        "product": {"enum": ["LK", None, 3], "description": "what it is about"},
        "order": {"type": "string", "pattern": "^N-[0-9]+$"},
        "place": {"$ref": "#/$defs/place"},
        "count": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
        "owner": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "vip": {"type": "boolean"}},
            "required": ["name"],
        },
        "any": True,
        "version": {"const": 2},
        "loop": {"$ref": "#/properties/loop"},
        "far": {"$ref": "https://example.com/x"},
    },
}


def test_keys_are_described_as_the_schema_has_them(tmp_path: Path) -> None:
    target = '{"product": "LK", "order": "N-1", "place": "Oslo"}'
    task = replace(make(tmp_path, rows_of([target]), type="json"), schema=TICKET)
    assert described(task, 0) == (
        "Do it.\n\nAnswer with one JSON object and nothing else. Its keys:\n"
        '- "product": one of "LK", null, 3 (what it is about)\n'
        '- "order": a string that matches ^N-[0-9]+$\n'
        '- "place": a string (a town)\n'
        '- "count": a whole number or null; may be left out\n'
        '- "tags": a list, each item a string or a number; may be left out\n'
        '- "owner": an object with "name" (a string), "vip" (true or false, may be left out); may be left out\n'
        '- "any": any value; may be left out\n'
        '- "version": always 2; may be left out\n'
        '- "loop": any value; may be left out\n'
        '- "far": any value; may be left out'
    )


def test_without_a_schema_keys_are_those_of_the_training_targets(tmp_path: Path) -> None:
    targets = ['{"size": "big"}', '{"size": "small", "when": "at noon"}', '{"size": "small", "when": "now"}', '{"size": "big"}']
    targets = [one.replace("now", f"at {at}") for at, one in enumerate(targets * 6)]
    task = make(tmp_path, rows_of(targets), type="json")
    assert (answer_schema(task) or {})["required"] == ["size"]
    text = described(task, 0)
    assert '- "size": one of "big", "small"\n' in text
    assert text.endswith('- "when": a string; may be left out')


SCHEMAS = st.recursive(
    st.booleans()
    | st.sampled_from([{}, {"type": "string"}, {"enum": []}, {"$ref": "#"}, {"$ref": "#/a/b"}, {"type": [], "anyOf": []}]),
    lambda inner: (
        st.fixed_dictionaries({"properties": st.dictionaries(st.text(max_size=3), inner, max_size=3)})
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=2), "description": st.text(max_size=3) | st.none()})
        | st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.text(max_size=3), inner, max_size=2)}
        )
    ),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def ticket_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make(tmp_path_factory.mktemp("ticket"), rows_of(['{"product": "LK"}']), type="json")


@settings(max_examples=80)
@example(schema={"": {"type": "object", "properties": {"\x85": False}, "description": "two\nlines"}})
@given(schema=st.dictionaries(st.text("ab", max_size=1), SCHEMAS, max_size=3))
def test_any_schema_can_be_described(ticket_task: Task, schema: dict[str, Any]) -> None:
    text = described(replace(ticket_task, schema={"properties": schema}))
    assert len(text) <= len("Do it.") + MAX_ADDED + 10
    assert all(f"- {json.dumps(key)}: " in text for key in schema)


def test_a_wide_schema_is_cut_and_said_so(ticket_task: Task) -> None:
    wide = {"properties": {f"key{at}": {"enum": [f"value {number}" for number in range(500)]} for at in range(100)}}
    text = described(replace(ticket_task, schema=wide))
    assert len(text) <= len("Do it.") + MAX_ADDED + 10
    assert '"value 39" and 460 more' in text
    assert " more; may be left out\n- … and " in text


def test_numbers_and_texts_have_their_form(tmp_path: Path) -> None:
    (tmp_path / "number").mkdir()
    number = make(tmp_path / "number", rows_of(["3", "4"]), "", type="number")
    assert described(number, 0) == (
        "Answer the question in the input with a number.\n\nAnswer with one number, in digits, and nothing else."
    )
    for name, targets, said in (
        ("same", ["one two"], "Answer in about 2 words, on one line, and write nothing else."),
        ("lone", ["one"], "Answer in about 1 word, on one line, and write nothing else."),
        ("many", ["one", "one two", "one two three", "a b c d", "a b c d e"], "Answer in 2 to 4 words, on one line, and"),
        ("lines", ["one\ntwo"], "Answer in about 2 words, and write nothing else."),
    ):
        (tmp_path / name).mkdir()
        assert said in described(make(tmp_path / name, rows_of(targets, 25), type="text"), 0)


def test_examples_are_short_but_typical_and_differ(tmp_path: Path) -> None:
    rows = [("Hi", "{}"), ("Ho", "{}"), *((f"A plain question {at}", "{}") for at in range(10, 30))]
    rows += [(f"A good question {at}", '{"a": 1}') for at in range(10, 16)]
    rows += [("A question that is rather longer than the others are", '{"a": 2}')]
    text = described(make(tmp_path, rows, type="json"))
    assert text.endswith(
        'For example:\n\nInput: A plain question 10\nAnswer: {}\n\nInput: A good question 10\nAnswer: {"a": 1}'
    )
    shuffled = sorted(rows, key=lambda one: one[0][::-1])
    (tmp_path / "again").mkdir()
    assert described(make(tmp_path / "again", shuffled, type="json")) == text


def test_examples_are_rows_of_one_question_and_never_of_dev_or_test(tmp_path: Path) -> None:
    task = make(tmp_path, rows_of(["red", "blue"]), type="label")
    assert "dev question" not in described(task)
    assert "test question" not in described(task)
    turns = (Message("user", "Hm?"), Message("assistant", "Yes?"), Message("user", "What?"))
    talks = [Example(f"t{at}", turns, "red") for at in range(20)]
    assert "For example" not in described(task.with_split("train", talks))
    long = [replace(one, messages=(Message("user", "x" * 5000),)) for one in task.train]
    assert "For example" not in described(task.with_split("train", long))


def test_the_arm_shows_as_many_examples_as_fit_the_context(tmp_path: Path) -> None:
    task = make(tmp_path, rows_of(["red", "blue"]), type="label")
    longest = max(len(one.text) for one in (*task.train, *task.dev))
    for count in (2, 1, 0):
        told: list[Event] = []
        needed = len(described(task, count)) + longest + 24
        arm = described_arm(task, Characters(needed), told.append)
        assert arm.prompt_format.instruction == described(task, count)
        assert not told
        assert described_arm(task, Characters(needed - 1), ignore).prompt_format.instruction == described(
            task, max(0, count - 1)
        )
    told = []
    arm = described_arm(task, Characters(60), told.append)
    assert [type(one) for one in told] == [Note]
    assert (arm.name, arm.kind) == ("zero_shot_described", "prompt")
    (request, *_) = arm.requests(task.dev)
    assert [one.role for one in request.messages] == ["system", "user"]
