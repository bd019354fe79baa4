"""Answers and their scores: what one candidate said to each example of a split, and how good it was by every metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from evals.engines.embed import Embedder
from evals.engines.engine import Engine
from evals.engines.open import open_engine
from evals.events import OnEvent
from evals.exchange import Answered
from evals.metrics import tolerant_score
from evals.metrics.build import Surroundings, build_metrics
from evals.metrics.consistency import agreement, variants
from evals.metrics.metric import Metric
from evals.metrics.options import Consistency
from evals.task.example import Example
from evals.task.load import Task
from evals.task.model import ModelSpec


@dataclass(frozen=True)
class Score:
    """One example's result. `metrics` holds the task's other metrics and `tolerant`, the tolerant reading of the first.

    `skipped` is a reason where there is no answer; such an item scores 0 and is counted apart. A metric that an item was
    not measured by is not among its `metrics`. `said` is what the model wrote, where that is more than the `output` that was
    read from it; `trace` tells how the answer came about, where it took more than one request. `cached_tokens` are those of
    the prompt tokens that were read once for several requests (`Response`); records from before it was measured have 0.
    """

    id: str
    score: float
    output: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    skipped: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    said: str = ""
    trace: list[dict[str, Any]] = field(default_factory=list)
    cached_tokens: int = 0


@dataclass(frozen=True)
class Scores:
    """Per-example results of one candidate on one split, in the split's order."""

    candidate: str
    kind: str
    split: str
    metric: str
    items: tuple[Score, ...]

    @property
    def mean(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)

    def values(self) -> list[float]:
        return [item.score for item in self.items]

    def average(self, name: str) -> float:
        """Mean of a secondary metric over the items that it measured (NaN: none), or of a figure that every item has."""
        if name in {"prompt_tokens", "cached_tokens", "output_tokens", "seconds", "score"}:
            return sum(float(getattr(item, name)) for item in self.items) / len(self.items)
        measured = [item.metrics[name] for item in self.items if name in item.metrics]
        return sum(measured) / len(measured) if measured else math.nan

    @property
    def skipped(self) -> int:
        return sum(bool(item.skipped) for item in self.items)


def task_metrics(
    task: Task,
    on_event: OnEvent,
    *,
    embedder: Callable[[], Embedder] | None = None,
    engine: Callable[[ModelSpec], Engine] | None = None,
) -> tuple[Metric, ...]:
    """The task's metrics. `embedder` and `engine` are the caller's own, to be shared; else they are opened here when asked."""
    return build_metrics(
        task.metric_options,
        Surroundings(
            folder=task.folder,
            output_type=task.output_type,
            labels=task.labels,
            schema=task.schema,
            embedder=embedder or (lambda: Embedder(task.located(task.spec.embeddings.model_name_or_path), on_event)),
            engine=engine or (lambda model: open_engine(model, task.located, on_event, None)),
            on_event=on_event,
            judged=task.spec.model,
        ),
    )


def unscored(found: Answered) -> Score:
    """An answer that waits for its score."""
    answer = found.answer
    return Score(
        found.id,
        0.0,
        answer.text,
        found.prompt_tokens,
        found.output_tokens,
        round(found.seconds, 6),
        answer.skipped,
        said=answer.said,
        trace=[dict(one) for one in answer.trace],
        cached_tokens=found.cached_tokens,
    )


def scored(task: Task, metrics: Sequence[Metric], examples: Sequence[Example], items: Mapping[str, Score]) -> list[Score]:
    """The answers of some examples with their scores by every metric, in the examples' order. A skipped item scores 0.

    `items` may hold the answers to variants of the examples too: consistency is measured on them.
    """
    pairs = [(example, items[example.id].output) for example in examples]
    values = {metric.name: metric(pairs) for metric in metrics}
    steady = _consistency(task, metrics[0], examples, items)
    found = []
    for at, (example, _) in enumerate(pairs):
        item = items[example.id]
        rest = {name: values[name][at] for name in task.metrics[1:] if name in values} | steady.get(example.id, {})
        if item.skipped:
            found.append(replace(item, metrics={**dict.fromkeys(rest, 0.0), "tolerant": 0.0}))
            continue
        decides = values[task.metric][at]
        found.append(replace(item, score=decides, metrics={**rest, "tolerant": max(decides, _tolerant(task, example, item))}))
    return found


def _tolerant(task: Task, example: Example, item: Score) -> float:
    """The tolerant reading of the answer and of all that the model said, whichever is better."""
    name = task.metric_options[0].name
    texts = dict.fromkeys([item.output, item.said or item.output])
    return max(tolerant_score(task.output_type, name, text, example.target, task.labels) for text in texts)


def consistency_options(task: Task) -> Consistency | None:
    return next((one for one in task.metric_options if isinstance(one, Consistency)), None)


def _consistency(
    task: Task, decides: Metric, examples: Sequence[Example], items: Mapping[str, Score]
) -> dict[str, dict[str, float]]:
    """The agreement of each example's answers, where it was asked in more ways than one: id -> {name: value}."""
    options = consistency_options(task)
    if options is None:
        return {}
    others: dict[str, list[str]] = {}
    for variant in variants(examples, options):
        answer = items[variant.example.id]
        if not answer.skipped:
            others.setdefault(variant.of, []).append(answer.output)
    # All at once: a metric may start a process for each call.
    asked = [
        (example, one, other)
        for example in examples
        for one, other in product(sorted({items[example.id].output, *others.get(example.id, ())}), repeat=2)
        if example.id in others
    ]
    scores = decides([(replace(example, target=other), one) for example, one, other in asked])
    known = {(example.id, one, other): score for (example, one, other), score in zip(asked, scores, strict=True)}

    def agreed(name: str) -> float:
        return agreement(items[name].output, others[name], lambda one, other: known[name, one, other])

    return {name: {options.label: agreed(name)} for name in others}
