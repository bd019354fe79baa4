"""What a tuned model is asked, and with which recipe: the same prompt format for training it and for scoring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advisor.flow.session import Session
from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import PromptFormat
from evals.engines.hf import HfEngine
from evals.engines.machine import measure_machine
from evals.records import content_hash, read_json, write_json
from evals.task.example import Example
from evals.task.load import Task
from trainer.estimate import Estimate, estimate, training_rate
from trainer.job import TrainingJob
from trainer.recipe import Recipe, recommended_recipe
from trainer.replay import Replay, base_replies, prompts, rows_for

PROBE_EPOCHS = 4.0


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
    """The same recipe with the passes that fewer rows need, and without replay: what a probe forgets is not asked."""
    return replace(recipe, num_train_epochs=PROBE_EPOCHS, replay_share=0.0)


def prompt_format(task: Task, recipe: Recipe) -> PromptFormat:
    text = task.instruction if recipe.instruction == "full" else short_instruction(task.instruction)
    return PromptFormat(text, "inline")


def job_for(task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], folder: Path, purpose: str) -> TrainingJob:
    """Training sees train and dev only: the test rows are not among its arguments."""
    handle = session.weights.handle
    return TrainingJob(
        model_folder=handle.folder,
        recipe=recipe,
        prompt_format=prompt_format(task, recipe),
        train=tuple(rows),
        dev=task.dev,
        folder=folder,
        dtype=handle.dtype,
        purpose=purpose,
        replay=_replay(session, recipe, len(rows), folder),
    )


def expected(task: Task, engine: HfEngine, recipe: Recipe, rows: Sequence[Example]) -> Estimate:
    """What a training will take on this machine, by the trainer's formula: tokens of prompts by the chat template, and answers."""
    fmt = prompt_format(task, recipe)
    tokens = sum(len(engine.prompt_ids(fmt.messages(example))) for example in rows)
    tokens += sum(engine.count_tokens([example.target for example in rows]))
    rate = training_rate(measure_machine(), engine.handle.dtype, engine.parameters)
    # Replay rows are counted as rows of the task's own length.
    every = len(rows) + rows_for(recipe.replay_share, len(rows))
    tokens = tokens * every // max(1, len(rows))
    return estimate(recipe, engine.parameters, tokens, rate, rows=every, dtype=engine.handle.dtype)


def in_words(found: Estimate) -> str:
    """Said before a training, so that nobody waits for what does not pay."""
    slow = "; this processor has no fast bf16 units" if measure_machine().slow else ""
    return f"about {found.seconds / 60:.1f} minutes of training ({found.steps} steps) and {found.memory_mib:.0f} MiB expected{slow}"


def _replay(session: Session, recipe: Recipe, rows: int, folder: Path) -> tuple[Replay, ...]:
    """The base's replies for this recipe, asked once and kept beside the job."""
    count = rows_for(recipe.replay_share, rows)
    if not count:
        return ()
    key = content_hash([session.engine.fingerprint, recipe.seed, prompts(), count])
    path = folder.parent / "replay.json"
    if path.is_file() and (kept := read_json(path)).get("input_hash") == key:
        return tuple(Replay(**one) for one in kept["replies"])
    replies = base_replies(session.engine, count, recipe.seed, session.on_event)
    write_json(path, {"input_hash": key, "replies": replies})
    return replies


def tuned_candidate(task: Task, session: Session, adapter: Path, name: str, fmt: PromptFormat) -> Prompt:
    engine = session.weights.with_adapter(adapter, name)
    return Prompt(name, engine, fmt, answer_format(task, engine), kind="tuned")
