"""Which tokens are trained on, shown for a few rows as the trainer will see them; and what the template keeps from the model.

Everything is asked of the trainer's own encoding: what is shown is what is trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from advisor.flow.training_rows import foreseen_rows, stand_ins
from advisor.flow.tuned import prompt_format, recipe_for
from evals.candidate import PromptFormat
from evals.engines.engine import Message, ToolCall
from evals.engines.hf import HfEngine
from evals.engines.tokenizer import PLAIN_TEMPLATE
from evals.errors import AdvisorError
from evals.task.checks.findings import Finding
from evals.task.checks.places import place
from evals.task.example import Example
from evals.task.load import Task
from evals.task.reading.formats import Row
from trainer.data import IGNORED, labelled
from trainer.preference_pairs import encode_pair
from trainer.raw_text import encode_documents
from trainer.recipe import Recipe
from trainer.template import taught

SHOWN = 3
# Rows tried of each kind of content, such as tool calls: a template drops it from all or from none.
TRIED = 2
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
    """A training row as the model sees it. Where it is longer than the recipe's `max_length` it is shown `cut`, or `fits` is False: it is
    left out, and shown whole. A pair is shown as two: `answer` is `chosen` or `rejected`, and empty where a row has but one."""

    row: Row
    segments: tuple[Segment, ...]
    fits: bool = True
    cut: bool = False
    answer: str = ""

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.segments)

    @property
    def trained_tokens(self) -> int:
        return sum(one.tokens for one in self.segments if one.trained)


@dataclass(frozen=True)
class TrainingMask:
    """A few rows, and what the chat template loses of them (`template`). `stand_ins` says what of them will be something else."""

    rows: tuple[MaskedRow, ...]
    findings: tuple[Finding, ...]
    stand_ins: str = ""


def training_mask(task: Task, engine: HfEngine) -> TrainingMask:
    """Of the task's training rows the shortest, the one in the middle and the longest, by the recipe that would train them; of continued
    pretraining such documents, of DPO such pairs. What will be found or asked for when it is trained has something in its place
    (`stand_ins`).

    Only the tokeniser is loaded. For a model whose weights are here (`Session.weights`): a served one is not trained.
    """
    recipe, tokenizer, rows = recipe_for(task, engine), engine.handle.tokenizer, task.rows["train"]
    if tokenizer.chat_template == PLAIN_TEMPLATE:
        # A base model: training gives it a chat template.
        tokenizer = taught(engine.handle.folder, recipe.method).tokenizer
    if recipe.method == "pretraining":
        return mask_documents(tokenizer, foreseen_rows(task, recipe, ()), recipe.max_length)
    if recipe.method in ("raft", "dpo"):
        # Where they stand, if only by their ids: pairs may be of a file of their own.
        places = {row.example.id: row for row in (*rows, *task.preferences)}
        shown = foreseen_rows(task, recipe, [row.example for row in rows])
        rows = tuple(replace(places[one.id], example=one) if one.id in places else Row(one, "train", 1) for one in shown)
    masked = mask_pairs if recipe.method == "dpo" else mask_rows
    return replace(masked(tokenizer, prompt_format(task, recipe), rows, recipe), stand_ins=stand_ins(task, recipe))


def mask_documents(tokenizer: Any, documents: Sequence[Example], max_length: int) -> TrainingMask:
    """The first block of each of a few documents, as continued pretraining learns it."""
    rows = [Row(one, one.id, 1) for one in documents if one.target.strip()]
    shown = []
    for row in _of_all_lengths(rows):
        block = encode_documents(tokenizer, [row.example], max_length).rows[0]
        shown.append(MaskedRow(row, _segments(tokenizer, block["input_ids"], block["labels"])))
    return TrainingMask(tuple(shown), ())


def mask_rows(tokenizer: Any, fmt: PromptFormat, rows: Sequence[Row], recipe: Recipe) -> TrainingMask:
    """As `training_mask`, for any rows. A row that cannot be encoded is a finding (`template`, an error), not an exception."""
    shown: list[MaskedRow] = []
    found: list[Finding] = []
    for row in _of_all_lengths(rows):
        try:
            whole = labelled(tokenizer, fmt, row.example, every_turn=recipe.assistant_only_loss)
        except AdvisorError as error:
            found.append(Finding("template", "error", f"this row cannot be trained on: {error.what}", (place("train", row),)))
            continue
        segments = _segments(tokenizer, whole.input_ids, whole.labels)
        found += [*_changed_target(row, segments), *_unlearnt(row, whole.unsure)]
        kept = whole.cut(recipe.max_length, recipe.truncation_mode)
        cut = kept is not None and len(kept["input_ids"]) < len(whole.input_ids)
        if kept is not None and cut:
            segments = _segments(tokenizer, kept["input_ids"], kept["labels"])
        shown.append(MaskedRow(row, segments, kept is not None, cut))
    return TrainingMask(tuple(shown), (*found, *_lost(tokenizer, fmt, rows)))


def mask_pairs(tokenizer: Any, fmt: PromptFormat, rows: Sequence[Row], recipe: Recipe) -> TrainingMask:
    """As `mask_rows`, for rows with two answers: each is shown behind the prompt that both have."""
    shown: list[MaskedRow] = []
    found: list[Finding] = []
    whole = replace(recipe, max_length=sys.maxsize)
    for row in _of_all_lengths(rows):
        try:
            pair, long = encode_pair(tokenizer, fmt, row.example, recipe)
            kept = pair or encode_pair(tokenizer, fmt, row.example, whole)[0]
        except AdvisorError as error:
            found.append(Finding("template", "error", f"this pair cannot be trained on: {error.what}", (place("train", row),)))
            continue
        if kept is None:
            continue
        prompt = kept["prompt_ids"]
        for name, ids in (("chosen", kept["chosen_ids"]), ("rejected", kept["rejected_ids"])):
            segments = _segments(tokenizer, prompt + ids, [IGNORED] * len(prompt) + ids)
            shown.append(MaskedRow(row, segments, pair is not None, long and pair is not None, name))
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


def _unlearnt(row: Row, turns: int) -> list[Finding]:
    if not turns:
        return []
    many = f"{turns} earlier turns of the assistant are" if turns > 1 else "1 earlier turn of the assistant is"
    message = f"{many} not trained on: the chat template writes it otherwise once the conversation goes on"
    return [Finding("template", "warning", message, (place("train", row),), float(turns))]


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
        whole = labelled(tokenizer, fmt, marked, every_turn=False)
    except AdvisorError:
        # Said already where it is the row's own fault; a mark that cannot be rendered proves nothing.
        return True
    return MARK in tokenizer.decode(whole.input_ids)


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
