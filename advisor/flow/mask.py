"""Which tokens are trained on, shown for a few rows as the trainer will see them; and what the template keeps from the model.

Everything is asked of the trainer's own encoding: what is shown is what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from advisor.flow.tuned import prompt_format, recipe_for
from evals.candidate import PromptFormat
from evals.engines.engine import Message, ToolCall
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.task.checks.findings import Finding
from evals.task.checks.places import place
from evals.task.example import Example
from evals.task.load import Task
from evals.task.reading.formats import Row
from trainer.data import IGNORED, encode

SHOWN = 3
# Rows tried of each kind of content, such as tool calls: a template drops it from all or from none.
TRIED = 2
# Longer than any row: what is looked for is what the template writes, whether or not it fits.
UNBOUNDED = 1 << 40
# Plain letters, that every tokeniser gives back as they are.
MARK = "zqxmarkzqx"


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text, decoded with its special tokens, that is trained on or only read."""

    text: str
    trained: bool
    tokens: int


@dataclass(frozen=True)
class MaskedRow:
    """A training row as the model sees it. `fits` is False where it is longer than the recipe's `max_length` and left out."""

    row: Row
    segments: tuple[Segment, ...]
    fits: bool = True

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.segments)

    @property
    def trained_tokens(self) -> int:
        return sum(one.tokens for one in self.segments if one.trained)


@dataclass(frozen=True)
class TrainingMask:
    """A few rows, and what the chat template loses of them (`template`)."""

    rows: tuple[MaskedRow, ...]
    findings: tuple[Finding, ...]


def training_mask(task: Task, engine: HfEngine) -> TrainingMask:
    """Of the task's training rows the shortest, the one in the middle and the longest, by the recipe that would train them.

    Only the tokeniser is loaded. For a model whose weights are here (`Session.weights`): a served one is not trained.
    """
    recipe = recipe_for(task, engine)
    return mask_rows(engine.handle.tokenizer, prompt_format(task, recipe), task.rows["train"], recipe.max_length)


def mask_rows(tokenizer: Any, fmt: PromptFormat, rows: Sequence[Row], max_length: int) -> TrainingMask:
    """As `training_mask`, for any rows. A row that cannot be encoded is a finding (`template`, an error), not an exception."""
    shown: list[MaskedRow] = []
    found: list[Finding] = []
    for row in _of_all_lengths(rows):
        try:
            encoded = encode(tokenizer, fmt, row.example, UNBOUNDED)
        except AdvisorError as error:
            found.append(Finding("template", "error", f"this row cannot be trained on: {error.what}", (place("train", row),)))
            continue
        if encoded is not None:
            segments = _segments(tokenizer, encoded["input_ids"], encoded["labels"])
            shown.append(MaskedRow(row, segments, len(encoded["input_ids"]) <= max_length))
            found += _changed_target(row, segments)
    return TrainingMask(tuple(shown), (*found, *_lost(tokenizer, fmt, rows)))


def _of_all_lengths(rows: Sequence[Row]) -> list[Row]:
    """The shortest row, the one in the middle, the longest one: what they have in common all rows have."""
    ordered = sorted(rows, key=lambda row: sum(len(one.content) for one in row.example.messages) + len(row.example.target))
    places = dict.fromkeys(round(at * (len(ordered) - 1) / (SHOWN - 1)) for at in range(SHOWN)) if ordered else {}
    return [ordered[at] for at in places]


def _segments(tokenizer: Any, ids: list[int], labels: list[int]) -> tuple[Segment, ...]:
    """Runs of tokens that are trained on or not. Their texts, one behind the other, are the text of all tokens."""
    segments = []
    end, written = 0, ""
    for trained, run in groupby(label != IGNORED for label in labels):
        count = len(list(run))
        end += count
        # Decoded from the start: by itself a run may lose the space that it begins with.
        upto = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        segments.append(Segment(upto[len(written) :], trained, count))
        written = upto
    return tuple(segments)


def _changed_target(row: Row, segments: Sequence[Segment]) -> list[Finding]:
    """A template may write the answer otherwise than it stands in the row (some leave out what is in <think> tags)."""
    trained = "".join(one.text for one in segments if one.trained)
    if "".join(row.example.target.split()) in "".join(trained.split()):
        return []
    message = "the text that is trained on is not the target: the chat template or the tokeniser changes it"
    return [Finding("template", "warning", message, (place("train", row),), details={"trained": trained[:500]})]


def _lost(tokenizer: Any, fmt: PromptFormat, rows: Sequence[Row]) -> list[Finding]:
    """What some rows hold and the prompt never shows: each kind is replaced by a mark, and the mark looked for."""
    found = []
    for what, holds, marked in KINDS:
        having = [row for row in rows if holds(row.example)]
        lost = [row for row in having[:TRIED] if not _shows(tokenizer, fmt, marked(row.example))]
        if lost:
            many = f"{len(having):,} rows hold" if len(having) > 1 else "1 row holds"
            message = f"the prompt leaves out {what}, which {many}: the model is neither trained nor asked with it"
            places = tuple(place("train", row) for row in lost)
            found.append(Finding("template", "warning", message, places, float(len(having)), details={"lost": what}))
    return found


def _shows(tokenizer: Any, fmt: PromptFormat, marked: Example) -> bool:
    try:
        encoded = encode(tokenizer, fmt, marked, UNBOUNDED)
    except AdvisorError:
        # Said already where it is the row's own fault; a mark that cannot be rendered proves nothing.
        return True
    return encoded is None or MARK in tokenizer.decode(encoded["input_ids"])


def _has_turn(role: str) -> Callable[[Example], bool]:
    return lambda example: any(one.role == role and one.content.strip() for one in example.messages)


def _marked_turn(role: str) -> Callable[[Example], Example]:
    def marked(example: Example) -> Example:
        turns = tuple(replace(one, content=MARK) if one.role == role else one for one in example.messages)
        return replace(example, messages=turns)

    return marked


def _has_calls(example: Example) -> bool:
    return any(one.tool_calls for one in example.messages)


def _marked_calls(example: Example) -> Example:
    def renamed(message: Message) -> Message:
        return replace(message, tool_calls=tuple(ToolCall(MARK, one.arguments, one.id) for one in message.tool_calls))

    return replace(example, messages=tuple(map(renamed, example.messages)))


def _marked_tools(example: Example) -> Example:
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": parameters}}
    return replace(example, tools=(json.dumps(tool),))


# What a row may hold beside the user's turn: its name, whether a row has it, and the row with a mark in its place.
KINDS: tuple[tuple[str, Callable[[Example], bool], Callable[[Example], Example]], ...] = (
    ("the system turn", _has_turn("system"), _marked_turn("system")),
    ("the assistant's earlier turns", _has_turn("assistant"), _marked_turn("assistant")),
    ("the tools' answers", _has_turn("tool"), _marked_turn("tool")),
    ("the calls of tools", _has_calls, _marked_calls),
    ("the tools that are offered", lambda example: bool(example.tools), _marked_tools),
)
