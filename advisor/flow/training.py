"""Training: the recommended recipe on all training rows, in a subprocess that survives the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from advisor.decision.evidence import Evidence, Purchase
from advisor.decision.recommend import Recommendation
from advisor.decision.rules import ON_TUNED
from advisor.decision.weighed import best_of
from advisor.flow.baselines import Finalists
from advisor.flow.learning_curve import RECORD, bought, settle
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.tuned import expected, in_words, job_for, recipe_for
from evals.events import Note
from evals.records import write_json
from evals.scores import Scores
from evals.task.load import Task
from trainer.job import TrainedAdapter
from trainer.launch import train

# Says that the weights were trained to be used; without it they are evidence that the advice has bought.
WANTED = "training/wanted.json"


def wanted(folder: Path) -> bool:
    """Whether a run's training was asked for, by the recommendation or by the user."""
    return (folder / WANTED).is_file() and (folder / "training" / "training.json").is_file()


def training(
    task: Task, run: Run, session: Session, arms: tuple[Scores, ...], found: Finalists, recommendation: Recommendation
) -> TrainedAdapter:
    """Write `training/`. Interrupted training goes on from its last whole checkpoint; one that the advice bought is there already.

    What the learning curve foresaw is then held to what the trained weights answer on dev.
    """

    def make() -> tuple[TrainedAdapter, str, bool]:
        recipe = recipe_for(task, session.weights)
        job = job_for(task, session, recipe, task.train, run.path("training"), "training")
        write_json(run.path("training/recipe.json"), asdict(recipe))
        write_json(run.path(WANTED), {"recommended": recommendation.trains})
        run.on_event(Note(in_words(expected(task, session.weights, recipe, job.train, memory=True))))
        trained = train(job, run.on_event)
        if run.path(RECORD).is_file():
            _hold_forecast(task, run, session, arms, found, recommendation)
        loss = "" if trained.final_loss is None else f", loss {trained.final_loss:.3f}"
        summary = f"{trained.steps} steps, {trained.seconds:.0f} s, {trained.tokens_per_second:.0f} tokens/s{loss}"
        return trained, summary, trained.reused

    return run.stage("training", f"Train ({recipe_for(task, session.weights).title})", make)


def _hold_forecast(
    task: Task, run: Run, session: Session, arms: tuple[Scores, ...], found: Finalists, recommendation: Recommendation
) -> None:
    purchase = Purchase("training", "what was foreseen is held to it", len(task.train), full=True)
    full = bought(task, run, session, purchase, found.pipeline(arms))
    real = [arm for arm in arms if arm.kind != "trivial"]
    best = best_of(real or list(arms), Evidence(arms, len(task.train), prices=task.spec.prices))
    asked = full.retrieving if recommendation.action == ON_TUNED and full.retrieving else full.scores
    settle(task, run, asked, best)
