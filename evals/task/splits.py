"""Train, dev and test: taken as given or made by group, frozen by id, and never overlapping."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from evals.errors import Problem
from evals.metrics.text import normalise
from evals.records import content_hash
from evals.task.example import Example
from evals.task.formats import Row

NAMES = ("train", "dev", "test")
MIN_ROWS = 2
MIN_ROWS_TO_SPLIT = 10
DEV_SHARE = TEST_SHARE = 0.2


def normalised_input(example: Example) -> str:
    """What counts as the same question: all turns, lower-case, without punctuation. Bare symbols keep their text."""
    text = "\n".join(f"{message.role}: {message.content}" for message in example.messages)
    return normalise(text) or text.strip()


def make_splits(given: Mapping[str, Sequence[Row]], seed: int) -> tuple[dict[str, tuple[Row, ...]], list[str]]:
    """Fill in the splits that were not given by drawing whole groups from train.

    A group is the `group` column, or rows of equal normalised input. Returns the splits and what to say aloud.
    """
    splits = {name: tuple(given.get(name, ())) for name in NAMES}
    missing = [name for name in ("dev", "test") if name not in given]
    if not missing or len(splits["train"]) < MIN_ROWS_TO_SPLIT:
        return splits, []
    groups: dict[str, list[Row]] = {}
    for row in splits["train"]:
        groups.setdefault(row.example.group or normalised_input(row.example), []).append(row)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    total = len(splits["train"])
    for name, share in (("test", TEST_SHARE), ("dev", DEV_SHARE)):
        if name not in missing:
            continue
        taken: list[Row] = []
        while len(taken) < max(MIN_ROWS, round(share * total)) and len(keys) > 1:
            taken += groups.pop(keys.pop())
        splits[name] = tuple(taken)
    splits["train"] = tuple(row for key in keys for row in groups[key])
    sizes = ", ".join(f"{name} {len(splits[name])}" for name in NAMES)
    return splits, [f"{' and '.join(missing)} split from train by group, seed {seed}: {sizes}"]


def split_problems(splits: Mapping[str, Sequence[Row]]) -> list[Problem]:
    """Too few rows, ids that stand twice, and questions that stand in two splits (normalised exact match)."""
    problems: list[Problem] = []
    rows_in_all = sum(len(splits[name]) for name in NAMES)
    for name in NAMES:
        rows = splits[name]
        if len(rows) < MIN_ROWS:
            file = rows[0].file if rows else f"({name})"
            problems.append(
                Problem(
                    file,
                    0,
                    f"data.{name}",
                    f"{len(rows)} row{'s' if len(rows) != 1 else ''} in the {name} split: at least {MIN_ROWS} are needed, "
                    f"and {MIN_ROWS_TO_SPLIT} in all where dev and test are split from train ({rows_in_all} here)",
                )
            )
    ids: dict[str, Row] = {}
    questions: dict[str, tuple[str, Row]] = {}
    for name in ("train", "dev", "test"):
        for row in splits[name]:
            first = ids.setdefault(row.example.id, row)
            if first is not row:
                problems.append(
                    Problem(
                        row.file,
                        row.line,
                        "id",
                        f"{row.example.id!r} stands at {first.file}:{first.line} too "
                        "(a row without an id is named after its content: equal rows get equal names)",
                    )
                )
            where, other = questions.setdefault(normalised_input(row.example), (name, row))
            if where != name:
                problems.append(
                    Problem(
                        row.file,
                        row.line,
                        f"data.{name}",
                        f"the same input stands in {where} at {other.file}:{other.line}; "
                        f"a score on it would measure memory. Remove one of the two",
                    )
                )
    return problems


def freeze(splits: Mapping[str, Sequence[Example]]) -> dict[str, list[dict[str, str]]]:
    """The record of the splits: id and hash of each row."""
    return {name: [{"id": one.id, "hash": content_hash(one)[:16]} for one in rows] for name, rows in splits.items()}
