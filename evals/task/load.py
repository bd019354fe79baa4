"""A task file and everything that it names, read, checked and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.candidate import AnswerFormat
from evals.engines.models import PINNED_EMBEDDINGS, PINNED_MODELS
from evals.errors import AdvisorError, Problem, ProblemsError
from evals.metrics import default_metric
from evals.metrics.options import Options, plain_options
from evals.records import content_hash
from evals.task.example import Example
from evals.task.reading.documents import Document, documents_hash, read_documents
from evals.task.reading.formats import Row, read_rows
from evals.task.reading.templates import Template, mark_values, read_templates, template_problems
from evals.task.spec import HubDataset, OutputType, TaskSpec, read_spec
from evals.task.splits import NAMES, make_splits, named_groups, split_problems, time_problems
from evals.task.targets import metric_problems, output_of, read_schema, target_problems
from evals.task.tools import Tool, read_tools, tool_problems

# How a server is reached changes no answer, and data's paths none either: neither is part of a run's identity.
NOT_HASHED: Any = {
    "data": True,
    "model": {"api_key_env", "max_concurrency", "request_timeout"},
    "rag": {"qdrant": {"api_key_env", "timeout"}},
}
# The folder of the user's own prompts, beside the task file.
PROMPTS = "prompts"
ONLY_MEND = "mend these and run `advisor check` again."
MEND = "mend these (`advisor check --fix clean.jsonl` writes a copy without the bad rows) and run `advisor check` again."
PINNED = {*PINNED_MODELS, *PINNED_EMBEDDINGS}


@dataclass(frozen=True)
class Task:
    """What the stages work on. `said` are the sentences about what was inferred.

    `rows` holds the splits with the place of each row; `liked_or_not` are rows of preference data (`rejected` or `desirable`
    is set) for training by preference: those of train, and `preferences`, which `data.preferences` names. `replay` are the user's
    general rows (`data.replay`), which training mixes in.
    """

    spec: TaskSpec
    name: str
    folder: Path
    instruction: str
    output_type: OutputType
    labels: tuple[str, ...]
    schema: dict[str, Any] | None
    rows: Mapping[str, tuple[Row, ...]]
    documents: Sequence[Document]
    liked_or_not: tuple[Example, ...]
    said: tuple[str, ...]
    templates: tuple[Template, ...] = ()
    tools: tuple[Tool, ...] = ()
    preferences: tuple[Row, ...] = ()
    replay: tuple[Row, ...] = ()

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
                "documents": self.documents_hash,
                "templates": self.templates,
                "tools": self.tools,
                **({"replay": [row.example for row in self.replay]} if self.replay else {}),
            }
        )

    @cached_property
    def documents_hash(self) -> str:
        return documents_hash(self.documents)

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

    whole, given, liked_or_not, preferences = _read_rows(spec, folder, said, problems)
    replay = _read_replay(spec, folder, said, problems)
    documents: Sequence[Document] = ()
    if spec.data.documents:
        documents, found = read_documents(folder / spec.data.documents)
        problems += found
        said.append(f"documents: {len(documents):,} below {spec.data.documents}")

    instruction = _instruction(spec, folder, problems)
    schema = read_schema(folder / spec.output.json_schema, problems) if spec.output.json_schema else None
    templates = read_templates(folder / PROMPTS, problems)
    if templates:
        said.append(f"prompts: {', '.join(one.name for one in templates)} of {PROMPTS}/")
    tools = read_tools(spec.tools, folder, problems)
    problems += tool_problems(tools, documents, str(file))
    unreadable = bool(problems)
    output_type, labels = output_of(spec, [row.example.target for row in given["train"]], said)
    values = mark_values(instruction, labels, schema)
    problems += template_problems(templates, folder, values)
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
    problems += target_problems(spec, folder, output_type, spec.output.labels if unreadable else labels, every, schema)
    problems += metric_problems(spec, str(file))
    if spec.gate.max_cost_per_1k is not None and not spec.prices.of_a_request:
        message = "a limit on cost needs the price of a request: `prices: {gpu_hour: …}`, or that of tokens"
        problems.append(Problem(str(file), 0, "gate.max_cost_per_1k", message))
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
        documents,
        tuple(liked_or_not),
        tuple(said),
        templates,
        tools,
        tuple(preferences),
        replay,
    )
    return Intake(task, tuple(problems), whole)


def _read_rows(
    spec: TaskSpec, folder: Path, said: list[str], problems: list[Problem]
) -> tuple[dict[str, tuple[Row, ...]], dict[str, list[Row]], list[Example], list[Row]]:
    """The rows of each file as they were read, those of them that are answers to give, the preference data, and its own file's rows."""
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
    preferences: list[Row] = []
    if spec.data.preferences is not None:
        preferences, found, detected = read_rows(spec.data.preferences, folder, spec.columns, split="train")
        problems += [*found, *_no_preference(preferences)]
        liked_or_not += [row.example for row in preferences]
        said.append(f"preferences: {len(preferences)} rows of {_called(spec.data.preferences)}, format {detected}")
    return whole, given, liked_or_not, preferences


def _read_replay(spec: TaskSpec, folder: Path, said: list[str], problems: list[Problem]) -> tuple[Row, ...]:
    """The user's general rows, of any of our formats."""
    if spec.data.replay is None:
        return ()
    rows, found, detected = read_rows(spec.data.replay, folder, spec.columns, split="train")
    problems += found
    if detected:
        said.append(f"replay: {len(rows)} rows of {_called(spec.data.replay)}, format {detected}")
    return tuple(row for row in rows if row.example.desirable is not False and row.example.target.strip())


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
