"""Rejection sampling: the model's own right answers to the training questions, as what SFT learns (Yuan et al. 2023, 2308.01825)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.flow.session import Session
from baselines.prompts.prompt import Prompt, answer_format, seed_of
from evals.candidate import PromptFormat
from evals.errors import AdvisorError
from evals.events import Note, Ticker
from evals.records import content_hash, read_json, write_json
from evals.task.example import Example
from evals.task.load import Task
from trainer.recipe import Recipe

# Under graded metrics hardly any answer scores 1: where none does, the best one is learnt if it comes so near.
GOOD = 0.9
# Below this share of rows the answers are those of the easy questions alone.
FEW = 0.25


@dataclass(frozen=True)
class Drawn:
    """An answer that the model gave, and its score by the task's first metric."""

    answer: str
    score: float


def rejection_rows(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat, folder: Path
) -> tuple[Example, ...]:
    """Each row once for every right answer that the model gives to it, all different; rows that it never answers right are left out.

    The model is asked as the tuned one will be (`fmt`), `num_generations` times at `temperature`, each time with a seed of its own.
    Right is what the task's first metric scores 1; of a row without such an answer, the best one from `GOOD` on. Each round of
    answers is kept beside `folder`, the job's own, so that an interrupted run goes on. Raises AdvisorError where none is right.
    """
    drawn = _drawn(task, session, recipe, rows, fmt, folder.with_name(f"{folder.name}-answers.json"))
    learnt = [
        replace(row, id=f"{row.id}#{at}", target=text, calls=())
        for row in rows
        for at, text in enumerate(right(drawn[row.id]), 1)
    ]
    answered = sum(bool(right(drawn[row.id])) for row in rows)
    _say(task, session, recipe, len(rows), answered, len(learnt))
    return tuple(learnt)


def right(drawn: Sequence[Drawn]) -> list[str]:
    """The answers of one row that are learnt, each once, in the order in which they were drawn."""
    good = [one for one in drawn if one.answer.strip() and one.score >= GOOD]
    best = max((one.score for one in good), default=0.0)
    kept = [one for one in good if one.score >= 1] if best >= 1 else [one for one in good if one.score == best][:1]
    return list(dict.fromkeys(one.answer.strip() for one in kept))


def _drawn(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], fmt: PromptFormat, path: Path
) -> dict[str, list[Drawn]]:
    """By row's id what was drawn, from `path` as far as it is there."""
    metric = session.metrics[0]
    key = content_hash([session.engine.fingerprint, fmt, rows, recipe.seed, recipe.temperature, metric.name, metric.settings])
    kept = read_json(path) if path.is_file() else {}
    rounds: list[dict[str, list[object]]] = kept["rounds"] if kept.get("input_hash") == key else []
    asked = Prompt("rejection", session.engine, fmt, answer_format(task, session.engine), temperature=recipe.temperature)
    for number in range(len(rounds), recipe.num_generations):
        seeded = replace(asked, seed=seed_of(recipe.seed, "rejection", number))
        told = f"answers of the model's own, {number + 1}/{recipe.num_generations}"
        rounds.append({name: [one.answer, one.score] for name, one in _round(session, seeded, rows, told).items()})
        write_json(path, {"input_hash": key, "rounds": rounds})
    taken = rounds[: recipe.num_generations]
    return {row.id: [Drawn(str(one[row.id][0]), float(str(one[row.id][1]))) for one in taken if row.id in one] for row in rows}


def _round(session: Session, candidate: Prompt, rows: Sequence[Example], doing: str) -> dict[str, Drawn]:
    """One answer to each row, as it is read for scoring. Those that the engine skipped are not among them, nor those whose
    end was cut at the limit: to learn them with an end behind would teach to break off."""
    ticker = Ticker(session.on_event, doing, len(rows), "rows")
    said: dict[str, str] = {}
    for one in session.engine.generate(candidate.requests(rows)):
        ticker.advance()
        answer = "" if one.skipped else candidate.parse(one.text)
        if not one.skipped and not (one.truncated and one.text.rstrip().endswith(answer.rstrip())):
            said[one.id] = answer
    answered = [(row, said[row.id]) for row in rows if row.id in said]
    scores = session.metrics[0](answered) if answered else []
    return {row.id: Drawn(answer, float(score)) for (row, answer), score in zip(answered, scores, strict=True)}


def _say(task: Task, session: Session, recipe: Recipe, rows: int, answered: int, learnt: int) -> None:
    draws = f"{recipe.num_generations} times at temperature {recipe.temperature:g}"
    if not learnt:
        raise AdvisorError(
            f"rejection sampling has nothing to learn: asked {draws}, the model answers none of {rows} training rows right",
            where=f"{task.name}, train",
            do="raise `num_generations` under `train:`, or train on the rows' own answers with `method: sft`.",
        )
    text = (
        f"rejection sampling: {learnt} different right answers of the model's own to {answered} of {rows} training rows, each asked "
        f"{draws}; {rows - answered} rows that it never answered right, and to an end, are left out"
    )
    session.on_event(Note(text, "warning" if answered < FEW * rows else "info"))
