"""`task.yaml`: what a person writes. Unknown keys are errors, and all problems are found in one pass, with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from evals.errors import AdvisorError, Problem, ProblemsError, did_you_mean
from evals.metrics.options import MetricOptions, metric_options
from evals.task.model import ModelSpec
from evals.task.strict import Strict

OutputType = Literal["text", "label", "json", "number"]
NonNegative = Field(ge=0)


class HubDataset(Strict):
    """A dataset of the Hugging Face Hub (or a local folder of one), by the names that TRL uses."""

    dataset_name: str = Field(min_length=1)
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None


class DataSpec(Strict):
    """Files, relative to the task file, or datasets of the Hub. `dev` and `test` are split from `train` where they are left out.

    `documents` is a folder (Markdown, text, HTML, PDF) or a JSON Lines file of `id` and `text`; `preferences` holds rows of
    `prompt`, `chosen`, `rejected`.
    """

    train: str | HubDataset
    dev: str | HubDataset | None = None
    test: str | HubDataset | None = None
    documents: str | None = None
    preferences: str | HubDataset | None = None


class ColumnsSpec(Strict):
    """Names of the columns where they are not the usual ones."""

    input: str = "input"
    output: str = "output"
    id: str = "id"
    group: str = "group"
    time: str = "time"
    gold_passages: str = "gold_passages"
    paraphrases: str = "paraphrases"
    messages: str = "messages"
    images: str = "images"


class OutputSpec(Strict):
    """What an answer is. Inferred from the targets where it is left out."""

    type: OutputType | None = None
    labels: tuple[str, ...] = ()
    json_schema: str | None = Field(default=None, alias="schema")


class EmbeddingsSpec(Strict):
    model_name_or_path: str = "all-MiniLM-L6-v2"


class TrafficSpec(Strict):
    requests_per_month: PositiveInt
    months: PositiveInt = 12


class PricesSpec(Strict):
    """In one currency of the user's choice: an hour of the machine, a million tokens, one labelled row."""

    gpu_hour: float | None = Field(default=None, ge=0)
    input_per_million: float | None = Field(default=None, ge=0)
    output_per_million: float | None = Field(default=None, ge=0)
    label: float | None = Field(default=None, ge=0)


class GateSpec(Strict):
    """The team's policy. `min_gain` and `max_forgetting` are differences of scores in [0, 1]."""

    min_gain: float = Field(default=0.03, ge=0, le=1)
    max_forgetting: float = Field(default=0.05, gt=0, le=1)
    max_cost_per_1k: float | None = Field(default=None, gt=0)


class TaskSpec(Strict):
    """The whole file. Only `data` and `model` are required."""

    schema_version: Literal[1] = 1
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$", max_length=80)
    instruction: str = ""
    data: DataSpec
    columns: ColumnsSpec = ColumnsSpec()
    output: OutputSpec = OutputSpec()
    metric: tuple[MetricOptions, ...] = ()
    model: ModelSpec
    embeddings: EmbeddingsSpec = EmbeddingsSpec()
    target: float | None = Field(default=None, gt=0, le=1)
    traffic: TrafficSpec | None = None
    prices: PricesSpec = PricesSpec()
    train: dict[str, Any] = Field(default_factory=dict)
    gate: GateSpec = GateSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _a_server_has_no_machine_hours(self) -> TaskSpec:
        if self.model.served and self.prices.gpu_hour is not None:
            raise ValueError(
                "prices.gpu_hour is the price of this machine, and a served model runs on another: "
                "price its tokens (input_per_million, output_per_million)"
            )
        return self

    @field_validator("metric", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """A name, a mapping of a name and its options, or a list of such."""
        return tuple(map(metric_options, value if isinstance(value, list | tuple) else [value]))

    @field_validator("metric")
    @classmethod
    def _the_first_decides(cls, value: tuple[MetricOptions, ...]) -> tuple[MetricOptions, ...]:
        if value and not value[0].decides:
            raise ValueError(f"{value[0].name} is a figure of a whole split: it can stand beside the first metric, not decide")
        labels = [one.label for one in value]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the metric {label!r} stands here twice: name one of them with `called:`")
        return value


def _lines(node: yaml.Node | None, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], int]:
    """Where each key stands: path of keys -> line, from 1."""
    found: dict[tuple[str | int, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            found[here] = key.start_mark.line + 1
            found |= _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, index)
            found[here] = value.start_mark.line + 1
            found |= _lines(value, here)
    return found


def _duplicates(node: yaml.Node | None, file: str) -> list[Problem]:
    """YAML lets a later key overwrite an earlier one in silence; a task file must not."""
    problems: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                problems.append(Problem(file, key.start_mark.line + 1, str(key.value), "this key stands here twice"))
            seen.add(key.value)
            problems += _duplicates(value, file)
    return problems


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys that the model at `location` has, for 'did you mean'."""
    model: Any = TaskSpec
    for part in location:
        annotation = model.model_fields.get(str(part)) if hasattr(model, "model_fields") else None
        model = getattr(annotation, "annotation", None)
        if model is not None and not hasattr(model, "model_fields"):
            model = next((one for one in getattr(model, "__args__", ()) if hasattr(one, "model_fields")), None)
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def read_spec(path: Path) -> TaskSpec:
    """Parse a task file. Raises ProblemsError with every problem, or AdvisorError where there is no file."""
    if not path.is_file():
        raise AdvisorError(
            "there is no task file",
            where=str(path),
            do="write one (only `data: {train: FILE}` and `model: {model_name_or_path: NAME}` are required), "
            "or name a shipped example: triage, handbook, capitals.",
        )
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ProblemsError([Problem(file, 0, "", "YAML aliases (*name) are not allowed in a task file")])
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        body = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ProblemsError([Problem(file, mark.line + 1 if mark else 0, "", f"not valid YAML: {message}")]) from error
    if not isinstance(body, dict):
        raise ProblemsError([Problem(file, 1, "", "a task file is a mapping of keys, such as `data:` and `model:`")])
    lines = _lines(node)
    problems = _duplicates(node, file)
    try:
        spec = TaskSpec.model_validate(body)
    except ValidationError as error:
        for one in error.errors():
            location = one["loc"]
            key = ".".join(map(str, location))
            line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), 0)
            if one["type"] == "extra_forbidden":
                message = f"unknown key{did_you_mean(str(location[-1]), _known_keys(location[:-1]))}"
            elif one["type"] == "missing":
                message = "this key is required"
            else:
                message = one["msg"].removeprefix("Value error, ")
            problems.append(Problem(file, line, key, message))
        raise ProblemsError(problems) from error
    if problems:
        raise ProblemsError(problems)
    return spec
