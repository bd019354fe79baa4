"""RAFT: training questions asked with passages, one that holds the answer among others that do not (Zhang et al. 2024, 2403.10131).

The model learns to read what retrieval finds for it, and to pass over the rest. It is later asked with the same pipeline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.flow.raw_text import no_documents
from advisor.flow.retrieval import retrieved
from advisor.flow.session import Session
from baselines.prompts.prompt import seed_of
from baselines.rag.candidate import Rag
from baselines.rag.overlap import folded, share_covered
from baselines.rag.passages import shown_passages
from baselines.rag.relevance import Truth
from baselines.rag.retriever import Found
from evals.candidate import PromptFormat
from evals.errors import AdvisorError
from evals.events import Note
from evals.metrics.text import containment
from evals.task.example import Example
from evals.task.load import Task
from trainer.recipe import Recipe

# The turns of rows hold the instruction and the passages already: nothing is added to them.
AS_RENDERED = PromptFormat("", "inline")
# Chunks looked at beyond those that are shown: what holds the answer is no distractor, and the gold passage may stand further down.
DEEPER = 20


@dataclass(frozen=True)
class Shelf:
    """What there is to show with a row: passages that hold the answer (none where no passage does), and passages that do not,
    the nearest to the question first."""

    row: Example
    gold: tuple[str, ...]
    distractors: tuple[str, ...]


def raft_pipeline(task: Task, session: Session, recipe: Recipe, folder: Path) -> Rag:
    """The pipeline that a RAFT training is rendered with and its weights are asked with: the way to search that finds most for dev's
    questions, as many passages as in training, the plain wording, no demonstrations. What is measured for it is kept in `folder`.

    Raises AdvisorError where there is nothing to search.
    """
    arms = retrieved(task, session, folder, session.on_event).arms
    if not arms:
        raise no_documents(task, "RAFT trains with retrieved passages, and the task has no documents")
    count = recipe.num_distractors + 1
    best = next(
        one for one in arms if one.prompt.variant == "plain" and one.prompt.shots is None and not one.rewrite and not one.reach
    )
    return replace(best, name=f"raft_{best.retriever.name}_{count}", count=count)


def raft_rows(task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], folder: Path) -> tuple[Example, ...]:
    """Each row asked with `num_distractors` passages, and in `gold_share` of them the gold passage among these, shuffled.

    The rest are asked with distractors alone and keep their answers, as in the paper. Rows whose answer stands in no passage belong to
    that rest; those beyond it are left out, since they would teach to answer without a source. Both are said.
    Raises AdvisorError where there are no documents, or no row is left.
    """
    pipeline = raft_pipeline(task, session, recipe, folder)
    shelves = shelves_of(task, pipeline, recipe, rows)
    with_gold, alone = _dealt(shelves, recipe)
    _say(task, session, pipeline, shelves, with_gold, alone)
    asked = {one.row.id: rendered(pipeline, one, recipe, gold=True) for one in with_gold}
    asked |= {one.row.id: rendered(pipeline, one, recipe, gold=False) for one in alone}
    return tuple(asked[row.id] for row in rows if row.id in asked)


def as_asked(pipeline: Rag, rows: Sequence[Example]) -> tuple[Example, ...]:
    """Rows in the very turns that the pipeline asks them in: dev's, whose loss is then that of what will be asked."""
    turns = [next(exchange)[0].messages for exchange in pipeline.requests(rows)]
    return tuple(replace(row, messages=tuple(one)) for row, one in zip(rows, turns, strict=True))


def shelves_of(task: Task, pipeline: Rag, recipe: Recipe, rows: Sequence[Example]) -> list[Shelf]:
    """Gold passage and distractors of each row, out of what the pipeline's retriever finds for its question."""
    truth = Truth(rows, output_type=task.output_type, documents=task.documents)
    numbers = {name: number for number, name in enumerate(truth.ids)}
    found = pipeline.retriever.search([row.text for row in rows], recipe.num_distractors + DEEPER)
    return [_shelf(pipeline, recipe, row, some, truth, numbers.get(row.id)) for row, some in zip(rows, found, strict=True)]


def _shelf(pipeline: Rag, recipe: Recipe, row: Example, found: Sequence[Found], truth: Truth, number: int | None) -> Shelf:
    """`number` is the row's in `truth`; None where nothing tells which passage holds its answer."""
    taken = [one for one in found if _is_gold(one, row, truth, number)][:1]
    held = len(taken)
    for one in found:
        if len(taken) == held + recipe.num_distractors:
            break
        # What overlaps with a passage that is shown would be joined with it.
        apart = len(_shown(pipeline, [*taken, one])) > len(taken)
        if apart and not _says(one, row) and not _of_gold(one, row):
            taken.append(one)
    shown = _shown(pipeline, taken)
    # One that was not found is shown as the row gives it.
    gold = shown[:held] or [one for one in row.gold_passages if one.strip()]
    return Shelf(row, tuple(gold), tuple(shown[held:]))


def _is_gold(one: Found, row: Example, truth: Truth, number: int | None) -> bool:
    """Whether the answer stands here: in the whole of a known gold passage (half of it, a hit in search, other passages of its kind
    may have as well), and literally where several are known; else as far as `truth` can tell."""
    golds = [folded(gold) for gold in row.gold_passages if gold.strip()]
    if golds:
        return any(gold in folded(one.chunk.text) for gold in golds) and (len(golds) == 1 or _says(one, row))
    return number is not None and truth.hits(number, one.chunk)


def _shown(pipeline: Rag, found: Sequence[Found]) -> list[str]:
    return [one.text for one in shown_passages(found, pipeline.around, pipeline.reach)]


def rendered(pipeline: Rag, shelf: Shelf, recipe: Recipe, *, gold: bool) -> Example:
    """The row in the pipeline's own turns."""
    passages = [*(shelf.gold if gold else ()), *shelf.distractors]
    random.Random(seed_of(recipe.seed, shelf.row.id)).shuffle(passages)
    return replace(shelf.row, messages=pipeline.prompt.messages(shelf.row, passages))


def _says(one: Found, row: Example) -> bool:
    """Whether the answer stands in what would be shown."""
    return containment(one.chunk.passage, row.target) > 0


def _of_gold(one: Found, row: Example) -> bool:
    """Whether it is a part of a gold passage, in which the answer may stand in other words."""
    return any(share_covered([folded(one.chunk.text)], folded(gold)) > 0 for gold in row.gold_passages)


def _dealt(shelves: Sequence[Shelf], recipe: Recipe) -> tuple[list[Shelf], list[Shelf]]:
    """Rows that are shown their gold passage, and rows that are not: `gold_share` of both together are of the first kind."""
    having, lacking = [one for one in shelves if one.gold], [one for one in shelves if not one.gold]
    draw, share = random.Random(recipe.seed), recipe.gold_share
    alone = round((1 - share) * len(shelves))
    if len(lacking) <= alone:
        drawn = {one.row.id for one in draw.sample(having, alone - len(lacking))}
        return [one for one in having if one.row.id not in drawn], [*lacking, *(one for one in having if one.row.id in drawn)]
    return having, draw.sample(lacking, min(len(lacking), round(len(having) * (1 - share) / share)))


def _say(
    task: Task, session: Session, pipeline: Rag, shelves: Sequence[Shelf], with_gold: Sequence[Shelf], alone: Sequence[Shelf]
) -> None:
    lacking, left = sum(not one.gold for one in shelves), len(shelves) - len(with_gold) - len(alone)
    unknown = f"{lacking} of {len(shelves)} training rows have their answer in no passage that is known or was found"
    if not (with_gold or alone):
        raise AdvisorError(
            f"RAFT has nothing to learn from: {unknown}",
            where=f"{task.name}, train",
            do="give the rows `gold_passages`, look at `data: {documents: …}`, or train with `method: sft`.",
        )
    text = (
        f"RAFT: {len(with_gold)} rows with their gold passage among up to {pipeline.count - 1} distractors, {len(alone)} with distractors "
        f"alone, found by {pipeline.retriever.name}"
    )
    session.on_event(Note(text))
    if lacking:
        session.on_event(Note(f"RAFT: {unknown}; {left} of these are left out, the others have distractors alone", "warning"))
