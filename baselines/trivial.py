"""Arms that have learnt nothing: whatever does not beat them has learnt nothing either."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.candidate import Answer, Kind
from evals.engines.engine import Request
from evals.metrics.structured import parse_object
from evals.task.example import Example
from evals.task.load import Task


@dataclass(frozen=True)
class Fixed:
    """Answers by a rule that looks at the input at most."""

    name: str
    rule: Callable[[Example], str]
    settings: Mapping[str, Any]
    kind: Kind = "trivial"
    engine: None = None

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        return [Answer(self.rule(example)) for example in examples]

    def parse(self, text: str) -> str:
        return text


def most_frequent(targets: Sequence[str]) -> str:
    """The most frequent training answer; of JSON objects, the most frequent value of each field (ties: the first seen)."""
    objects = [parse_object(target) for target in targets]
    if not targets or any(one is None for one in objects):
        return Counter(targets).most_common(1)[0][0] if targets else ""
    values: dict[str, Counter[str]] = {}
    for one in objects:
        for key, value in (one or {}).items():
            values.setdefault(key, Counter())[json.dumps(value, ensure_ascii=False)] += 1
    # A field that most rows lack is left out.
    kept = {key: json.loads(one.most_common(1)[0][0]) for key, one in values.items() if one.total() * 2 >= len(targets)}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def trivial_arms(task: Task) -> list[Fixed]:
    usual = most_frequent([example.target for example in task.train])
    return [
        Fixed("always_most_frequent", lambda example: usual, {"answer": usual}),
        Fixed("always_empty", lambda example: "{}" if task.output_type == "json" else "", {}),
        Fixed("copy_the_input", lambda example: example.text, {}),
    ]
