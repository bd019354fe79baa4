"""The user's own prompts: what is read from `prompts/*.md`, and each fault with its file and line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.candidate import INPUT, PromptFormat
from evals.errors import Problem
from evals.task.reading.templates import MAX_BYTES, Template, filled, mark_values, read_templates, template_problems

WHOLE = """---
name: careful
system: |
  You sort messages. {{instruction}}
shots: 4
choose: diverse
constrained: true
---

Message: {{ input }}
Answer with {"label": "…"}, one of:
{{labels}}
"""


def read(folder: Path, **files: str | bytes) -> tuple[tuple[Template, ...], list[Problem]]:
    """The templates of files (name without `.md` -> content), and the problems."""
    prompts = folder / "prompts"
    prompts.mkdir(exist_ok=True)
    for name, content in files.items():
        (prompts / f"{name}.md").write_bytes(content.encode() if isinstance(content, str) else content)
    problems: list[Problem] = []
    return read_templates(prompts, problems), problems


def faults(folder: Path, content: str | bytes) -> list[tuple[int, str, str]]:
    """(line, key, message) of one file, which is left out."""
    templates, problems = read(folder, one=content)
    assert templates == ()
    assert {one.file for one in problems} == {str(folder / "prompts" / "one.md")}
    return [(one.line, one.key, one.message) for one in problems]


def test_a_whole_template(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, one=WHOLE)
    assert problems == []
    assert templates == (
        Template(
            name="careful",
            system="You sort messages. {{instruction}}",
            frame='Message: {{input}}\nAnswer with {"label": "…"}, one of:\n{{labels}}',
            shots=4,
            choose="diverse",
            constrained=True,
            reason=False,
            file="prompts/one.md",
        ),
    )
    assert INPUT in templates[0].frame


def test_a_body_alone_is_a_template_named_after_its_file(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, plain="\ufeffQ: {{input}}\r\nA:\r\n", empty="---\n---\n{{input}}")
    assert problems == []
    assert templates == (
        Template("empty", "", "{{input}}", file="prompts/empty.md"),
        Template("plain", "", "Q: {{input}}\nA:", file="prompts/plain.md"),
    )


def test_templates_come_in_the_order_of_their_names_and_other_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    for name in ("notes.txt", ".hidden.md", "._resource.md"):
        (tmp_path / "prompts" / name).write_bytes(b"\xff\x00")
    templates, problems = read(
        tmp_path, a="---\nname: zebra\n---\n{{input}}", b="---\nname: ant\n---\n{{input}}", m="{{input}}"
    )
    assert problems == []
    assert [one.name for one in templates] == ["ant", "m", "zebra"]


def test_without_the_folder_there_are_none(tmp_path: Path) -> None:
    problems: list[Problem] = []
    assert read_templates(tmp_path / "prompts", problems) == ()
    assert problems == []
    (tmp_path / "prompts").write_text("a file")
    os.symlink("gone", tmp_path / "link")
    for name in ("prompts", "link"):
        assert read_templates(tmp_path / name, problems) == ()
        assert "cannot be read" in problems.pop().message


@pytest.mark.parametrize(
    ("content", "line", "key", "message"),
    [
        ("---\nshots: 1\n---\nSort\n{{inptu}} {{input}}", 5, "{{inptu}}", "unknown placeholder (did you mean 'input'?)"),
        ("{{ LABELS }} {{input}}", 1, "{{ LABELS }}", "unknown placeholder (did you mean 'labels'?)"),
        ("{{input}} {{context}}", 1, "{{context}}", "unknown placeholder"),
        ('{{input}}\n{{"a": 1}}', 2, '{{"a": 1}}', "single braces are plain text"),
        ("{{input}}\n{{}}", 2, "{{}}", "unknown placeholder"),
        ("{{input}}\n\n{{labels}", 3, "{{labels", "not closed"),
        ("---\nshots: 1\nsystem: be {{brief}}\n---\n{{input}}", 3, "{{brief}}", "unknown placeholder"),
        ("---\nsystem: of {{input}}\n---\n{{input}}", 2, "{{input}}", "the system message is the same for every question"),
        ("Say it: {input}", 0, "{{input}}", "must stand where the question goes, in double braces"),
        ("Say it.", 0, "{{input}}", "must stand where the question goes"),
        ("", 0, "", "the prompt is empty"),
        ("---\nshots: 2\n---\n \n", 0, "", "the prompt is empty"),
        ("---\nshots: 2\n{{input}}", 1, "", "the front matter has no end"),
        ("\n\n---\nshots: 2\n{{input}}", 3, "", "the front matter has no end"),
        ("---\nshot: 2\n---\n{{input}}", 2, "shot", "unknown key (did you mean 'shots'?); the keys are name, system"),
        ("\n---\nshots: yes\n---\n{{input}}", 3, "shots", "must be a whole number"),
        ("---\nshots: 2.0\n---\n{{input}}", 2, "shots", "must be a whole number"),
        ("---\nshots: -1\n---\n{{input}}", 2, "shots", "greater than or equal to 0"),
        ("---\nshots: 100000\n---\n{{input}}", 2, "shots", "less than or equal to 256"),
        ("---\nchoose: closest\n---\n{{input}}", 2, "choose", "'random', 'diverse' or 'nearest'"),
        ("---\nconstrained: 1\n---\n{{input}}", 2, "constrained", "must be true or false"),
        ("---\nreason: 'true'\n---\n{{input}}", 2, "reason", "must be true or false"),
        ("---\nname: 5\n---\n{{input}}", 2, "name", "write it in quotes"),
        ("---\nname: a/b\n---\n{{input}}", 2, "name", "letters, digits"),
        ("---\nname: " + "n" * 81 + "\n---\n{{input}}", 2, "name", "80"),
        ("---\nsystem: [a]\n---\n{{input}}", 2, "system", "must be text"),
        ("---\nshots: 1\nshots: 2\n---\n{{input}}", 3, "shots", "this key stands here twice"),
        ("---\nconstrained: true\nreason: true\n---\n{{input}}", 3, "constrained and reason", "no room for reasons"),
        ("---\n- shots\n---\n{{input}}", 2, "", "a mapping of keys"),
        ("---\njust text\n---\n{{input}}", 2, "", "a mapping of keys"),
        ("---\nshots: 1\nsystem: &a x\nname: *a\n---\n{{input}}", 4, "", "YAML aliases"),
        ("---\nshots: 1\nsystem: [\n---\n{{input}}", 3, "", "not valid YAML"),
        ("---\nsystem: {{labels}}\n---\n{{input}}", 2, "", "(text that begins with a brace stands in quotes)"),
        ("---\nshots: !!python/name:os.system\n---\n{{input}}", 2, "", "not valid YAML"),
        ("---\n? [a]\n: b\n---\n{{input}}", 2, "", "not valid YAML"),
        ("---\nsystem: 'a\x07b'\n---\n{{input}}", 0, "", "not valid YAML"),
        ("---\nsystem: " + "[" * 60_000 + "\n---\n{{input}}", 2, "", "nested too deep"),
        ("---\nsystem: " + "a " * 40_000 + "\n---\n{{input}}", 2, "", "the front matter is longer"),
        (b"caf\xe9\n{{input}}", 1, "", "not UTF-8 text"),
        (b"ok\ncaf\xe9\n{{input}}", 2, "", "not UTF-8 text"),
        (b"\xff\xfe{\x00", 0, "", "UTF-16"),
        (b"{{input}}\n\x00", 2, "", "a NUL byte"),
        (b"x" * (MAX_BYTES + 1), 0, "", "larger than 1 MB"),
    ],
)
def test_a_fault_is_told_with_its_line_and_the_template_left_out(
    tmp_path: Path, content: str | bytes, line: int, key: str, message: str
) -> None:
    (fault,) = faults(tmp_path, content)
    assert (fault[0], fault[1]) == (line, key)
    assert message in fault[2]


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, a="---\nshot: 1\nchose: x\n---\n{{a}}\n{{b}}", b="{{input}}", c="no mark")
    assert [one.name for one in templates] == ["b"]
    assert [(Path(one.file).name, one.line, one.key) for one in problems] == [
        ("a.md", 2, "shot"),
        ("a.md", 3, "chose"),
        ("a.md", 5, "{{a}}"),
        ("a.md", 6, "{{b}}"),
        ("a.md", 0, "{{input}}"),
        ("c.md", 0, "{{input}}"),
    ]


def test_two_files_with_one_name_are_a_problem_whatever_its_case(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, a="---\nname: Same\n---\n{{input}} 1", b="---\nname: same\n---\n{{input}} 2")
    assert [one.frame for one in templates] == ["{{input}} 1"]
    assert [str(one) for one in problems] == [
        f"{tmp_path}/prompts/b.md: name: 'same' is the name of prompts/a.md too: give one of them another `name:`"
    ]


def test_a_file_name_that_is_no_name_needs_one(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, **{"two words": "{{input}}", "a b": "---\nname: ab\n---\n{{input}}"})
    assert [one.name for one in templates] == ["ab"]
    assert [(Path(one.file).name, one.key) for one in problems] == [("two words.md", "name")]


def test_links_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("{{input}} secret")
    folder = tmp_path / "prompts"
    folder.mkdir()
    os.symlink(tmp_path / "secret.md", folder / "out.md")
    os.symlink("loop.md", folder / "loop.md")
    os.symlink("gone.md.txt", folder / "gone.md")
    os.symlink("good.md", folder / "link.md")
    os.mkfifo(folder / "pipe.md")
    (folder / "folder.md").mkdir()
    templates, problems = read(tmp_path, good="{{input}}")
    assert [one.name for one in templates] == ["good", "link"]
    assert {Path(one.file).stem: one.message for one in problems} == {
        "out": "a link that leads out of the folder of prompts",
        "loop": "a link that leads nowhere or in a circle",
        "gone": "a link that leads nowhere or in a circle",
        "pipe": "this is no regular file (a pipe, a device or a socket)",
        "folder": "this is a folder, not a file",
    }


def test_so_many_files_are_no_prompts(tmp_path: Path) -> None:
    templates, problems = read(tmp_path, **{f"p{at}": "{{input}}" for at in range(101)})
    assert templates == ()
    assert [one.message for one in problems] == ["101 prompts: 100 are read at most; leave some out"]


def test_json_in_a_prompt_is_plain_text(tmp_path: Path) -> None:
    body = '{"a": {"b": {}}, "c": [{"d": 1}]} {x} }} {{ and {{{input}}}\n{"input": "{{input}}"}'
    templates, problems = read(tmp_path, json=body)
    assert problems == []
    assert templates[0].frame == body
    asked = PromptFormat("", frame=templates[0].frame).user("Q")
    assert asked == '{"a": {"b": {}}, "c": [{"d": 1}]} {x} }} {{ and {Q}\n{"input": "Q"}'


def test_a_mark_in_what_is_filled_in_is_text() -> None:
    values = {"instruction": "see {{labels}}", "labels": "a\n{{schema}}", "schema": "{{instruction}}"}
    assert filled("{{ instruction }}|{{labels}}|{{schema}}|{{input}}|{{other}}", values) == (
        "see {{labels}}|a\n{{schema}}|{{instruction}}|{{input}}|{{other}}"
    )
    # Nor is one in the data.
    assert PromptFormat("", frame="<{{input}}> <{{input}}>").user("{{input}}{{labels}}") == (
        "<{{input}}{{labels}}> <{{input}}{{labels}}>"
    )


def test_marks_need_something_to_put_there(tmp_path: Path) -> None:
    every = Template("all", "{{ instruction }}", "{{labels}} {{schema}} {{labels}} {{input}}", file="prompts/all.md")
    none = Template("none", "", "{{input}}", file="prompts/none.md")
    file = str(tmp_path / "prompts" / "all.md")
    assert template_problems([every, none], tmp_path, mark_values("Do.", ["a"], {})) == []
    assert template_problems([every, none], tmp_path, mark_values("", [], None)) == [
        Problem(file, 0, "{{instruction}}", "the task has no instruction to put here"),
        Problem(file, 0, "{{labels}}", "the task has no labels to put here"),
        Problem(file, 0, "{{schema}}", "the task has no output schema to put here"),
    ]


@pytest.mark.parametrize(
    ("frame", "labels", "schema"),
    [
        ("{{labels}} {{input}}", ["a", "{{input}}"], None),
        ("{{schema}} {{input}}", [], {"title": "{{input}}"}),
        # A mark that only comes about by the braces around a value.
        ("{{{labels}}} {{input}}", ["{input}"], None),
    ],
)
def test_what_is_filled_in_must_not_write_the_mark_of_the_question(
    tmp_path: Path, frame: str, labels: list[str], schema: dict[str, str] | None
) -> None:
    template = Template("t", "{{instruction}}", frame, file="prompts/t.md")
    (problem,) = template_problems([template], tmp_path, mark_values("Do.", labels, schema))
    assert (problem.key, problem.file) == ("{{input}}", str(tmp_path / "prompts" / "t.md"))
    assert template_problems([template], tmp_path, mark_values("in {{input}}", ["a"], {"a": 1})) == []


def test_values_are_a_label_a_line_and_compact_json() -> None:
    assert mark_values("Do.", ["a", "b c"], {"ü": [1, {"x": 2}]}) == {
        "instruction": "Do.",
        "labels": "a\nb c",
        "schema": '{"ü":[1,{"x":2}]}',
    }


def test_a_flood_of_faults_is_cut_and_quick(tmp_path: Path) -> None:
    found = faults(tmp_path, "{{input}}\n" + "{{x}}\n" * 100_000 + "{{labels\n" * 1000)
    assert [line for line, _, _ in found] == list(range(2, 22))
    # No backtracking over blanks that nothing closes.
    templates, problems = read(tmp_path, one="{{input}} {{" + " " * 900_000)
    assert ([one.name for one in templates], problems) == (["one"], [])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["---", "\n", "{{", "}}", "{", "}", "input", " ", "labels", "x", "a: 1", "shots: 2", "\r", "&", "*a"])
    )
)
def test_any_text_is_a_template_or_has_a_fault(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """And what is read keeps its question: every mark is known, and the question stands in it."""
    templates, problems = read(tmp_path_factory.getbasetemp(), drawn="".join(parts))
    assert bool(templates) != bool(problems)
    for one in templates:
        asked = PromptFormat("", frame=filled(one.frame, {"labels": "L"})).user("\0")
        assert "\0" in asked
        assert "{{input}}" not in asked
        assert "{{labels}}" not in asked


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    templates, problems = read(tmp_path_factory.getbasetemp(), drawn=b"---\n" + content + b"\n---\n{{input}}")
    assert bool(templates) != bool(problems)
