"""Logistic regression on sentence embeddings: of the label, or of each field of a JSON answer."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from baselines.trivial import most_frequent
from evals.candidate import Answer, Kind
from evals.engines.embed import Embedder
from evals.engines.engine import Request
from evals.metrics.structured import parse_object
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
FOLDS = 3
# No JSON value: the class of the rows that lack a field.
ABSENT = ""


class Classifier:
    """One linear model a field. A field of free values (few rows share one) gets its most frequent value.

    The inverse regularisation strength is chosen by cross-validation on the training rows.
    """

    name = "classifier_on_embeddings"
    kind: Kind = "no_llm"
    engine = None

    def __init__(self, task: Task, embedder: Embedder) -> None:
        self.task = task
        self.embedder = embedder

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "embeddings": self.embedder.fingerprint,
            "train": content_hash(self.task.train),
            "strengths": STRENGTHS,
            "folds": FOLDS,
        }

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        """Each training target as field -> canonical JSON value; a label is the one field ''."""
        if self.task.output_type == "label":
            return [{"": json.dumps(example.target)} for example in self.task.train]
        objects = [parse_object(example.target) or {} for example in self.task.train]
        return [{key: json.dumps(value, ensure_ascii=False) for key, value in one.items()} for one in objects]

    @cached_property
    def label_fields(self) -> tuple[str, ...]:
        """Fields with at least two values, of which most rows share theirs with three others or more."""
        fields: dict[str, Counter[str]] = {}
        for row in self._rows:
            for key, value in row.items():
                fields.setdefault(key, Counter())[value] += 1
        return tuple(
            key
            for key, values in fields.items()
            if len(values) > 1
            and 2 * sum(count for count in values.values() if count >= 4) > values.total()
            and len(values) <= max(2, values.total() // 3)
        )

    @cached_property
    def _models(self) -> dict[str, Any]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        vectors = self.embedder.encode([example.text for example in self.task.train], "embedding the training rows")
        models = {}
        for field in self.label_fields:
            values = [row.get(field, ABSENT) for row in self._rows]
            model: Any = LogisticRegression(C=10.0, max_iter=1000)
            if min(Counter(values).values()) >= FOLDS:
                model = GridSearchCV(model, {"C": list(STRENGTHS)}, cv=FOLDS)
            models[field] = model.fit(vectors, values)
        return models

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        models = self._models
        usual = most_frequent([example.target for example in self.task.train])
        started = time.perf_counter()
        vectors = self.embedder.encode([example.text for example in examples], "embedding the questions")
        predicted = {field: model.predict(vectors) for field, model in models.items()}
        seconds = (time.perf_counter() - started) / max(1, len(examples))
        answers: list[Request | Answer] = []
        for index in range(len(examples)):
            given = {field: str(values[index]) for field, values in predicted.items()}
            fields = {field: json.loads(value) for field, value in given.items() if value != ABSENT}
            if self.task.output_type == "label":
                answers.append(Answer(str(fields.get("", usual)), seconds))
            else:
                kept = {field: value for field, value in (parse_object(usual) or {}).items() if given.get(field) != ABSENT}
                whole = {**kept, **fields}
                answers.append(Answer(json.dumps(whole, ensure_ascii=False, separators=(",", ":")), seconds))
        return answers

    def parse(self, text: str) -> str:
        return text


def classic_arms(task: Task, embedder: Embedder) -> list[Classifier]:
    """The classifier where the output is a label or has label fields."""
    if task.output_type not in {"label", "json"}:
        return []
    classifier = Classifier(task, embedder)
    return [classifier] if classifier.label_fields else []
