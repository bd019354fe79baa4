"""The candidate that predicts a label, or each label-like field of a JSON answer, by a learner that is no language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from baselines.classic.fields import Fields
from baselines.classic.folds import clusters
from evals.candidate import Answer, Kind
from evals.engines.engine import Request
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task


@dataclass(frozen=True)
class Predicted:
    """Of each field, the value for each question; `seconds` for one question, all fields together."""

    values: Mapping[str, Sequence[str]]
    seconds: float


Predict: TypeAlias = Callable[[Sequence[str]], Predicted]


class Learner(Protocol):
    """Learns to tell the values of fields from texts. `settings` name everything that it was built with, as JSON."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def learn(self, texts: Sequence[str], fields: Mapping[str, Sequence[str]], clusters: Sequence[str]) -> Predict:
        """`fields` holds each field's value in every row; rows of one cluster are never on both sides of a choice."""
        ...


class Classifier:
    """One model a label field; every other field takes its most frequent value."""

    kind: Kind = "no_llm"
    engine = None

    def __init__(self, task: Task, learner: Learner) -> None:
        self.task = task
        self.learner = learner
        self.name = learner.name
        self.fields = Fields(task)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.learner.settings, "train": content_hash(self.task.train)}

    @cached_property
    def _predict(self) -> Predict:
        texts = [example.text for example in self.task.train]
        wanted = {key: self.fields.values(key) for key in self.fields.labels}
        return self.learner.learn(texts, wanted, clusters(self.task.train))

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        if not examples:
            return []
        found = self._predict([example.text for example in examples])
        given = [{key: values[at] for key, values in found.values.items()} for at in range(len(examples))]
        return [Answer(self.fields.answer(one), found.seconds) for one in given]

    def parse(self, text: str) -> str:
        return text
