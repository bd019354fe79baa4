"""Extraction without a language model: values that stand in the input are found there, the others are classified."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

from baselines.classic import tagger, tfidf
from baselines.classic.fields import Fields
from baselines.classic.folds import clusters
from baselines.classic.labels import Predict, Predicted
from baselines.classic.literal import Pattern, Run, learn_patterns, runs
from baselines.classic.tagger import Tagger, train_tagger
from baselines.classic.tokens import Token, tokens
from evals.candidate import Answer, Kind
from evals.engines.engine import Request
from evals.metrics.structured import parse_object
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task


class SpansLearnt:
    """A conditional random field tags the values that stand in the input; other label fields are told by TF-IDF."""

    name = "spans_learnt"
    kind: Kind = "no_llm"
    engine = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self.fields = Fields(task)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "columns": tagger.COLUMNS,
            "penalty": tagger.PENALTY,
            "rounds": tagger.ROUNDS,
            "most_tokens": tagger.MOST_TOKENS,
            "labels": tfidf.TfidfLinear().settings,
            "train": content_hash(self.task.train),
        }

    @cached_property
    def patterns(self) -> list[Pattern]:
        """Of the keys whose values stand in the input. None where the answers are no JSON objects."""
        if self.task.output_type != "json":
            return []
        return learn_patterns(self._texts, [parse_object(target) or {} for target in self.fields.targets])

    @property
    def _texts(self) -> list[str]:
        return [example.text for example in self.task.train]

    @cached_property
    def _taggers(self) -> list[Tagger]:
        """One for all keys, or several where the values of some keys lie within those of others."""
        texts = self._texts
        words = [tokens(text) for text in texts]
        objects = [parse_object(target) or {} for target in self.fields.targets]
        placed = [_placed(text, some, one, self.patterns) for text, some, one in zip(texts, words, objects, strict=True)]
        found = []
        for layer in _layers(placed, [pattern.key for pattern in self.patterns]):
            spans = [_apart({key: one[key] for key in layer if key in one}) for one in placed]
            found.append(train_tagger(texts, words, spans, layer))
        return found

    @cached_property
    def _labels(self) -> Predict:
        spans = {pattern.key for pattern in self.patterns}
        wanted = {key: self.fields.values(key) for key in self.fields.labels if key not in spans}
        if not wanted:
            return lambda questions: Predicted({}, 0.0)
        return tfidf.TfidfLinear().learn(self._texts, wanted, clusters(self.task.train))

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        if not examples:
            return []
        taggers = self._taggers
        labels = self._labels([example.text for example in examples])
        answers: list[Request | Answer] = []
        for at, example in enumerate(examples):
            started = time.perf_counter()
            words = tokens(example.text)
            spans = {key: run for one in taggers for key, run in one.spans(example.text, words).items()}
            given = {key: values[at] for key, values in labels.values.items()}
            for pattern in self.patterns:
                run = spans.get(pattern.key)
                given[pattern.key] = pattern.otherwise if run is None else pattern.value(_text(example.text, words, run))
            answer = self.fields.answer(given)
            answers.append(Answer(answer, labels.seconds + time.perf_counter() - started))
        return answers

    def parse(self, text: str) -> str:
        return text


def _text(text: str, words: Sequence[Token], run: Run) -> str:
    return text[words[run.first].start : words[run.last - 1].end]


def _placed(text: str, words: Sequence[Token], one: Mapping[str, Any], patterns: Sequence[Pattern]) -> dict[str, Run]:
    """The run of each value: its first that no other value takes, else its first."""
    found: dict[str, Run] = {}
    for pattern in patterns:
        places = runs(text, words, pattern.core(one[pattern.key])) if pattern.key in one else []
        if places:
            free = [place for place in places if not any(place.meets(other) for other in found.values())]
            found[pattern.key] = [*free, *places][0]
    return found


def _apart(spans: Mapping[str, Run]) -> dict[str, Run]:
    """Without those that meet an earlier one."""
    found: dict[str, Run] = {}
    for key, run in spans.items():
        if not any(run.meets(other) for other in found.values()):
            found[key] = run
    return found


def _layers(placed: Sequence[Mapping[str, Run]], keys: Sequence[str]) -> list[list[str]]:
    """Keys in layers, of which none has two keys whose values meet in more than a twentieth of the rows that have both."""
    both: Counter[tuple[str, str]] = Counter()
    meet: Counter[tuple[str, str]] = Counter()
    for one in placed:
        for pair in combinations((key for key in keys if key in one), 2):
            both[pair] += 1
            meet[pair] += one[pair[0]].meets(one[pair[1]])
    layers: list[list[str]] = []
    for key in keys:
        free = (layer for layer in layers if all(20 * meet[other, key] <= both[other, key] for other in layer))
        layer = next(free, None)
        if layer is None:
            layers.append([key])
        else:
            layer.append(key)
    return layers
