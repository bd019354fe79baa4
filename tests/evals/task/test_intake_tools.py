"""`tools:` of a task file: what a model is told of each function, and every way that an entry can be wrong."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import Problem, ProblemsError
from evals.task.load import load_task
from evals.task.reading.documents import Document
from evals.task.signature import SignatureError, read_signature
from evals.task.tools import NAME, Tool, ToolsSpec, read_tools, row_tools, tool_problems

WEATHER = '''
from typing import Literal, Optional

raise RuntimeError("a file of tools is read, never run")

def weather(city: str, unit: Literal["C", "F"] = "C", days: Optional[int] = None, *, tags: list[str], deep: bool = False) -> str:
    """The weather of a city,
    as it is forecast.

    Told by nobody.

    Args:
        city: its name,
            in English
        unit (str): degrees
        nothing: there is no such argument

    Returns:
        text: what comes
    """
    return city
'''
DECLARED = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Books.",
        "parameters": {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]},
    },
}


def read(folder: Path, *functions: str, **files: str) -> tuple[tuple[Tool, ...], list[Problem]]:
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text)
    problems: list[Problem] = []
    return read_tools(ToolsSpec(functions=functions), folder, problems), problems


def test_no_tools_are_none(tmp_path: Path) -> None:
    assert read_tools(None, tmp_path, []) == ()


def test_a_function_is_told_by_signature_and_docstring_and_its_file_is_not_run(tmp_path: Path) -> None:
    (tool,), problems = read(tmp_path, "python:w.py:weather", w_dot_py=WEATHER)
    assert problems == []
    assert (tool.name, tool.kind, tool.file, tool.function) == ("weather", "python", "w.py", "weather")
    assert tool.description == "The weather of a city, as it is forecast."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "its name, in English"},
            "unit": {"enum": ["C", "F"], "description": "degrees", "default": "C"},
            "days": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "deep": {"type": "boolean", "default": False},
        },
        "required": ["city", "tags"],
        "additionalProperties": False,
    }
    assert json.loads(tool.schema)["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("str", {"type": "string"}),
        ("'int'", {"type": "integer"}),
        ("float | None", {"type": ["number", "null"]}),
        ("Optional[list[int]]", {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}),
        ("typing.Union[int, str, None]", {"type": ["integer", "string", "null"]}),
        ("dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("dict", {"type": "object"}),
        ("typing.List[typing.Literal[1, 'a', None]]", {"type": "array", "items": {"enum": [1, "a", None]}}),
        ("Annotated[int, 'how many']", {"type": "integer", "description": "how many"}),
        ("Any", {}),
        ("int | Any", {}),
    ],
)
def test_annotations_become_types(annotation: str, schema: dict[str, Any]) -> None:
    assert read_signature(f"def f(x: {annotation}): ...", "f").parameters["properties"]["x"] == schema


@pytest.mark.parametrize(
    ("source", "line", "part"),
    [
        ("def f(:\n  pass", 1, "no Python"),
        ("x = 1\n\ndef f_1(): ...", 0, "no function 'f'"),
        (f"def f(a: {'list[' * 60}int{']' * 60}): ...", 1, "nested too deeply"),
        (f"def f(a: {'+'.join('a' * 5000)}): ...", 0, "no Python"),
        ("\n\ndef f(*args): ...", 3, "*args"),
        ("def f(\n  a,\n  **rest): ...", 3, "**rest"),
        ("\ndef f(a, /, b): ...", 2, "by position only"),
        ("\nasync def f(): ...", 2, "async"),
        ("def f(\n  a: int,\n  b: datetime): ...", 3, "'datetime'"),
        ("def f(a: dict[int, str]): ...", 1, "dict[…]"),
        ("def f(a: Literal[1 + 1]): ...", 1, "Literal[…]"),
        ("def f(a: 'int['): ...", 1, "no Python"),
        ("class f: ...", 0, "no function 'f'"),
        ("def g():\n  def f(): ...", 0, "no function 'f'"),
        ("\x00", 0, "no Python"),
    ],
)
def test_what_cannot_be_told_is_named_with_its_line(source: str, line: int, part: str) -> None:
    with pytest.raises(SignatureError) as caught:
        read_signature(source, "f")
    assert part in caught.value.message
    assert caught.value.line == line


def test_the_later_definition_counts_as_in_python() -> None:
    assert set(read_signature("def f(a): ...\ndef f(b): ...", "f").parameters["properties"]) == {"b"}


TYPES = st.recursive(
    st.sampled_from(["str", "int", "float", "bool", "Any", "None", "dict", "Literal['a', 3]"]),
    lambda inner: st.one_of(
        inner.map(lambda one: f"list[{one}]"),
        inner.map(lambda one: f"Optional[{one}]"),
        inner.map(lambda one: f"dict[str, {one}]"),
        st.tuples(inner, inner).map(" | ".join),
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda one: one.isidentifier()), TYPES, max_size=4))
def test_every_signature_gives_a_schema_that_is_one(arguments: dict[str, str]) -> None:
    from jsonschema import Draft202012Validator

    source = f"def f({', '.join(f'{name}_: {kind}' for name, kind in arguments.items())}): ..."
    parameters = read_signature(source, "f").parameters
    Draft202012Validator.check_schema(parameters)
    assert parameters["required"] == [f"{name}_" for name in arguments]


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = read_signature(text + "\ndef f(a: int): ...", "f")
    except SignatureError:
        return
    assert ast.parse(text + "\ndef f(a: int): ...")
    assert found.parameters["type"] == "object"


def test_declarations_stand_alone_or_in_a_list_with_or_without_the_wrapper(tmp_path: Path) -> None:
    other = {"name": "wait"}
    tools, problems = read(
        tmp_path, "one.json", "two.json", one_dot_json=json.dumps(DECLARED), two_dot_json=json.dumps([other, {"name": "go-2"}])
    )
    assert problems == []
    assert [(one.name, one.kind, one.file) for one in tools] == [
        ("book_table", "declared", "one.json"),
        ("wait", "declared", "two.json"),
        ("go-2", "declared", "two.json"),
    ]
    assert tools[0].parameters == DECLARED["function"]["parameters"]
    assert tools[1].parameters == {"type": "object", "properties": {}}
    assert len({one.file_sha256 for one in tools}) == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "broken JSON"),
        ('{"name": "a", "name": "b"}', "twice"),
        ("[]", "no function"),
        ("3", "must be an object"),
        ('{"name": "a b"}', "A-Z a-z"),
        ('{"name": "a", "description": 3}', "description"),
        ('{"name": "a", "parameters": {"type": "string"}}', "type object"),
        ('{"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "text"}}}}', "no JSON schema"),
    ],
)
def test_a_faulty_declaration_is_a_problem(tmp_path: Path, text: str, part: str) -> None:
    tools, (problem,) = read(tmp_path, "f.json", f_dot_json=text)
    assert tools == ()
    assert part in problem.message
    assert problem.file.endswith("f.json")


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    (tmp_path.parent / "outside.py").write_text("def f(): ...")
    (tmp_path / "gone.py").mkdir()
    tools, problems = read(
        tmp_path,
        "calculater",
        "python:../outside.py:f",
        "python:none.py:f",
        "python:gone.py:f",
        "python:w.py:wether",
        "python:w.py",
        "w.py:weather",
        "python:latin.py:f",
        "both.json",
        "calculator",
        "python:same.py:calculator",
        w_dot_py=WEATHER,
        both_dot_json='[{"name": "!"}, {"name": "?"}, {"name": "good"}]',
        same_dot_py="def calculator(expression): ...",
        latin_dot_py="def f():\n  *",
    )
    said = [str(one) for one in problems]
    wanted = [
        "did you mean 'calculator'",
        "outside the task's folder",
        "no file 'none.py'",
        "no file 'gone.py'",
        "did you mean 'weather'",
        "must be python:FILE.py:FUNCTION",
        "must be python:FILE.py:FUNCTION",
        "latin.py:2: tools.functions: no Python",
        "function 1",
        "function 2",
        "there is a tool 'calculator' already",
    ]
    assert len(said) == len(wanted)
    for part, message in zip(wanted, said, strict=True):
        assert part in message
    assert [one.name for one in tools] == ["good", "calculator"]


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    task = tmp_path / "task"
    task.mkdir()
    (tmp_path / "secret.json").write_text('{"name": "a"}')
    (task / "link.json").symlink_to(tmp_path / "secret.json")
    _, (problem,) = read(task, "link.json")
    assert "outside" in problem.message


def test_a_name_that_no_server_takes_is_refused(tmp_path: Path) -> None:
    _, (problem,) = read(tmp_path, "python:w.py:größe", w_dot_py="def größe(): ...")
    assert "A-Z a-z" in problem.message
    assert not NAME.fullmatch("x" * 65)


def test_lookup_needs_documents(tmp_path: Path) -> None:
    tools, problems = read(tmp_path, "lookup", "calculator")
    assert problems == []
    (problem,) = tool_problems(tools, (), "task.yaml")
    assert "data: {documents: …}" in problem.message
    assert tool_problems(tools, (Document("a", "text"),), "task.yaml") == []
    assert tool_problems(tools[1:], (), "task.yaml") == []


def test_a_rows_tools_are_declared_ones_and_what_names_none_is_left_out() -> None:
    texts = (json.dumps(DECLARED), '{"name": "wait"}', '{"description": "nameless"}', "{", '{"name": "a", "parameters": 3}')
    tools = row_tools(texts)
    assert [(one.name, one.kind) for one in tools] == [("book_table", "declared"), ("wait", "declared")]
    assert tools[0].parameters == DECLARED["function"]["parameters"]


def test_a_task_with_tools_is_read_whole_and_its_hash_follows_the_function(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    spec = {"functions": ["calculator", "python:t.py:f"], "max_turns": 2}
    first = load_task(make_task(tmp_path / "a", files={"t.py": "def f(a: int): return 1"}, tools=spec))
    same = load_task(make_task(tmp_path / "b", files={"t.py": "def f(a: int): return 1"}, tools=spec))
    other = load_task(make_task(tmp_path / "c", files={"t.py": "def f(a: int): return 2"}, tools=spec))
    assert [one.name for one in first.tools] == ["calculator", "f"]
    assert first.hash() == same.hash() != other.hash()
    with pytest.raises(ProblemsError, match=r"t\.py:1.*no Python"):
        load_task(make_task(tmp_path / "d", files={"t.py": "def f(:"}, tools=spec))
