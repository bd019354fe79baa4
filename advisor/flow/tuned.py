"""What a tuned model is asked, and with which recipe: the same prompt format for training it and for scoring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advisor.flow.session import Session
from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import PromptFormat
from evals.engines.hf import HfEngine
from evals.task.example import Example
from evals.task.load import Task
from trainer.job import TrainingJob
from trainer.recipe import Recipe, recommended_recipe

PROBE_EPOCHS = 3


def short_instruction(text: str) -> str:
    """The first paragraph: weights learn the rest from the rows, and each later request is that much cheaper."""
    return text.split("\n\n", 1)[0].strip()


def recipe_for(task: Task, engine: HfEngine) -> Recipe:
    return recommended_recipe(
        rows=len(task.train),
        parameters=engine.parameters,
        overrides=task.spec.train,
        where=str(task.folder / "task.yaml"),
        seed=task.spec.seed,
    )


def probe_recipe(recipe: Recipe) -> Recipe:
    """The same recipe with fewer passes: enough to see whether training helps, not how far."""
    return replace(recipe, num_train_epochs=min(recipe.num_train_epochs, PROBE_EPOCHS))


def prompt_format(task: Task, recipe: Recipe) -> PromptFormat:
    text = task.instruction if recipe.instruction == "full" else short_instruction(task.instruction)
    return PromptFormat(text, "inline")


def job_for(task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], folder: Path, purpose: str) -> TrainingJob:
    """Training sees train and dev only: the test rows are not among its arguments."""
    handle = session.engine.handle
    return TrainingJob(
        model_folder=handle.folder,
        recipe=recipe,
        prompt_format=prompt_format(task, recipe),
        train=tuple(rows),
        dev=task.dev,
        folder=folder,
        dtype=handle.dtype,
        purpose=purpose,
    )


def tuned_candidate(task: Task, session: Session, adapter: Path, name: str, fmt: PromptFormat) -> Prompt:
    engine = session.engine.with_adapter(adapter, name)
    return Prompt(name, engine, fmt, answer_format(task, engine), kind="tuned")
