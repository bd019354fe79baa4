"""How a task's answers are scored where the task itself is not at hand, as in a training process: small, and written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evals.candidate import AnswerFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Engine, Response
from evals.errors import AdvisorError
from evals.events import ignore
from evals.metrics.build import Surroundings, build_metrics
from evals.metrics.options import MetricOptions
from evals.task.example import Example
from evals.task.load import Task
from evals.task.model import ModelSpec
from evals.task.spec import OutputType

# Metrics that ask another model.
ANOTHER_MODEL = ("judge", "similarity")


@dataclass(frozen=True)
class Scoring:
    """The metric that decides, by its options, and how an answer is read: as `evaluate()` does it for a prompt of the task.

    `folder` is the task file's, for a metric of the user's own; `max_new_tokens` is how long an answer may be.
    """

    metric: Mapping[str, Any]
    output_type: OutputType
    max_new_tokens: int
    folder: Path
    labels: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = field(default=None)

    @staticmethod
    def of(record: Mapping[str, Any]) -> Scoring:
        """A scoring as JSON has it."""
        return Scoring(**{**record, "folder": Path(record["folder"]), "labels": tuple(record["labels"])})

    def mean(self, rows: Sequence[Example], answers: Mapping[str, Response]) -> float:
        """The mean score of the answers (by the rows' ids); one that was skipped scores 0."""
        form = AnswerFormat(self.output_type, self.max_new_tokens, self.labels)
        (metric,) = build_metrics([TypeAdapter(MetricOptions).validate_python(dict(self.metric))], self._surroundings())
        scores = metric([(row, form.parse(answers[row.id].text)) for row in rows])
        return sum(0.0 if answers[row.id].skipped else score for row, score in zip(rows, scores, strict=True)) / len(rows)

    def _surroundings(self) -> Surroundings:
        schema = None if self.schema is None else dict(self.schema)
        return Surroundings(self.folder, self.output_type, self.labels, schema, _no_embedder, _no_engine, ignore)


def scoring_of(task: Task, max_new_tokens: int) -> Scoring | None:
    """How the task's answers are scored by its first metric; None where that asks another model."""
    decides = task.metric_options[0]
    if decides.name in ANOTHER_MODEL:
        return None
    options = decides.model_dump(mode="json")
    return Scoring(options, task.output_type, max_new_tokens, task.folder.resolve(), task.labels, task.schema)


def _no_embedder() -> Embedder:
    raise AdvisorError("a metric that embeds answers cannot be computed here", where="metric")


def _no_engine(model: ModelSpec) -> Engine:
    raise AdvisorError("a metric that asks another model cannot be computed here", where=f"metric: {model.model_name_or_path}")
