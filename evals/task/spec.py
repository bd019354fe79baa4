"""`task.yaml`: what a person writes. Unknown keys are errors, and all problems are found in one pass, with file and line."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from evals.engines.endpoint import checked_base_url
from evals.errors import AdvisorError, Problem, ProblemsError, did_you_mean
from evals.metrics.options import MetricOptions, metric_options
from evals.task.locate import locate
from evals.task.model import ModelSpec
from evals.task.price_table import price_table
from evals.task.strict import Strict
from evals.task.tools import ToolsSpec

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
    `prompt`, `chosen`, `rejected`; `replay` holds general questions with answers, mixed into training against forgetting.
    """

    train: str | HubDataset
    dev: str | HubDataset | None = None
    test: str | HubDataset | None = None
    documents: str | None = None
    preferences: str | HubDataset | None = None
    replay: str | HubDataset | None = None


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


class QdrantSpec(Strict):
    """A collection of a Qdrant server that is filled already: it is only read. `text` and `document` are keys of the payload
    (a dot leads into a mapping: `metadata.source`), `vector` is the name of the vector where the vectors have names.

    A `url` without a port means 6333. `api_key_env` names the environment variable that holds the key, `timeout` is in seconds.
    """

    url: str
    collection: str = Field(min_length=1, max_length=255)
    text: str = Field(default="text", min_length=1)
    document: str = Field(default="document", min_length=1)
    vector: str | None = Field(default=None, min_length=1)
    api_key_env: str = "QDRANT_API_KEY"
    timeout: int = Field(default=30, ge=1, le=3600)

    @field_validator("url")
    @classmethod
    def _no_secret_inside(cls, value: str) -> str:
        # The checks are those of any server; the words are of this one.
        try:
            return checked_base_url(value)
        except ValueError as error:
            raise ValueError(str(error).replace("base_url", "url").replace(":8000/v1", ":6333")) from None

    @field_validator("collection")
    @classmethod
    def _no_path(cls, value: str) -> str:
        if value in {".", ".."} or not value.isprintable() or set(value) & set('<>:"/\\|?*'):
            raise ValueError("this is no name that a collection can have")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        # Not repeated: what stands here by mistake is the key itself.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError("this is the name of an environment variable, such as QDRANT_API_KEY, never the key itself")
        return value


class RagSpec(Strict):
    """How passages are found. `reranker` is a cross-encoder that reads question and passage together (a name on the Hub or a
    folder); `rewrite` lets the model write a search query first; `qdrant` searches a database beside the task's documents.
    """

    reranker: str | None = Field(default=None, min_length=1)
    rewrite: bool = False
    qdrant: QdrantSpec | None = None


class OptimiseSpec(Strict):
    """The search for a better instruction, on train: `requests` to the model at most (0: none), its own and the proposer's.

    `methods`: `propose` (the proposer writes instructions, a race chooses), `gepa` (reflective evolution), `mipro` (DSPy's
    MIPROv2, with the extra of that name). `proposer` writes the proposals; left out, the task's model does.
    """

    methods: tuple[Literal["propose", "gepa", "mipro"], ...] = ("propose",)
    requests: int = Field(default=150, ge=0, le=1_000_000)
    proposer: ModelSpec | None = None


Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrafficSpec(Strict):
    """How much the task is used and for how long: what a training must pay back on. The rest says what keeping it alive takes.

    `documents_changed` is the share of the documents that are new or changed in a month, and are embedded again.
    """

    requests_per_month: PositiveInt
    months: PositiveInt = 12
    retrain_every_months: PositiveInt | None = Field(
        default=None, description="Train again every so many months: that costs what the training costs."
    )
    labels_per_retraining: NonNegativeInt = Field(
        default=0, description="Rows that are labelled anew for each training after the first."
    )
    documents_changed: Share = Field(default=0.0, description="The share of the documents that change in a month, from 0 to 1.")

    @field_validator("requests_per_month", "months", "retrain_every_months", "labels_per_retraining", mode="before")
    @classmethod
    def _not_below_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise ValueError(
                f"{info.field_name} counts something, and {value:g} is negative: leave it out where it is not known"
            )
        return value


class PricesSpec(Strict):
    """In one currency of the user's choice: an hour of the machine, a million tokens, one labelled row, one more right answer.

    What is not priced is told in tokens and seconds. `table` names a row of the dated table that is shipped (`prices.json`, in
    US dollars): it fills in what is not stated here, and what came from it is marked with its date wherever it is shown.
    """

    gpu_hour: Money | None = None
    input_per_million: Money | None = None
    cached_input_per_million: Money | None = Field(
        default=None, description="A million tokens in that the server had read before (prompt caching)."
    )
    output_per_million: Money | None = None
    label: Money | None = None
    right_answer: Money | None = Field(
        default=None,
        description="What one more right answer is worth to you; a score between 0 and 1 counts as that share of it.",
    )
    table: str | None = Field(
        default=None,
        description="A row of the shipped, dated table of list prices (US dollars) for what is not stated here.",
        examples=["gpt-4o-mini", "l4"],
    )

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, body: Any) -> Any:
        if not isinstance(body, dict) or not isinstance(body.get("table"), str) or body["table"] not in price_table():
            return body
        return {**body, **{name: one for name, one in price_table()[body["table"]].prices.items() if body.get(name) is None}}

    @field_validator("table")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in price_table():
            raise ValueError(
                f"the table of prices has no row {value!r}{did_you_mean(value, price_table())}: {', '.join(price_table())}"
            )
        return value

    @model_validator(mode="after")
    def _a_rebate_on_something(self) -> PricesSpec:
        if self.cached_input_per_million is not None and self.input_per_million is None:
            raise ValueError("cached_input_per_million is for a part of the tokens in: state input_per_million for the others")
        return self

    @property
    def by_tokens(self) -> bool:
        """Whether a request is priced by its tokens; else by the machine's seconds, where `gpu_hour` is stated."""
        return self.input_per_million is not None or self.output_per_million is not None

    @property
    def unpriced(self) -> str:
        """The tokens that are counted as free because only the others have a price; empty where there are none."""
        if not self.by_tokens:
            return ""
        return "tokens in" if self.input_per_million is None else "tokens out" if self.output_per_million is None else ""

    @property
    def of_a_request(self) -> bool:
        """Whether anything prices a request: a label or a right answer alone does not."""
        return self.by_tokens or self.gpu_hour is not None

    @property
    def from_table(self) -> tuple[str, ...]:
        """The prices that are those of the named row."""
        listed = price_table()[self.table].prices if self.table else {}
        return tuple(name for name, value in listed.items() if getattr(self, name) == value)


class GateSpec(Strict):
    """The team's policy. `min_gain` and `max_forgetting` are differences of scores in [0, 1]; so is each of `benchmarks`, the loss that
    is allowed on a general benchmark of that name alone. One that is not named here is reported and gates nothing."""

    min_gain: float = Field(default=0.03, ge=0, le=1)
    max_forgetting: float = Field(default=0.05, gt=0, le=1)
    max_cost_per_1k: float | None = Field(default=None, gt=0)
    benchmarks: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)


Name = Annotated[str, Field(min_length=1)]
# Read as a tuple; an editor is told that one name may stand alone.
Suites = Annotated[
    tuple[Name, ...],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            ]
        }
    ),
]


class GeneralSpec(Strict):
    """The general benchmarks that base and tuned model answer, for what a training made the model forget.

    `suite`: quick, standard, hub, tasks or groups by their lm-eval names, folders of lm-eval task files (relative to the task file), or a
    list of such. Of tasks that are not built in, `limit` items each are asked, drawn by the task's seed. `confirm`: what repaired weights
    are confirmed on, the other half of the suite or `standard`. `trust_task_code` lets a folder's task files run their own code.
    """

    suite: Suites = Field(default=("quick",), min_length=1)
    limit: PositiveInt | None = None
    confirm: Literal["half", "standard"] = "half"
    trust_task_code: bool = False

    @field_validator("suite", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)


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
    tools: ToolsSpec | None = None
    rag: RagSpec = RagSpec()
    optimise: OptimiseSpec = OptimiseSpec()
    target: float | None = Field(default=None, gt=0, le=1)
    traffic: TrafficSpec | None = None
    prices: PricesSpec = PricesSpec()
    train: dict[str, Any] = Field(default_factory=dict)
    gate: GateSpec = GateSpec()
    general: GeneralSpec = GeneralSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _a_server_has_no_machine_hours(self) -> TaskSpec:
        if self.model.served and self.prices.gpu_hour is not None:
            raise ValueError(
                "prices.gpu_hour (or a machine under prices.table) is the price of this machine, and a served model runs on another: "
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
            raise ValueError(
                f"{value[0].name} says nothing of a single answer being right: it can stand beside the first metric, not decide"
            )
        if value and value[0].name == "judge" and any(one.name == "consistency" for one in value):
            raise ValueError(
                "consistency compares answers by the first metric, and a judge is too dear for that: put another first"
            )
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


def _spec_problems(error: ValidationError, file: str, body: Any, lines: dict[tuple[str | int, ...], int]) -> list[Problem]:
    """Each fault once, by the keys and the line that it has in the file."""
    problems: list[Problem] = []
    for one in error.errors():
        found = locate(one["loc"], TaskSpec, body)
        if not found.told:
            continue
        path = found.path
        line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 0)
        if one["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(str(path[-1]), found.keys)}"
        elif one["type"] == "missing":
            message = "this key is required"
        elif found.wanted:
            message = f"must be {found.wanted}"
        elif one["type"] == "model_type":
            message = "must be a mapping of keys"
        elif one["type"] == "string_type" and isinstance(one["input"], int | float | date):
            # YAML reads 5, yes and 2026-05-31 as a number, a truth value and a date.
            message = "must be text: write it in quotes"
        else:
            message = one["msg"].removeprefix("Value error, ")
        problems.append(Problem(file, line, ".".join(map(str, path)), message))
    return problems


def _truth_values(body: Any, read: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], str]]:
    """Places of truth values that were read as numbers (`target: yes` as 1.0), and of what was read as a truth value."""
    if isinstance(body, dict) and isinstance(read, dict):
        return [found for key, one in body.items() for found in _truth_values(one, read.get(key), (*path, key))]
    if isinstance(read, list | tuple):
        if not isinstance(body, list | tuple):  # a metric that stands alone
            return _truth_values(body, read[0], path) if len(read) == 1 else []
        pairs = enumerate(zip(body, read, strict=False))
        return [found for at, (one, other) in pairs for found in _truth_values(one, other, (*path, at))]
    if isinstance(body, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        return [(path, "must be a number, and YAML reads yes, no, on and off as truth values")]
    return [(path, "must be true or false")] if isinstance(read, bool) and not isinstance(body, bool) else []


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
        problems += _spec_problems(error, file, body, lines)
        raise ProblemsError(problems) from error
    for place, message in _truth_values(body, spec.model_dump(by_alias=True)):
        problems.append(Problem(file, lines.get(place, 0), ".".join(map(str, place)), message))
    if problems:
        raise ProblemsError(problems)
    return spec
