"""What a table that nobody described seems to hold: which column is asked, which one answers, and what an answer is.

Every guess says its reason: a person confirms it, or sees in the task file why it stands there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.metrics.number import parse_number
from evals.task.spec import OutputType
from evals.task.targets import MAX_LABELS, MIN_ROWS_FOR_LABELS, come_again, inferred_type

# The surer, the earlier. A column is recognised by its whole name, or by a word of it ("customer_message").
INPUT_NAMES = (
    *("input", "question", "query", "utterance", "prompt", "text", "sentence", "message", "request", "instruction"),
    *("body", "content", "email", "ticket", "review", "comment", "post", "article", "document", "passage", "problem"),
    *("source", "description", "title", "subject", "context"),
)
OUTPUT_NAMES = (
    *("output", "answer", "label", "category", "intent", "target", "response", "completion", "class", "sentiment"),
    *("reply", "team", "queue", "topic", "tag", "solution", "result", "summary", "translation", "expected", "gold"),
    *("reference", "priority", "type", "code", "score", "rating", "y"),
)
# Such columns say which row it is, when it was made or where it came from, whatever other word is in the name.
OTHER_WORDS = {
    "id",
    "ids",
    "idx",
    "index",
    "uuid",
    "guid",
    "date",
    "time",
    "timestamp",
    "created",
    "updated",
    "at",
    "url",
    "split",
}
LOOKED_AT = 1000
MAX_COLUMNS = 1000
LABEL_LENGTH = 60


@dataclass(frozen=True)
class Column:
    """What the first rows hold in one column: `length` is the mean in characters, `samples` are two values that differ.

    `texts`: all are texts and not all of them numbers (a table in CSV holds nothing but texts).
    """

    name: str
    filled: int
    distinct: int
    length: float
    texts: bool
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """A value and why it was taken."""

    value: str
    reason: str


@dataclass(frozen=True)
class Output:
    type: OutputType
    labels: tuple[str, ...]
    reason: str


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns in the order of their first appearance, as the first rows show them."""
    values: dict[str, list[Any]] = {}
    for row in rows[:LOOKED_AT]:
        for name, value in row.items():
            if (name in values or len(values) < MAX_COLUMNS) and value is not None and value != "":
                values.setdefault(str(name), []).append(value)
    return [_column(name, some) for name, some in values.items()]


def _column(name: str, values: list[Any]) -> Column:
    texts = [value if isinstance(value, str) else repr(value) for value in values]
    distinct = dict.fromkeys(texts)
    return Column(
        name,
        len(texts),
        len(distinct),
        sum(map(len, texts)) / len(texts),
        all(isinstance(value, str) for value in values) and not all(parse_number(one) is not None for one in texts[:50]),
        tuple(list(distinct)[:2]),
    )


def guess_columns(columns: Sequence[Column], rows: int) -> tuple[Guess | None, Guess | None]:
    """The column that is asked and the one that answers, by their names, else by their shape; None where neither tells."""
    able = [one for one in columns if not OTHER_WORDS & set(words(one.name)) and one.filled > rows // 2]
    answers = _named([one for one in able if not _surely(one, INPUT_NAMES)], OUTPUT_NAMES)
    asks = _named([one for one in able if one.texts and not (answers and one.name == answers.value)], INPUT_NAMES)
    answers = _inwords(answers, able, asks)
    if asks is None:
        asks = _longest([one for one in able if one.texts and not (answers and one.name == answers.value)], rows)
    rest = [one for one in able if not (asks and one.name == asks.value)]
    if answers is None:
        answers = _fewest_values(rest, rows)
    if answers is None and asks is not None and len(rest) == 1:
        answers = Guess(rest[0].name, "the only other column")
    return asks, answers


def words(name: str) -> list[str]:
    """The words of a column's name: "Customer-messageText" has three."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _surely(column: Column, names: Sequence[str]) -> bool:
    return "".join(words(column.name)) in names


def _named(columns: Sequence[Column], names: Sequence[str]) -> Guess | None:
    """The column whose whole name is the surest, else the one with the surest word in its name."""
    for one in sorted((one for one in columns if _surely(one, names)), key=lambda one: names.index("".join(words(one.name)))):
        return Guess(one.name, "by its name")
    ranked = [(min(map(names.index, found)), one.name) for one in columns if (found := set(words(one.name)) & set(names))]
    return Guess(min(ranked, key=lambda one: one[0])[1], "by a word of its name") if ranked else None


def _inwords(answers: Guess | None, columns: Sequence[Column], asks: Guess | None) -> Guess | None:
    """Where labels are numbers and another column spells them out (`label`, `label_text`), the words are the answer."""
    column = next((one for one in columns if answers and one.name == answers.value), None)
    if column is None or column.texts or column.distinct > MAX_LABELS:
        return answers
    for one in columns:
        same = one.texts and one.distinct == column.distinct and one.length <= LABEL_LENGTH
        other = one.name not in {column.name, asks.value if asks else ""}
        if same and other and set(words(column.name)) & set(words(one.name)):
            return Guess(one.name, "the same answers in words")
    return answers


def _longest(columns: Sequence[Column], rows: int) -> Guess | None:
    """The longest texts that mostly differ from row to row."""
    able = [one for one in columns if one.distinct > one.filled // 2 or rows < MIN_ROWS_FOR_LABELS]
    if not able:
        return None
    longest = max(able, key=lambda one: one.length)
    return Guess(longest.name, f"the longest texts, {longest.length:.0f} characters on average")


def _fewest_values(columns: Sequence[Column], rows: int) -> Guess | None:
    """A column of few, short values that come again and again: labels."""
    able = [one for one in columns if 2 <= one.distinct <= min(MAX_LABELS, rows // 4) and one.length <= LABEL_LENGTH]
    if len(able) != 1:
        return None
    return Guess(able[0].name, f"{able[0].distinct} short values that come again and again")


def guess_output(targets: Sequence[str], column: str) -> Output:
    """What an answer is, by the rule that reads a task without `output:`. Whole numbers in a column of labels are labels."""
    distinct = sorted(set(targets))
    few = come_again(len(distinct), len(targets))
    match inferred_type(targets):
        case "json":
            return Output("json", (), "all answers are JSON objects")
        case "number" if few and set(words(column)) & {"label", "class", "category", "intent", "sentiment"}:
            return Output("label", tuple(distinct), f"{len(distinct)} different numbers, in a column of labels")
        case "number":
            return Output("number", (), "all answers are numbers")
        case "label" if all(len(one) <= LABEL_LENGTH for one in distinct):
            return Output("label", tuple(distinct), f"{len(targets):,} answers, {len(distinct)} different ones")
        case _:
            return Output("text", (), f"{len(distinct):,} different answers among {len(targets):,}")
