"""A few real steps of a training, for an estimate that rests on this machine, this model and these rows instead of a formula."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

from evals.errors import AdvisorError
from evals.events import Event, OnEvent, TrainingStep
from evals.task.example import Example
from trainer.estimate import Trial
from trainer.job import TrainedAdapter, TrainingJob
from trainer.launch import train
from trainer.replay import Replay, prompts

STEPS = 6


def trial(job: TrainingJob, folder: Path, *, steps: int = STEPS) -> TrainingJob:
    """The job cut to `steps` steps, in a folder of its own and without dev: a batch of its longest rows, which decide its memory, and
    rows drawn by its seed, in batches as it makes them.

    Replay rows keep their share, with stand-ins for the base's replies (their length matters here, not their words): a batch with
    them begins less alike than one without, which is slower.
    """
    recipe = job.recipe
    batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    needed = steps * batch
    draw = random.Random(recipe.seed)
    general = draw.sample(prompts(), min(len(prompts()), round(needed * recipe.replay_share)))
    longest = sorted(job.train, key=_characters, reverse=True)[:batch]
    others = [row for row in job.train if row not in longest]
    rows = [*longest, *draw.sample(others, max(0, min(needed - len(general) - len(longest), len(others))))]
    passes = steps / recipe.steps_of_a_pass(len(rows) + len(general))
    # Nothing is kept of it: no checkpoint on the way.
    short = replace(recipe, num_train_epochs=max(passes, 1.0), max_steps=steps, early_stopping_patience=0, save_steps=steps + 1)
    return replace(
        job,
        recipe=short,
        train=tuple(rows),
        dev=(),
        replay=tuple(Replay(text, text, True) for text in general),
        folder=folder,
        purpose=f"{steps} steps to calibrate the estimate",
    )


def _characters(row: Example) -> int:
    return sum(len(turn.content) for turn in row.messages) + len(row.target) + len(row.rejected or "")


def tried(job: TrainingJob, folder: Path, on_event: OnEvent, *, steps: int = STEPS) -> Trial:
    """What real steps of this job show, by `train` in `folder`, which is left to the caller to remove.

    The first step is left out of the rate: it has the longest rows, and makes room in memory and fills caches. Takes as long as loading
    the model and `steps` (2 or more) steps. Raises AdvisorError where the training fails.
    """
    heard: dict[int, tuple[float, TrainingStep]] = {}
    began = time.monotonic()

    def listen(event: Event) -> None:
        if isinstance(event, TrainingStep):
            # The last step is told once more when all is done.
            heard.setdefault(event.step, (time.monotonic(), event))
        on_event(event)

    trained = train(trial(job, folder, steps=steps), listen)
    wall = time.monotonic() - began
    return Trial(_rate(trained, heard), max(0.0, wall - trained.seconds), trained.peak_memory_mib, trained.steps)


def _rate(trained: TrainedAdapter, heard: dict[int, tuple[float, TrainingStep]]) -> float:
    """Tokens of all steps but the first, by the time between the ends of the first and the last."""
    if len(heard) < 2:
        raise AdvisorError("too few steps to measure a rate of training", where=str(trained.folder))
    (began, first), (ended, _) = heard[min(heard)], heard[max(heard)]
    # What is left to do is told as steps times the seconds of the one that is done.
    tokens = first.tokens_per_second * first.eta / (first.total_steps - first.step)
    return (trained.train_tokens - tokens) / max(ended - began, 1e-9)
