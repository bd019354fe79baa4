"""The learning curve of a run: what its points would take, one of them bought, and its forecasts held to what came of them."""

from __future__ import annotations

import fcntl
import random
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advisor.decision.calibration import Held
from advisor.decision.evidence import Purchase, Trained, TrainingPlan
from advisor.decision.learning_curve import Forecast, subsets
from advisor.flow.doctor import CALIBRATION
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.training_rows import foreseen_rows
from advisor.flow.tuned import asked_as_trained, curve_recipe, expected, in_words, job_for, recipe_for
from baselines.rag.candidate import Rag, under
from evals.candidate import Candidate
from evals.errors import AdvisorError
from evals.evaluate import evaluate
from evals.events import Note
from evals.records import read_json, read_jsonl, write_json, write_jsonl
from evals.scores import Scores
from evals.task.example import Example
from evals.task.load import Task
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.recipe import Recipe

RECORD = "curve.json"
FULL = "tuned"
# Methods that learn the more the more rows there are; the others learn from documents, pairs, or what the model itself says.
CURVED = ("sft", "raft")


def plan_of(task: Task, session: Session, recipe: Recipe) -> TrainingPlan:
    """What the full training and each point of the curve would take on this machine, in seconds by the trainer's estimate."""
    rows = len(task.train)

    def seconds(some: int) -> float:
        return expected(
            task, session.weights, curve_recipe(recipe, some, rows), foreseen_rows(task, recipe, subset(task, some))
        ).seconds

    full = expected(task, session.weights, recipe, foreseen_rows(task, recipe, task.train)).seconds
    sizes = subsets(rows) if recipe.method in CURVED else ()
    return TrainingPlan(rows, full, tuple((some, seconds(some)) for some in sizes))


def subset(task: Task, rows: int) -> tuple[Example, ...]:
    """The first of the training rows in one seeded order: a smaller subset is the beginning of every larger one."""
    order = list(task.train)
    random.Random(task.spec.seed).shuffle(order)
    return tuple(order[:rows])


def bought(task: Task, run: Run, session: Session, purchase: Purchase, pipeline: Rag | None) -> Trained:
    """Train what was asked for, and ask the weights about every dev item: plainly, and with `pipeline`'s passages if there is one.

    A full training lies where the stage `training` looks for it; a point of the curve in `curve/<rows>-<seed>/`.
    """
    recipe = recipe_for(task, session.weights)
    job = _full(task, run, session, recipe) if purchase.full else _point(task, run, session, recipe, purchase)
    run.on_event(Note(in_words(expected(task, session.weights, job.recipe, job.train, memory=True))))
    trained = train(job, run.on_event)
    name = FULL if purchase.full else f"tuned_{purchase.rows}_{purchase.seed}"
    candidate = asked_as_trained(task, session, recipe, trained.folder, name, run.folder)
    retrieving = None
    # RAFT's weights are asked with passages as it is.
    if pipeline is not None and candidate.engine is not None and recipe.method != "raft":
        retrieving = _asked(task, run, session, under(pipeline, candidate.engine, f"{name}_with_retrieval"))
    scores = _asked(task, run, session, candidate)
    return Trained(purchase.rows, purchase.seed, purchase.full, scores, retrieving, trained.seconds)


def keep_forecast(run: Run, forecast: Forecast) -> None:
    """Add a forecast to the run's `curve.json`; one that rests on the same points takes the place of the earlier."""
    record = _record(run)
    points = [[one.rows, one.seed] for one in forecast.points]
    others = [one for one in record["forecasts"] if [[point["rows"], point["seed"]] for point in one["points"]] != points]
    write_json(run.path(RECORD), {**record, "forecasts": [*others, asdict(forecast)]})


def settle(task: Task, run: Run, full: Scores, best: Scores) -> None:
    """Hold the run's last forecast to what the full training gained on the same dev items, in `curve.json` and in the calibration
    beside the runs. Nothing where nothing was forecast.

    `best` is the candidate that the forecast was against. Raises AdvisorError where the two were not scored on the same items.
    """
    record = _record(run)
    if not record["forecasts"]:
        return
    if [one.id for one in full.items] != [one.id for one in best.items]:
        raise AdvisorError(f"{full.candidate} and {best.candidate} were not scored on the same items", where=run.id)
    foreseen = record["forecasts"][-1]
    observed = full.mean - best.mean
    write_json(run.path(RECORD), {**record, "observed": {"gain": observed, "score": full.mean, "best": best.candidate}})
    held = Held(
        run=run.id,
        task=task.name,
        model=task.spec.model.model_name_or_path,
        rows=foreseen["rows"],
        points=len(foreseen["points"]),
        pays=foreseen["pays"],
        gain=foreseen["gain"],
        low=foreseen["run_low"],
        high=foreseen["run_high"],
        chance=foreseen["chance"],
        observed=observed,
        date=datetime.now(UTC).date().isoformat(),
    )
    _add_to_calibration(run.folder.parent, held)


def _full(task: Task, run: Run, session: Session, recipe: Recipe) -> TrainingJob:
    """The very job of the stage `training`."""
    write_json(run.path("training/recipe.json"), asdict(recipe))
    return job_for(task, session, recipe, task.train, run.path("training"), "training")


def _point(task: Task, run: Run, session: Session, recipe: Recipe, purchase: Purchase) -> TrainingJob:
    """A training on a subset, whose seed is so many beyond the recipe's own."""
    short = curve_recipe(recipe, purchase.rows, len(task.train))
    short = replace(short, seed=recipe.seed + purchase.seed)
    folder = run.path("curve") / f"{purchase.rows}-{purchase.seed}"
    name = f"{purchase.rows} rows, seed {purchase.seed}"
    # A point is asked on all of dev once it is there: answers on the way would only take time.
    return job_for(task, session, short, subset(task, purchase.rows), folder, name, scored=False)


def _asked(task: Task, run: Run, session: Session, candidate: Candidate) -> Scores:
    return evaluate(task, candidate, "dev", run.path("probes"), run.on_event, session.metrics)


def _record(run: Run) -> dict[str, Any]:
    path = run.path(RECORD)
    return read_json(path) if path.is_file() else {"forecasts": []}


def _add_to_calibration(folder: Path, held: Held) -> None:
    """One line a run, the newest in place of an older one. Runs that end at the same time wait for each other."""
    path = folder / CALIBRATION
    with (folder / f".{CALIBRATION}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = [one for one in read_jsonl(path) if one.get("run") != held.run] if path.is_file() else []
        write_jsonl(path, [*others, asdict(held)])
