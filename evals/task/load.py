"""A task file and everything that it names, read, checked and frozen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.candidate import AnswerFormat
from evals.engines.models import PINNED_EMBEDDINGS, PINNED_MODELS
from evals.errors import AdvisorError, Problem, ProblemsError
from evals.metrics import default_metric
from evals.metrics.number import parse_number
from evals.metrics.options import Options, plain_options
from evals.metrics.structured import parse_object
from evals.records import content_hash
from evals.task.example import Example
from evals.task.reading.documents import Document, read_documents
from evals.task.reading.formats import Row, read_rows
from evals.task.spec import HubDataset, OutputType, TaskSpec, read_spec
from evals.task.splits import NAMES, make_splits, named_groups, split_problems, time_problems

MAX_LABELS = 100
# How a server is reached changes no answer, and data's paths none either: neither is part of a run's identity.
NOT_HASHED: Any = {"data": True, "model": {"api_key_env", "max_concurrency", "request_timeout"}}
ONLY_MEND = "mend these and run `advisor check` again."
MEND = "mend these (`advisor check --fix clean.jsonl` writes a copy without the bad rows) and run `advisor check` again."
PINNED = {*PINNED_MODELS, *PINNED_EMBEDDINGS}


@dataclass(frozen=True)
class Task:
    """What the stages work on. `said` are the sentences about what was inferred.

    `rows` holds the splits with the place of each row; `liked_or_not` are rows of preference data (`rejected` or `desirable`
    is set) for training by preference.
    """

    spec: TaskSpec
    name: str
    folder: Path
    instruction: str
    output_type: OutputType
    labels: tuple[str, ...]
    schema: dict[str, Any] | None
    rows: Mapping[str, tuple[Row, ...]]
    documents: tuple[Document, ...]
    liked_or_not: tuple[Example, ...]
    said: tuple[str, ...]

    @cached_property
    def train(self) -> tuple[Example, ...]:
        return self.split("train")

    @cached_property
    def dev(self) -> tuple[Example, ...]:
        return self.split("dev")

    @cached_property
    def test(self) -> tuple[Example, ...]:
        return self.split("test")

    @cached_property
    def metric_options(self) -> tuple[Options, ...]:
        return self.spec.metric or (plain_options(default_metric(self.output_type)),)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, as records call them."""
        return tuple(one.label for one in self.metric_options)

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    def split(self, name: str) -> tuple[Example, ...]:
        return tuple(row.example for row in self.rows[name])

    def with_split(self, name: str, examples: Sequence[Example]) -> Task:
        """The same task with other rows in one split."""
        return replace(self, rows={**self.rows, name: tuple(Row(one, "", 0) for one in examples)})

    @cached_property
    def _hash(self) -> str:
        spec = self.spec.model_dump(mode="json", exclude=NOT_HASHED)
        for metric in spec["metric"]:
            # People's scores of a run's answers come after the run, and belong to it.
            metric.pop("labels", None)
        return content_hash(
            {
                "spec": spec,
                "name": self.name,
                "instruction": self.instruction,
                "rows": [self.train, self.dev, self.test],
                "schema": self.schema,
                "liked_or_not": self.liked_or_not,
                "documents": self.documents,
            }
        )

    def hash(self) -> str:
        """Of everything that a run depends on: settings, rows, instruction, documents. Where files lie does not count."""
        return self._hash

    def located(self, model: str) -> str:
        """The model's name, or its path where it is a folder or GGUF file beside the task file (paths are relative to it)."""
        path = self.folder / model
        beside = model not in PINNED and (path.is_dir() or (path.suffix == ".gguf" and path.is_file()))
        return str(path) if beside else model

    def answer_format(self, max_new_tokens: int) -> AnswerFormat:
        return AnswerFormat(self.output_type, max_new_tokens, self.labels)


@dataclass(frozen=True)
class Intake:
    """A task as far as it could be read, with everything that is wrong: `advisor check --fix` works on what is here.

    `given` are the rows of each file, as they were read.
    """

    task: Task
    problems: tuple[Problem, ...]
    given: Mapping[str, tuple[Row, ...]]


def load_task(path: Path) -> Task:
    """Read a task file or its folder. Raises ProblemsError with everything that is wrong, AdvisorError where there is none."""
    intake = read_intake(path)
    if intake.problems:
        raise ProblemsError(intake.problems, do=MEND if any(one.line for one in intake.problems) else ONLY_MEND)
    return intake.task


def read_intake(path: Path) -> Intake:
    """Read a task file and what it names, bad rows and all. Raises as `read_spec` where the task file itself is no good."""
    file = path / "task.yaml" if path.is_dir() else path
    spec = read_spec(file)
    folder = file.parent
    said: list[str] = []
    problems: list[Problem] = []

    given: dict[str, list[Row]] = {}
    whole: dict[str, tuple[Row, ...]] = {}
    liked_or_not: list[Example] = []
    for name in NAMES:
        source = getattr(spec.data, name)
        if source is None:
            continue
        rows, found, detected = read_rows(source, folder, spec.columns, split=name)
        problems += found
        whole[name] = tuple(rows)
        if detected:
            said.append(f"{name}: {len(rows)} rows of {_called(source)}, format {detected}")
        given[name] = _wanted(rows, name, liked_or_not, said)
    if spec.data.preferences is not None:
        rows, found, detected = read_rows(spec.data.preferences, folder, spec.columns, split="train")
        problems += [*found, *_no_preference(rows)]
        liked_or_not += [row.example for row in rows]
        said.append(f"preferences: {len(rows)} rows of {_called(spec.data.preferences)}, format {detected}")
    documents: list[Document] = []
    if spec.data.documents:
        documents, found = read_documents(folder / spec.data.documents)
        problems += found
        said.append(f"documents: {len(documents)} below {spec.data.documents}")

    instruction = _instruction(spec, folder, problems)
    schema = _schema(folder / spec.output.json_schema, problems) if spec.output.json_schema else None
    unreadable = bool(problems)
    output_type, labels = _output(spec, [row.example.target for row in given["train"]], said)
    every = [row for name in NAMES for row in given.get(name, ())]
    timeless = time_problems(given["train"], spec.columns.time)
    problems += timeless
    grouped, found_alike = named_groups(given)
    if found_alike:
        said.append(
            f"{found_alike} rows are nearly like another one: each such cluster is a group, kept in one split where we split"
        )
    splits = {name: grouped.get(name, ()) for name in NAMES}
    made: list[str] = []
    if not timeless:
        splits, made = make_splits(grouped, spec.seed, by_label=output_type == "label")
    said += made
    # Of a file that was read in part only its rows are accused, not their number.
    problems += [one for one in split_problems(splits) if one.line or not unreadable]
    # Labels that were inferred from half a file accuse the rows of the other half.
    problems += _target_problems(spec, folder, output_type, spec.output.labels if unreadable else labels, every, schema)
    problems += _metric_problems(spec, str(file))
    if spec.gate.max_cost_per_1k is not None and not spec.prices.model_fields_set:
        problems.append(Problem(str(file), 0, "gate.max_cost_per_1k", "a limit on cost needs `prices:`"))
    if not spec.metric:
        said.append(f"metric: {default_metric(output_type)}, from the output type")
    name = spec.name or folder.resolve().name
    task = Task(
        spec,
        name,
        folder,
        instruction,
        output_type,
        labels,
        schema,
        splits,
        tuple(documents),
        tuple(liked_or_not),
        tuple(said),
    )
    return Intake(task, tuple(problems), whole)


def _called(source: str | HubDataset) -> str:
    return source if isinstance(source, str) else source.dataset_name


def _wanted(rows: list[Row], name: str, liked_or_not: list[Example], said: list[str]) -> list[Row]:
    """The rows whose target is an answer to give. Training rows with a verdict of people are kept for preference training."""
    if name == "train":
        liked_or_not += [row.example for row in rows if row.example.rejected is not None or row.example.desirable is not None]
    wanted = [row for row in rows if row.example.desirable is not False]
    if len(wanted) < len(rows):
        kept = ": kept for preference training, never a target" if name == "train" else ": not asked"
        said.append(f"{name}: {len(rows) - len(wanted)} of {len(rows)} answers are marked undesirable{kept}")
    return wanted


def _no_preference(rows: list[Row]) -> list[Problem]:
    return [
        Problem(row.file, row.line, "data.preferences", "a row of preferences has `chosen` and `rejected`, or a `label`")
        for row in rows
        if row.example.rejected is None and row.example.desirable is None
    ]


def _metric_problems(spec: TaskSpec, file: str) -> list[Problem]:
    if any(one.name == "json_schema" for one in spec.metric) and not spec.output.json_schema:
        return [Problem(file, 0, "metric", "json_schema checks answers against `output: {schema: FILE}`, which is missing")]
    return []


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
    spec: TaskSpec,
    folder: Path,
    output_type: OutputType,
    labels: tuple[str, ...],
    rows: list[Row],
    schema: dict[str, Any] | None,
) -> list[Problem]:
    """Targets that no right answer could have: not JSON, not of the schema, not a label, not a number."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    problems: list[Problem] = []
    code = any(one.name == "code" for one in spec.metric)
    # An empty registry: a schema that refers to an address is not fetched.
    validator: Any = None if schema is None else Draft202012Validator(schema, registry=Registry())
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
        if code and not message:
            message = _no_program(target)
        if message:
            problems.append(Problem(row.file, row.line, spec.columns.output, message))
    return problems


def _no_program(target: str) -> str:
    """Why a target is no Python that tests an answer, else an empty string."""
    import ast

    try:
        return "" if ast.parse(target).body else "the metric `code` runs the tests in the target, and there are none"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"the metric `code` runs the tests in the target, and it is no Python: {error}"


def _schema(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError, RecursionError) as error:
        reason = getattr(error, "message", str(error))
        problems.append(Problem(str(path), 0, "output.schema", f"not a JSON Schema that can be read: {reason[:200]}"))
        return None
    return schema if isinstance(schema, dict) else None


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
