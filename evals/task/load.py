"""A task file and everything that it names, read, checked and frozen."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.candidate import AnswerFormat
from evals.engines.models import PINNED_EMBEDDINGS, PINNED_MODELS
from evals.errors import AdvisorError, Problem, ProblemsError
from evals.metrics import default_metric
from evals.metrics.number import parse_number
from evals.metrics.structured import parse_object
from evals.records import content_hash
from evals.task.example import Example
from evals.task.formats import Document, Row, read_documents, read_rows
from evals.task.spec import OutputType, TaskSpec, read_spec
from evals.task.splits import NAMES, make_splits, split_problems

MAX_LABELS = 100
# How a server is reached changes no answer, and data's paths none either: neither is part of a run's identity.
NOT_HASHED: Any = {"data": True, "model": {"api_key_env", "max_concurrency", "request_timeout"}}
PINNED = {*PINNED_MODELS, *PINNED_EMBEDDINGS}


@dataclass(frozen=True)
class Task:
    """What the stages work on. `said` are the sentences about what was inferred."""

    spec: TaskSpec
    name: str
    folder: Path
    instruction: str
    output_type: OutputType
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    documents: tuple[Document, ...]
    said: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    def split(self, name: str) -> tuple[Example, ...]:
        return {"train": self.train, "dev": self.dev, "test": self.test}[name]

    def hash(self) -> str:
        """Of everything that a run depends on: settings, rows, instruction, documents. Where files lie does not count."""
        return content_hash(
            {
                "spec": self.spec.model_dump(mode="json", exclude=NOT_HASHED),
                "name": self.name,
                "instruction": self.instruction,
                "rows": [self.train, self.dev, self.test],
                "documents": self.documents,
            }
        )

    def located(self, model: str) -> str:
        """The model's name, or its path where it is a folder or GGUF file beside the task file (paths are relative to it)."""
        path = self.folder / model
        beside = model not in PINNED and (path.is_dir() or (path.suffix == ".gguf" and path.is_file()))
        return str(path) if beside else model

    def answer_format(self, max_new_tokens: int) -> AnswerFormat:
        return AnswerFormat(self.output_type, max_new_tokens, self.labels)


def load_task(path: Path) -> Task:
    """Read a task file or its folder. Raises ProblemsError with everything that is wrong, AdvisorError where there is none."""
    file = path / "task.yaml" if path.is_dir() else path
    spec = read_spec(file)
    folder = file.parent
    said: list[str] = []
    problems: list[Problem] = []

    given: dict[str, list[Row]] = {}
    for name in NAMES:
        relative = getattr(spec.data, name)
        if relative is None:
            continue
        rows, found, detected = read_rows(relative, folder, spec.columns)
        given[name] = rows
        problems += found
        if detected:
            said.append(f"{name}: {len(rows)} rows of {relative}, format {detected}")
    documents: list[Document] = []
    if spec.data.documents:
        documents, found = read_documents(folder / spec.data.documents)
        problems += found
        said.append(f"documents: {len(documents)} files below {spec.data.documents}")

    instruction = _instruction(spec, folder, problems)
    unreadable = bool(problems)
    splits, made = make_splits(given, spec.seed)
    said += made
    if not unreadable:
        problems += split_problems(splits)
    every = [row for name in NAMES for row in splits[name]]
    output_type, labels = _output(spec, [row.example.target for row in given["train"]], said)
    # Labels that were inferred from half a file accuse the rows of the other half.
    problems += _target_problems(spec, folder, output_type, spec.output.labels if unreadable else labels, every)
    if spec.gate.max_cost_per_1k is not None and not spec.prices.model_fields_set:
        problems.append(Problem(str(file), 0, "gate.max_cost_per_1k", "a limit on cost needs `prices:`"))
    if problems:
        raise ProblemsError(problems)

    metrics = tuple(one.label for one in spec.metric) or (default_metric(output_type),)
    if not spec.metric:
        said.append(f"metric: {metrics[0]}, from the output type")
    train, dev, test = (tuple(row.example for row in splits[name]) for name in NAMES)
    name = spec.name or folder.resolve().name
    return Task(spec, name, folder, instruction, output_type, labels, metrics, train, dev, test, tuple(documents), tuple(said))


def _instruction(spec: TaskSpec, folder: Path, problems: list[Problem]) -> str:
    """The text itself, or the file that it names (one word ending in .md or .txt)."""
    text = spec.instruction.strip()
    if not text.endswith((".md", ".txt")) or " " in text:
        return text
    path = folder / text
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), 0, "instruction", f"cannot be read: {error}"))
        return ""


def _output(spec: TaskSpec, targets: list[str], said: list[str]) -> tuple[OutputType, tuple[str, ...]]:
    """The declared output type (declared labels are one), or the one that all targets of the training file fit."""
    distinct = sorted(set(targets))
    if spec.output.labels and not spec.output.type:
        said.append("output type: label, since labels are declared")
        return "label", spec.output.labels
    if spec.output.type:
        labels = spec.output.labels or (tuple(distinct) if spec.output.type == "label" else ())
        return spec.output.type, labels
    inferred: OutputType = "text"
    if targets and all(parse_object(target) is not None for target in targets):
        inferred = "json"
    elif targets and all(parse_number(target) is not None for target in targets):
        inferred = "number"
    elif len(targets) >= 20 and 2 <= len(distinct) <= min(MAX_LABELS, len(targets) // 4):
        inferred = "label"
    said.append(f"output type: {inferred}, from the targets")
    return inferred, tuple(distinct) if inferred == "label" else ()


def _target_problems(
    spec: TaskSpec, folder: Path, output_type: OutputType, labels: tuple[str, ...], rows: list[Row]
) -> list[Problem]:
    """Targets that no right answer could have: not JSON, not of the schema, not a label, not a number."""
    from referencing.exceptions import Unresolvable

    problems: list[Problem] = []
    validator: Any = None
    if spec.output.json_schema:
        validator = _validator(folder / spec.output.json_schema, problems)
    for row in rows:
        target = row.example.target
        message = ""
        if output_type == "json":
            body = parse_object(target)
            if body is None:
                message = "the target is not a JSON object"
            elif validator is not None:
                try:
                    error = next(iter(validator.iter_errors(body)), None)
                    message = f"the target breaks the schema: {error.message[:200]}" if error else ""
                except (Unresolvable, RecursionError, re.error) as error:
                    where = str(folder / str(spec.output.json_schema))
                    reason = str(error)[:200]
                    problems.append(Problem(where, 0, "output.schema", f"the schema cannot be followed: {reason}"))
                    validator = None
        elif output_type == "number" and parse_number(target) is None:
            message = "the target is not a number"
        elif output_type == "label" and labels and target not in labels:
            message = f"the target {target[:60]!r} is not one of the labels (declare it in `output: {{labels: […]}}`)"
        if message:
            problems.append(Problem(row.file, row.line, spec.columns.output, message))
    return problems


def _validator(path: Path, problems: list[Problem]) -> Any:
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry

    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError, RecursionError) as error:
        reason = getattr(error, "message", str(error))
        problems.append(Problem(str(path), 0, "output.schema", f"not a JSON Schema that can be read: {reason[:200]}"))
        return None
    # An empty registry: a schema that refers to an address is not fetched.
    return Draft202012Validator(schema, registry=Registry())


def find_task(name: str, examples: Path) -> Path:
    """A task file, its folder, or a shipped example's name."""
    path = Path(name)
    if path.exists():
        return path
    if (examples / name / "task.yaml").is_file():
        return examples / name
    known = sorted(one.parent.name for one in examples.glob("*/task.yaml"))
    raise AdvisorError(
        "there is no such task file, folder or example",
        where=name,
        do=f"name a task.yaml, its folder, or one of the examples: {', '.join(known)}.",
    )
