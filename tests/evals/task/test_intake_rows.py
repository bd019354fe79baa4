"""Rows, splits and documents: planted faults are found where they stand, and nothing leaks from one split into another."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.errors import Problem, ProblemsError
from evals.task.load import load_task
from evals.task.reading.documents import read_documents
from evals.task.reading.formats import read_rows
from evals.task.spec import ColumnsSpec
from evals.task.splits import freeze

MakeTask = Callable[..., Path]
USUAL = ColumnsSpec()


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "input": f"Question number {number}", "output": f"answer {number % 4}", **more}


def rows_of(tmp_path: Path, text: str | bytes, columns: ColumnsSpec = USUAL) -> tuple[list[Any], list[Problem]]:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows, problems, _ = read_rows(file.name, tmp_path, columns)
    return rows, problems


def problems_of(folder: Path) -> list[Problem]:
    with pytest.raises(ProblemsError) as caught:
        load_task(folder)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "broken JSON"),
        ('{"input": "a", "output": "b"} extra', "broken JSON"),
        ("[1, 2]", "one JSON object"),
        ("7", "one JSON object"),
        ('{"input": "a"}', "this key is missing"),
        ('{"output": "a"}', "this key is missing"),
        ('{"question": "a", "answer": "b"}', "set `columns:`"),
        ('{"input": "a", "output": ""}', "the output is empty"),
        ('{"input": "a", "output": "  \\n"}', "the output is empty"),
        ('{"input": "a", "output": null}', "the output is empty"),
        ('{"input": " ", "output": "b"}', "the input is empty"),
        ('{"input": 5, "output": "b"}', "must be text, not int"),
        ('{"input": "a \\ud83d", "output": "b"}', "half of a surrogate pair"),
        ('{"input": "a", "output": {"x": "\\udc00"}}', "half of a surrogate pair"),
        ('{"input": "a", "output": NaN}', "NaN is no JSON number"),
        ('{"input": "a", "output": {"x": -Infinity}}', "-Infinity is no JSON number"),
        ('{"input": "a", "output": "b", "gold_passages": "text"}', "a list of texts"),
        ('{"input": "a", "output": "b", "gold_passages": [1]}', "a list of texts"),
        ("[" * 100_000, "nested too deeply"),
        ('{"input": "' + "x" * 1_000_001 + '", "output": "b"}', "longer than 1,000,000"),
        ('{"messages": []}', "a list of messages"),
        ('{"messages": "hello"}', "a list of messages"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "must be the assistant's"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "must be the user's"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, '
            '{"role": "assistant", "content": "c"}]}',
            "must be the user's",
        ),
        ('{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}]}', "the input is empty"),
        ('{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}', "`role` of"),
        ('{"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}', "`content` as text"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_the_others_are_read(tmp_path: Path, line: str, says: str) -> None:
    kind = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
    good = kind if '"messages"' in line else '{"input": "q", "output": "a"}'
    rows, problems = rows_of(tmp_path, f"{good}\n\n{line}\n{good}\n")
    assert len(rows) == 2
    (problem,) = problems
    assert problem.line == 3
    assert says in problem.message


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"", "no rows"), (b"\n \n", "no rows"), (b'{"input": "\xff"}\n', "not UTF-8"), (b"\xff\xfe{\x00", "not UTF-8")],
)
def test_a_file_that_holds_no_rows_is_one_problem(tmp_path: Path, body: bytes, says: str) -> None:
    rows, (problem,) = rows_of(tmp_path, body)
    assert not rows
    assert says in problem.message


@pytest.mark.parametrize("name", ["gone.jsonl", ".", "x" * 300, "nul\0"])
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, name: str) -> None:
    rows, (problem,), _ = read_rows(name, tmp_path, USUAL)
    assert not rows
    assert problem.message


def test_messages_keep_their_turns_and_the_last_is_the_target(tmp_path: Path) -> None:
    turns = [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi"), ("user", "And now?"), ("assistant", "Bye")]
    rows, problems = rows_of(tmp_path, json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    assert not problems
    (example,) = [one.example for one in rows]
    assert example.messages == tuple(Message(*turn) for turn in turns[:-1])
    assert (example.target, example.text) == ("Bye", "And now?")


def test_two_formats_in_one_file_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    _, (problem,) = rows_of(tmp_path, json.dumps(row(1)) + "\n" + json.dumps({"messages": turns}))
    assert "input/output, messages" in problem.message


def test_columns_are_renamed(tmp_path: Path) -> None:
    columns = ColumnsSpec(input="question", output="answer", id="key", group="topic", gold_passages="gold")
    body = {"question": "q", "answer": {"b": 1, "a": "é"}, "key": 7, "topic": 3, "gold": ["text"]}
    ((one,), problems) = rows_of(tmp_path, json.dumps(body), columns)
    assert not problems
    assert (one.example.id, one.example.group, one.example.gold_passages) == ("7", "3", ("text",))
    assert one.example.target == '{"b":1,"a":"é"}'


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    rows, problems = rows_of(tmp_path, b'\xef\xbb\xbf{"input": "a", "output": "b"}\r\n{"input": "c", "output": "d"}\r\n')
    assert not problems
    assert [one.example.text for one in rows] == ["a", "c"]


def test_a_row_without_an_id_is_named_after_its_content(tmp_path: Path) -> None:
    text = '{"input": "a", "output": "b"}\n{"input": "a", "output": "c"}\n'
    first, _ = rows_of(tmp_path, text)
    second, _ = rows_of(tmp_path, text)
    names = [one.example.id for one in first]
    assert names == [one.example.id for one in second]
    assert len(set(names)) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["input", "output", "messages", "id", "group", "gold_passages", "x"])
turns = st.lists(
    st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "assistant", "system", "?"]), "content": json_values}),
    max_size=4,
)
lines = st.dictionaries(keys, json_values | turns, max_size=5).map(json.dumps) | st.text(max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.lists(lines, max_size=4).map(lambda some: "\n".join(some).encode("utf-8", "replace")))
def test_whatever_a_file_holds_each_line_is_a_row_or_a_problem(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(body)
    rows, problems, _ = read_rows(file.name, file.parent, USUAL)
    assert rows or problems
    try:
        text = body.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        # No text: one problem ends the reading.
        assert problems
        return
    filled = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    told = sorted([one.line for one in rows] + [one.line for one in problems if one.line])
    whole = [one for one in problems if not one.line and "different formats" not in one.message]
    # A document of JSON has elements and no lines.
    if not whole and text.split("\n")[filled[0] - 1].strip() not in {"{", "[", "[{"}:
        assert told == filled
    for one in rows:
        assert one.example.text.strip()
        assert one.example.target.strip()


def test_one_row_is_too_few(make_task: MakeTask, tmp_path: Path) -> None:
    problems = problems_of(make_task(tmp_path / "t", rows={"train": [row(1)], "dev": None, "test": None}, output=None))
    assert {one.key for one in problems} == {"data.train", "data.dev", "data.test"}
    assert "1 row in the train split: at least 2" in problems[0].message


@pytest.mark.parametrize("again", ["Item 3 is pink.", "ITEM 3 IS PINK", "item 3, is pink?!", "  Item 3\nis  pink "])
def test_a_test_question_that_stands_in_train_is_found(make_task: MakeTask, tmp_path: Path, again: str) -> None:
    folder = make_task(tmp_path / "t")
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps({"id": "again", "input": again, "output": "pink"}) + "\n")
    (problem,) = problems_of(folder)
    # The test stays whole: the row that is accused is the one of the lesser split.
    assert (Path(problem.file).name, problem.line) == ("train.jsonl", 4)
    assert "test.jsonl:9" in problem.message


def test_a_duplicate_id_is_found_with_both_places(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "t")
    with (folder / "dev.jsonl").open("a") as file:
        file.write(json.dumps({"id": "row-0", "input": "Another thing", "output": "red"}) + "\n")
    (problem,) = problems_of(folder)
    assert (Path(problem.file).name, problem.line, problem.key) == ("train.jsonl", 1, "id")
    assert "dev.jsonl:9 too" in problem.message


SCHEMA = json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})


def test_a_target_that_breaks_the_schema_is_found(make_task: MakeTask, tmp_path: Path) -> None:
    good = [{"input": f"question {n}", "output": {"a": n}} for n in range(20)]
    spec = {"output": {"type": "json", "schema": "s.json"}, "files": {"s.json": SCHEMA}}
    load_task(make_task(tmp_path / "t", rows={"train": good, "dev": None, "test": None}, **spec))
    bad = [*good, {"input": "x", "output": {"a": "text"}}, {"input": "y", "output": "no JSON"}]
    folder = make_task(tmp_path / "u", rows={"train": bad, "dev": None, "test": None}, **spec)
    found = {one.line: one.message for one in problems_of(folder)}
    assert "breaks the schema" in found[21]
    assert "not a JSON object" in found[22]


@pytest.mark.parametrize(
    "schema", ["{broken", '{"type": 7}', "[" * 100_000, '{"$ref": "#/nowhere"}', '{"$ref": "http://x.invalid/s"}']
)
def test_a_schema_that_cannot_be_used_is_a_problem(make_task: MakeTask, tmp_path: Path, schema: str) -> None:
    rows = [{"input": f"question {n}", "output": {"a": n}} for n in range(20)]
    folder = make_task(
        tmp_path / "t",
        rows={"train": rows, "dev": None, "test": None},
        output={"type": "json", "schema": "s.json"},
        files={"s.json": schema},
    )
    assert any(one.key == "output.schema" for one in problems_of(folder))


def test_a_label_that_is_not_declared_is_found(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "t", output={"type": "label", "labels": ["red", "blue", "green"]})
    assert {Path(one.file).name for one in problems_of(folder)} == {"train.jsonl", "dev.jsonl", "test.jsonl"}
    # Declaring labels is declaring the type.
    task = load_task(make_task(tmp_path / "u", output={"labels": ["red", "blue", "green", "pink", "white"]}))
    assert (task.output_type, task.labels[-1]) == ("label", "white")


def test_a_rare_label_that_the_draw_puts_into_test_is_a_label_all_the_same(make_task: MakeTask, tmp_path: Path) -> None:
    rows = [{"input": f"thing {n}", "output": f"l{n % 3}"} for n in range(40)] + [{"input": "thing x", "output": "rare"}]
    for seed in range(12):
        task = load_task(make_task(tmp_path / str(seed), rows={"train": rows, "dev": None, "test": None}, seed=seed))
        assert task.labels == ("l0", "l1", "l2", "rare")


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([str(n) for n in range(40)], "number"),
        ([{"a": n} for n in range(40)], "json"),
        (["yes", "no"] * 20, "label"),
        ([f"answer {n}" for n in range(40)], "text"),
        (["yes", "no"] * 5, "text"),
    ],
)
def test_the_output_type_is_inferred(make_task: MakeTask, tmp_path: Path, targets: list[Any], kind: str) -> None:
    rows = [{"input": f"question {n}", "output": target} for n, target in enumerate(targets)]
    task = load_task(make_task(tmp_path / "t", rows={"train": rows, "dev": None, "test": None}, output=None))
    assert task.output_type == kind


def test_splits_are_drawn_by_whole_groups_from_a_seed(make_task: MakeTask, tmp_path: Path) -> None:
    rows = [row(n, group=f"g{n % 15}") for n in range(60)]

    def drawn(seed: int) -> dict[str, list[dict[str, str]]]:
        folder = make_task(tmp_path / f"s{seed}", rows={"train": rows, "dev": None, "test": None}, output=None, seed=seed)
        task = load_task(folder)
        return freeze({name: task.split(name) for name in ("train", "dev", "test")})

    first = drawn(1)
    assert first == drawn(1)
    assert first != drawn(2)
    ids = [one["id"] for split in first.values() for one in split]
    assert Counter(ids) == Counter(one["id"] for one in rows)
    assert [len(first[name]) for name in ("train", "dev", "test")] == [36, 12, 12]
    where: dict[int, set[str]] = {}
    for name, split in first.items():
        for one in split:
            where.setdefault(int(one["id"][1:]) % 15, set()).add(name)
    assert all(len(splits) == 1 for splits in where.values())


def test_equal_questions_are_drawn_into_one_split(make_task: MakeTask, tmp_path: Path) -> None:
    rows = [{"id": f"{n}-{way}", "input": way.format(n), "output": "x"} for n in range(20) for way in ("Ask {}", "ask, {}!")]
    task = load_task(make_task(tmp_path / "t", rows={"train": rows, "dev": None, "test": None}, output=None))
    numbers = [{one.id.split("-")[0] for one in task.split(name)} for name in ("train", "dev", "test")]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 20


def test_frozen_rows_change_with_their_content(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(tmp_path / "t"))
    before = freeze({"dev": task.dev})["dev"]
    body = (tmp_path / "t" / "dev.jsonl").read_text().replace("Item 24", "Thing 24")
    (tmp_path / "t" / "dev.jsonl").write_text(body)
    after = freeze({"dev": load_task(tmp_path / "t").dev})["dev"]
    assert [one["id"] for one in before] == [one["id"] for one in after]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False] + [True] * 7


def test_the_tasks_hash_follows_content_and_not_place(make_task: MakeTask, tmp_path: Path) -> None:
    here, there = load_task(make_task(tmp_path / "here")), load_task(make_task(tmp_path / "there"))
    assert here.hash() == there.hash()
    assert load_task(make_task(tmp_path / "seed", seed=3)).hash() != here.hash()


def test_documents_are_read_in_order_and_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.md").write_text("# B\n")
    (folder / "deep" / "a.txt").write_text("text")
    (folder / "picture.png").write_text("no")
    (folder / "empty.md").write_text(" \n")
    documents, problems = read_documents(folder)
    assert ([one.id for one in documents], problems) == (["b.md", "deep/a.txt"], [])
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", folder / "link.txt")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    documents, problems = read_documents(folder)
    assert [Path(one.file).name for one in problems] == ["latin.txt", "link.txt"]
    assert "leads out" in problems[1].message
    assert all("secret" not in one.text for one in documents)


def test_a_linked_folder_that_leads_out_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("text")
    os.symlink(tmp_path / "outside", tmp_path / "docs" / "door")
    documents, _ = read_documents(tmp_path / "docs")
    assert [one.id for one in documents] == ["a.txt"]


def test_documents_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    assert "no such folder" in read_documents(tmp_path / "gone")[1][0].message
    (tmp_path / "docs").mkdir()
    assert "no .md or .txt" in read_documents(tmp_path / "docs")[1][0].message
