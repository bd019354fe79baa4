"""Pairs of a better and a worse answer for DPO: the user's own, or made of the task's rows and the model's mistakes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advisor.flow.session import Session
from baselines.prompts.prompt import Prompt, answer_format, seed_of
from evals.candidate import PromptFormat
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker
from evals.records import content_hash, read_json, write_json
from evals.task.example import Example
from evals.task.load import Task
from trainer.recipe import Recipe

# Of fewer pairs nothing is learnt that would hold for other rows; made from a task they say that the model is right already.
FEW = 8
# A model that is wrong about so many rows does not know what to say: DPO makes its answers less likely and right ones hardly likely
# (SmolLM2 on `triage`: every dev pair is won after 20 steps, and the score stays 0).
CLUELESS = 0.9


def preference_rows(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat, folder: Path
) -> tuple[Example, ...]:
    """Rows with `rejected` set, for a training that is given these `rows` of train and asked in the form of `fmt`.

    The user's pairs where there are any: all of them for all rows of train, for a part of the rows (a point of the learning curve) as
    large a part, drawn with the task's seed, so that a larger one holds the smaller. Else pairs are made of the rows, and kept beside
    `folder`, the job's own. Test rows are in neither. Raises AdvisorError where there are none.
    """
    given = given_pairs(task, session.on_event)
    if given and len(rows) >= len(task.train):
        return given
    if given:
        drawn = random.Random(task.spec.seed).sample(given, len(given))
        return tuple(drawn[: max(1, round(len(given) * len(rows) / len(task.train)))])
    return made_pairs(task, session, recipe, rows, fmt, folder.with_name(f"{folder.name}-pairs.json"))


def usable_pairs(task: Task) -> tuple[Example, ...]:
    """The pairs of `data.preferences` and of train, whose two answers differ; DPO makes its own where there are none."""
    return tuple(one for one in _paired(task) if (one.rejected or "").strip() != one.target.strip())


def _paired(task: Task) -> list[Example]:
    return [one for one in task.liked_or_not if one.rejected is not None]


def given_pairs(task: Task, on_event: OnEvent) -> tuple[Example, ...]:
    """`usable_pairs`; what is left aside is said. Answers that were only liked or disliked, as KTO takes them, are no pairs."""
    paired = _paired(task)
    judged = len(task.liked_or_not) - len(paired)
    if judged:
        text = f"DPO: {judged} rows of preferences have a verdict on one answer and no second one: they are left aside, DPO needs pairs"
        on_event(Note(text, "warning"))
    different = usable_pairs(task)
    if len(different) < len(paired):
        text = f"DPO: {len(paired) - len(different)} of {len(paired)} pairs have one and the same answer twice and are left out"
        on_event(Note(text, "warning"))
    if different:
        on_event(Note(f"DPO: {len(different)} pairs of the task's preferences"))
    return different


def made_pairs(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat, kept: Path
) -> tuple[Example, ...]:
    """The right answer of each row against the model's own wrong one, which the task's first metric scores below 1.

    The model is asked as the tuned model will be: greedily first, then, where it is right, up to `num_generations` times at
    `temperature` with seeds (Pang et al. 2024, 2404.19733, take pairs of sampled right and wrong answers alike). Rows that it
    answers right each time give no pair.
    """
    key = content_hash(
        [session.engine.fingerprint, fmt, rows, recipe.seed, recipe.num_generations, recipe.temperature]
        + [[one.name, one.settings] for one in session.metrics[:1]]
    )
    found = read_json(kept) if kept.is_file() else {}
    if found.get("input_hash") != key:
        wrong_at_once, every_wrong = _wrong_answers(task, session, recipe, rows, fmt)
        found = {"input_hash": key, "wrong_at_once": wrong_at_once, "wrong": every_wrong}
        write_json(kept, found)
    wrong: dict[str, str] = found["wrong"]
    pairs = tuple(replace(row, rejected=wrong[row.id]) for row in rows if row.id in wrong)
    _say(task, session.on_event, len(pairs), len(rows), recipe)
    if found["wrong_at_once"] >= CLUELESS * len(rows):
        text = (
            f"DPO: the model answers {found['wrong_at_once']} of {len(rows)} training rows wrong as it is: it will learn what not to say, "
            "and hardly what to say; train with `method: sft`"
        )
        session.on_event(Note(text, "warning"))
    return pairs


def _say(task: Task, on_event: OnEvent, pairs: int, rows: int, recipe: Recipe) -> None:
    if not pairs:
        raise AdvisorError(
            f"no pair for DPO: the model answers all {rows} training rows right, {recipe.num_generations + 1} times each",
            where=f"{task.name}, train",
            do="there is nothing to unlearn; give pairs of your own (`data: {preferences: pairs.jsonl}`), or train with `method: sft`.",
        )
    text = (
        f"DPO: no pairs were given, so that {pairs} were made of {rows} training rows: the right answer against the model's own wrong "
        f"one ({rows - pairs} rows gave none: it answered them right each time, or with nothing)"
    )
    on_event(Note(text))
    if pairs < FEW:
        on_event(Note(f"DPO: {pairs} pairs are hardly enough to learn from", "warning"))


def _wrong_answers(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat
) -> tuple[int, dict[str, str]]:
    """How many rows were answered wrong greedily, and row's id -> an answer that the first metric scores below 1, where there is one."""
    greedy = Prompt("pairs", session.engine, fmt, answer_format(task, session.engine))
    wrong = _wrong(session, greedy, rows, "the model's own answers, for pairs")
    wrong_at_once = len(wrong)
    for number in range(recipe.num_generations):
        left = [row for row in rows if row.id not in wrong]
        if not left:
            break
        drawn = replace(greedy, temperature=recipe.temperature, seed=seed_of(recipe.seed, "pairs", number))
        wrong |= _wrong(session, drawn, left, f"drawn again where it was right, {number + 1}/{recipe.num_generations}")
    return wrong_at_once, wrong


def _wrong(session: Session, candidate: Prompt, rows: Sequence[Example], doing: str) -> dict[str, str]:
    """The answers of this candidate that are wrong: as they were read for scoring, and not empty."""
    ticker = Ticker(session.on_event, doing, len(rows), "rows")
    said: dict[str, str] = {}
    for one in session.engine.generate(candidate.requests(rows)):
        ticker.advance()
        if not one.skipped:
            said[one.id] = candidate.parse(one.text)
    answered = [(row, said[row.id]) for row in rows if said.get(row.id, "").strip()]
    scores = session.metrics[0](answered) if answered else []
    return {
        row.id: answer
        for (row, answer), score in zip(answered, scores, strict=True)
        if score < 1 and answer.strip() != row.target.strip()
    }
