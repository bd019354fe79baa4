"""Training: the recommended recipe on all training rows, in a subprocess that survives the screen."""

from __future__ import annotations

from dataclasses import asdict

from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.tuned import expected, in_words, job_for, recipe_for
from evals.events import Note
from evals.records import write_json
from evals.task.load import Task
from trainer.job import TrainedAdapter
from trainer.launch import train


def training(task: Task, run: Run, session: Session) -> TrainedAdapter:
    """Write `training/`. Interrupted training goes on from its last whole checkpoint."""

    def make() -> tuple[TrainedAdapter, str, bool]:
        recipe = recipe_for(task, session.weights)
        job = job_for(task, session, recipe, task.train, run.path("training"), "training")
        write_json(run.path("training/recipe.json"), asdict(recipe))
        run.on_event(Note(in_words(expected(task, session.weights, recipe, task.train))))
        trained = train(job, run.on_event)
        loss = "" if trained.final_loss is None else f", loss {trained.final_loss:.3f}"
        summary = f"{trained.steps} steps, {trained.seconds:.0f} s, {trained.tokens_per_second:.0f} tokens/s{loss}"
        return trained, summary, trained.reused

    return run.stage("training", "Train (LoRA, SFT)", make)
