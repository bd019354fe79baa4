"""The user's own prompts: Markdown files with front matter, in the folder `prompts` beside the task file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from evals.candidate import INPUT
from evals.errors import Problem, did_you_mean
from evals.task.reading.text_file import FileError, first_bytes, no_text, opened
from evals.task.strict import Strict

Choose = Literal["random", "diverse", "nearest"]
MAX_BYTES = 1024**2
MAX_FILES = 100
MAX_SHOTS = 256
FENCE = "---"
MAX_HEAD = 64 * 1024
MAX_DEPTH = 8
MAX_FAULTS = 20
# What may stand between double braces, and what the task must have for it.
MARKS = {"input": "questions", "instruction": "instruction", "labels": "labels", "schema": "output schema"}
MARK = re.compile(r"\{\{([^{}\n]*)\}\}")
# A mark of ours that is not closed is no text that anybody means.
UNCLOSED = re.compile(r"\{\{[ \t]*(" + "|".join(MARKS) + r")\b(?![ \t]*\}\})")


@dataclass(frozen=True)
class Template:
    """One file. `frame` is the user's turn, with the mark `{{input}}` in it once or more; what else may stand between double
    braces (`{{instruction}}`, `{{labels}}`, `{{schema}}`, also in `system`) is filled in when the arm is made.

    `shots` demonstrations are chosen as `choose` says; `constrained` enforces the form of answers, `reason` lets the model think first.
    `file` is the file's path below the task's folder.
    """

    name: str
    system: str
    frame: str
    shots: int = 0
    choose: Choose = "nearest"
    constrained: bool = False
    reason: bool = False
    file: str = ""


class FrontMatter(Strict):
    """What may stand between the lines `---` at a file's head; `name` is the file's own where it is left out."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$", max_length=80)
    system: str = ""
    shots: int = Field(default=0, ge=0, le=MAX_SHOTS, strict=True)
    choose: Choose = "nearest"
    constrained: bool = Field(default=False, strict=True)
    reason: bool = Field(default=False, strict=True)


def read_templates(folder: Path, problems: list[Problem]) -> tuple[Template, ...]:
    """The templates of `folder`/*.md in the order of their names; none where there is no such folder. Faults go to `problems`.

    Hidden files are passed over. A template with a fault is left out.
    """
    try:
        every = (name for name in os.listdir(folder) if name.lower().endswith(".md") and not name.startswith("."))
        names = sorted(name for name in every if name.lower() != "readme.md")
    except OSError as error:
        if not os.path.lexists(folder):
            return ()
        problems.append(Problem(str(folder), 0, "", f"this folder of prompts cannot be read: {error.strerror or error}"))
        return ()
    if len(names) > MAX_FILES:
        problems.append(Problem(str(folder), 0, "", f"{len(names):,} prompts: {MAX_FILES} are read at most; leave some out"))
        return ()
    root = folder.resolve()
    found: dict[str, Template] = {}
    for name in names:
        path = folder / name
        try:
            template = _template(path, _text(path, root), problems)
        except FileError as error:
            problems.append(Problem(str(path), error.line, "", error.message))
            continue
        if template is None:
            continue
        # Some file systems take names that differ in case for one.
        other = found.setdefault(template.name.lower(), template)
        if other is not template:
            message = f"{template.name!r} is the name of {other.file} too: give one of them another `name:`"
            problems.append(Problem(str(path), 0, "name", message))
    return tuple(sorted(found.values(), key=lambda one: one.name))


def mark_values(instruction: str, labels: Sequence[str], schema: Mapping[str, Any] | None) -> dict[str, str]:
    """What the marks stand for in a task: one label a line, the schema as compact JSON; empty where there is none."""
    compact = "" if schema is None else json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return {"instruction": instruction, "labels": "\n".join(labels), "schema": compact}


def template_problems(templates: Sequence[Template], folder: Path, values: Mapping[str, str]) -> list[Problem]:
    """Marks that the task has nothing for, and values that would write the mark of the question into a prompt.

    `folder` is the task's, `values` are those of `mark_values`.
    """
    problems = []
    for template in templates:
        file = str(folder / template.file)
        for mark in dict.fromkeys(marks(f"{template.system}\n{template.frame}")):
            if mark != "input" and not values[mark]:
                problems.append(Problem(file, 0, f"{{{{{mark}}}}}", f"the task has no {MARKS[mark]} to put here"))
        if filled(template.frame, values).count(INPUT) != template.frame.count(INPUT):
            message = "the task's instruction, labels or schema hold this mark, and the question would be written into them"
            problems.append(Problem(file, 0, INPUT, message))
    return problems


def marks(text: str) -> list[str]:
    """What stands between double braces, in order."""
    return [found.strip() for found in MARK.findall(text)]


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with each mark replaced by its value, in one pass: what a value holds is text. Other marks stay."""
    return MARK.sub(lambda found: values.get(found[1].strip(), found[0]), text)


def _text(path: Path, root: Path) -> str:
    """The text of one file, lines ended by a newline. Raises FileError."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # Python before 3.13 calls a circle a RuntimeError
            raise FileError("a link that leads nowhere or in a circle") from error
        if root not in target.parents:
            raise FileError("a link that leads out of the folder of prompts")
    if name := no_text(first_bytes(path, limit=MAX_BYTES)):
        raise FileError(f"this is {name}")
    with opened(path) as file:
        text = file.read().replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise FileError("a NUL byte: this is no text", text.count("\n", 0, text.index("\0")) + 1)
    return text


def _template(path: Path, text: str, problems: list[Problem]) -> Template | None:
    """One file's template; None where it has faults, which are added to `problems`. Raises FileError."""
    parts = _parts(text)
    faults: list[Problem] = []
    front, lines = _front_matter(parts.head, parts.head_line, path, faults)
    faults += _body_faults(parts, path)
    if front:
        if not front.name:
            faults += _name_faults(path)
        found = _mark_faults(front.system, path, 0, body=False)
        faults += [replace(one, line=lines.get("system", 0)) for one in found]
        if front.constrained and front.reason:
            message = "an answer that is constrained from its first word has no room for reasons: leave one of the two out"
            faults.append(Problem(str(path), lines["reason"], "constrained and reason", message))
    problems += faults
    if faults or front is None:
        return None
    frame = MARK.sub(lambda mark: f"{{{{{mark[1].strip()}}}}}", parts.body.strip())
    file = f"{path.parent.name}/{path.name}"
    name = front.name or path.stem
    return Template(name, front.system.strip(), frame, front.shots, front.choose, front.constrained, front.reason, file)


@dataclass(frozen=True)
class Parts:
    """Front matter (empty where there is none) and body, each with the line that it begins at."""

    head: str
    head_line: int
    body: str
    body_line: int


def _parts(text: str) -> Parts:
    """Raises FileError where the front matter has no end."""
    lines = text.split("\n")
    first = next((at for at, line in enumerate(lines) if line.strip()), 0)
    if lines[first].rstrip() != FENCE:
        return Parts("", 1, text, 1)
    end = next((at for at in range(first + 1, len(lines)) if lines[at].rstrip() == FENCE), 0)
    if not end:
        raise FileError(f"the front matter has no end: a line of `{FENCE}` closes it", first + 1)
    return Parts("\n".join(lines[first + 1 : end]), first + 2, "\n".join(lines[end + 1 :]), end + 2)


def _body_faults(parts: Parts, path: Path) -> list[Problem]:
    faults = _mark_faults(parts.body, path, parts.body_line, body=True)
    if not parts.body.strip():
        message = f"the prompt is empty: write the user's turn, with {INPUT} where the question goes"
        faults.append(Problem(str(path), 0, "", message))
    elif "input" not in marks(parts.body):
        hint = ", in double braces" if re.search(r"\{[ \t]*input[ \t]*\}", parts.body) else ""
        faults.append(Problem(str(path), 0, INPUT, f"this mark must stand where the question goes{hint}"))
    return faults


def _front_matter(text: str, start: int, path: Path, faults: list[Problem]) -> tuple[FrontMatter | None, dict[str, int]]:
    """The settings, None where they have faults, and the line of each key. `start` is the line that the text begins at."""
    try:
        if fault := _refused(text, start):
            faults.append(Problem(str(path), *fault))
            return None, {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        given = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "{{" in text:
            message += " (text that begins with a brace stands in quotes)"
        faults.append(Problem(str(path), mark.line + start if mark else 0, "", f"not valid YAML: {message}"))
        return None, {}
    if given is None:
        return FrontMatter(), {}
    if not isinstance(given, dict) or not isinstance(node, yaml.MappingNode):
        faults.append(Problem(str(path), start, "", f"front matter is a mapping of keys, such as `shots: 4`: {_known()}"))
        return None, {}
    lines: dict[str, int] = {}
    for key, _ in node.value:
        # YAML lets a later key overwrite an earlier one in silence.
        if key.value in lines:
            faults.append(Problem(str(path), key.start_mark.line + start, str(key.value), "this key stands here twice"))
        lines.setdefault(str(key.value), key.start_mark.line + start)
    try:
        return FrontMatter.model_validate({str(key): value for key, value in given.items()}), lines
    except ValidationError as error:
        for one in error.errors():
            key = str(one["loc"][0])
            faults.append(Problem(str(path), lines.get(key, 0), key[:60], _fault(one, key[:60])))
        return None, lines


def _refused(text: str, start: int) -> tuple[int, str, str] | None:
    """Line, key and message of what no front matter needs: aliases, and what takes YAML minutes to read. Raises YAMLError."""
    if len(text) > MAX_HEAD:
        return start, "", f"the front matter is longer than {MAX_HEAD // 1024} thousand characters"
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + start if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            return line, "", "YAML aliases (*name) are not allowed here"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return line, "", f"nested too deep: more than {MAX_DEPTH} levels"
    return None


def _fault(error: Any, key: str) -> str:
    """What is wrong with a value, in words."""
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(key, FrontMatter.model_fields)}; {_known()}"
    if kind == "string_type":
        return "must be text: write it in quotes"
    if kind == "bool_type":
        return "must be true or false"
    if kind == "int_type":
        return "must be a whole number"
    if kind == "string_pattern_mismatch":
        return "may hold letters, digits, `_`, `.` and `-` only"
    return str(error["msg"])


def _known() -> str:
    return f"the keys are {', '.join(FrontMatter.model_fields)}"


def _name_faults(path: Path) -> list[Problem]:
    """A file's own name must do as the prompt's, where no other is given."""
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", path.stem):
        return []
    message = "a file is named with letters, digits, `_`, `.` and `-` (80 at most), or says its `name:` in the front matter"
    return [Problem(str(path), 0, "name", message)]


def _mark_faults(text: str, path: Path, start: int, *, body: bool) -> list[Problem]:
    """Double braces around what is no mark, or none for this place, the first MAX_FAULTS. `start` is the text's first line."""
    known = ", ".join(f"{{{{{mark}}}}}" for mark in MARKS if body or mark != "input")
    found = []
    closed = set()
    for match in MARK.finditer(text):
        mark = match[1].strip()
        closed.add(match.start())
        if mark == "input" and not body:
            found.append((match, "belongs into the prompt below: the system message is the same for every question"))
        elif mark not in MARKS and len(found) < MAX_FAULTS:
            near = did_you_mean(mark[:60].lower(), MARKS)
            found.append((match, f"unknown placeholder{near}; there are {known}, and single braces are plain text"))
    unclosed = (match for match in UNCLOSED.finditer(text) if match.start() not in closed)
    found += [(match, "this placeholder is not closed: two braces `}}` end it") for match in islice(unclosed, MAX_FAULTS)]
    return [
        Problem(str(path), start + text.count("\n", 0, match.start()), match[0][:60], message)
        for match, message in sorted(found, key=lambda one: one[0].start())[:MAX_FAULTS]
    ]
