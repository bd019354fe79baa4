"""The rows that a method learns from, made of the task: its own train rows, its documents, or what the model itself answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from advisor.flow.pairs import preference_rows, usable_pairs
from advisor.flow.raft import as_asked, raft_pipeline, raft_rows
from advisor.flow.raw_text import no_documents, raw_text_rows
from advisor.flow.rejection import rejection_rows
from advisor.flow.session import Session
from baselines.rag.prompts import RagPrompt
from evals.candidate import PromptFormat
from evals.task.example import Example
from evals.task.load import Task
from trainer.recipe import Recipe

# Characters of what stands for a passage before any is looked for: about 96 tokens, the smallest cut.
PASSAGE = 400


def training_rows(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat, folder: Path
) -> tuple[Example, ...]:
    """What `recipe.method` trains on, where it is given these `rows` of train and asks in the form of `fmt`.

    What is asked of the model or measured for it is kept beside `folder`, the job's own. Raises AdvisorError where there is nothing.
    """
    if recipe.method == "pretraining":
        return raw_text_rows(task)
    if recipe.method == "raft":
        return raft_rows(task, session, recipe, rows, folder.parent)
    if recipe.method == "rejection_sampling":
        return rejection_rows(task, session, recipe, rows, fmt, folder)
    if recipe.method == "dpo":
        return preference_rows(task, session, recipe, rows, fmt, folder)
    return tuple(rows)


def measured_rows(task: Task, session: Session, recipe: Recipe, folder: Path) -> tuple[Example, ...]:
    """Dev as the tuned weights are asked about it: of RAFT with the passages that its pipeline finds."""
    if recipe.method == "raft":
        return as_asked(raft_pipeline(task, session, recipe, folder.parent), task.dev)
    return tuple(task.dev)


def stand_ins(task: Task, recipe: Recipe) -> str:
    """What of `foreseen_rows` only stands for what will be trained on; empty where they are that itself."""
    if recipe.method == "raft":
        return "the passages are parts of documents, in the place of those that a search will find"
    if recipe.method == "rejection_sampling":
        return "the answers are the rows' own, in the place of right ones that the model will be asked for"
    if recipe.method == "dpo" and not usable_pairs(task):
        return "the rejected answers are other rows' right ones, in the place of wrong ones that the model will be asked for"
    return ""


def foreseen_rows(task: Task, recipe: Recipe, rows: Sequence[Example]) -> tuple[Example, ...]:
    """What will be trained on, as far as it can be told without a search or a model: for estimates.

    RAFT's passages are stood for by parts of documents, of rejection sampling one answer a row is foreseen, and a wrong answer of DPO is
    another row's right one.
    """
    if recipe.method == "pretraining":
        return raw_text_rows(task)
    if recipe.method == "raft":
        if not task.documents:
            raise no_documents(task, "RAFT trains with retrieved passages, and the task has no documents")
        parts = cycle(document.text[:PASSAGE] for document in task.documents[: len(rows)])
        prompt, count = RagPrompt("plain", task.instruction), recipe.num_distractors + 1
        return tuple(replace(row, messages=prompt.messages(row, list(islice(parts, count)))) for row in rows)
    if recipe.method == "dpo":
        others = [*rows[1:], *rows[:1]]
        return usable_pairs(task) or tuple(
            replace(row, rejected=other.target) for row, other in zip(rows, others, strict=True) if row.target != other.target
        )
    return tuple(rows)
