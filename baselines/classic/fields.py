"""A task's targets taken apart into fields whose values are labels, and answers put together from such values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property

from baselines.trivial import most_frequent
from evals.metrics.structured import parse_object
from evals.task.load import Task
from evals.task.targets import MAX_LABELS

# No JSON value: the class of the rows that lack a field.
ABSENT = ""
# The one field of a target that is no JSON object.
WHOLE = ""


class Fields:
    """Fields of the training targets, each value as canonical JSON text; a label or a number is the one field `WHOLE`."""

    def __init__(self, task: Task) -> None:
        self.is_json = task.output_type == "json"
        self.is_label = task.output_type == "label"
        self.targets = [example.target for example in task.train]

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Of each training row, field -> value, without the fields that it lacks."""
        if not self.is_json:
            return [{WHOLE: canonical(target)} for target in self.targets]
        objects = [parse_object(target) or {} for target in self.targets]
        return [{key: canonical(value) for key, value in one.items()} for one in objects]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All fields, in the order in which they were first seen."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    @cached_property
    def usual(self) -> dict[str, str]:
        """The most frequent value of each field that at least half of the rows have."""
        usual = most_frequent(self.targets)
        if not self.is_json:
            return {WHOLE: canonical(usual)}
        return {key: canonical(value) for key, value in (parse_object(usual) or {}).items()}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Fields with at least two values and at most `MAX_LABELS`, most rows sharing theirs with three others or more.

        The label of a label task is one whatever its counts: the task says so.
        """
        found = []
        for key in self.keys:
            values = Counter(row[key] for row in self.rows if key in row)
            shared = sum(count for count in values.values() if count >= 4)
            few = len(values) <= min(MAX_LABELS, max(2, values.total() // 3))
            if len(values) > 1 and (self.is_label or (2 * shared > values.total() and few)):
                found.append(key)
        return tuple(found)

    def values(self, key: str) -> list[str]:
        """The field's value in each training row, `ABSENT` where there is none."""
        return [row.get(key, ABSENT) for row in self.rows]

    def answer(self, given: Mapping[str, str]) -> str:
        """The answer with these values; a field that is not given takes its usual one."""
        known = {**self.usual, **given}
        if not self.is_json:
            return str(json.loads(known[WHOLE]))
        whole = {key: json.loads(known[key]) for key in self.keys if known.get(key, ABSENT) != ABSENT}
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
