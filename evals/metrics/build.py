"""The metrics that a task file asks for, made from their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.embed import Embedder
from evals.engines.engine import Engine
from evals.errors import AdvisorError
from evals.events import OnEvent
from evals.metrics import METRICS, options
from evals.metrics.code import Code
from evals.metrics.label import macro_f1_shares
from evals.metrics.metric import Metric
from evals.metrics.number import numeric_match
from evals.metrics.pattern import Pattern
from evals.metrics.python_function import PythonFunction
from evals.metrics.schema import Schema
from evals.metrics.style import Style
from evals.task.example import Example
from evals.task.model import ModelSpec


@dataclass(frozen=True)
class Surroundings:
    """What a metric may need to know of its task. `folder` is the task file's; `schema` is `output.schema`, parsed.

    `embedder` and `engine` are called where a metric needs them, and not before. `judged` is the task's own model, for
    the warning that a model judges itself.
    """

    folder: Path
    output_type: str
    labels: tuple[str, ...]
    schema: dict[str, Any] | None
    embedder: Callable[[], Embedder]
    engine: Callable[[ModelSpec], Engine]
    on_event: OnEvent
    judged: ModelSpec | None = None


@dataclass(frozen=True)
class Compared:
    """A metric that is a function of an answer and its target."""

    name: str
    compare: Callable[[str, str], float]
    settings: Mapping[str, Any]

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        return [self.compare(answer, example.target) for example, answer in pairs]


@dataclass(frozen=True)
class MacroF1:
    """Macro-F1 of the labels, as values whose mean it is: of the whole batch, which must be the whole split.

    A value may be above 1 (`macro_f1_shares`), and means nothing by itself.
    """

    name: str
    labels: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "macro_f1", "labels": self.labels}

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        return macro_f1_shares([answer for _, answer in pairs], [example.target for example, _ in pairs], self.labels)


def build_metrics(wanted: Sequence[options.Options], around: Surroundings) -> tuple[Metric, ...]:
    """One metric for each of the options, in their order, but none for `consistency`: it asks the candidate again.

    Raises AdvisorError where a metric cannot be made: no schema, or a file of the user's that is not there.
    """
    return tuple(_build(one, around) for one in wanted if not isinstance(one, options.Consistency))


def _build(one: options.Options, around: Surroundings) -> Metric:
    settings = one.model_dump(mode="json", exclude={"called"})
    match one:
        case options.Plain(name="similarity"):
            return _similarity(one, around)
        case options.Plain():
            return Compared(one.label, METRICS[one.name], settings)
        case options.NumericMatch(relative_tolerance=relative, absolute_tolerance=absolute):
            return Compared(one.label, lambda output, target: numeric_match(output, target, relative, absolute), settings)
        case options.MacroF1():
            return MacroF1(one.label, around.labels)
        case options.JsonSchema():
            return _schema(one, around)
        case options.Regex():
            return Pattern(one, around.on_event)
        case options.Code():
            return Code(one)
        case options.Style():
            return Style(one)
        case options.PythonFunction():
            metric = PythonFunction(one, around.folder)
            # Asked now, before any model answers.
            metric.path  # noqa: B018
            return metric
        case options.Judge():
            return _judge(one, around)
        case _:
            raise AdvisorError(f"the metric {one.name!r} has no implementation", where="metric")


def _schema(one: options.JsonSchema, around: Surroundings) -> Metric:
    if around.schema is None:
        raise AdvisorError(
            "json_schema needs a schema",
            where=str(around.folder / "task.yaml"),
            do="name one: `output: {type: json, schema: FILE}`.",
        )
    return Schema(one, around.schema)


def _similarity(one: options.Plain, around: Surroundings) -> Metric:
    from evals.metrics.similarity import Similarity

    return Similarity(around.embedder, one.label)


def _judge(one: options.Judge, around: Surroundings) -> Metric:
    from evals.metrics.judge import Judge

    judge = Judge(one, lambda: around.engine(one.model), around.folder, around.judged)
    # Read now, before any model answers.
    judge.labels  # noqa: B018
    return judge
