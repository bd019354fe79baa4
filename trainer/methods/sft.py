"""Supervised fine-tuning (the loss on the assistant's tokens) through trl's SFTTrainer, read from top to bottom."""

from __future__ import annotations

from dataclasses import replace

from evals.events import OnEvent
from trainer.answer_trainer import train_on
from trainer.callbacks import Stop
from trainer.data import encode_all, encode_replay
from trainer.job import TrainedAdapter, TrainingJob
from trainer.template import prepared


def run(job: TrainingJob, input_hash: str, emit: OnEvent, stop: Stop) -> TrainedAdapter | None:
    """Train to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept)."""
    recipe = job.recipe
    tokenizer = prepared(job).tokenizer
    train = encode_all(tokenizer, job.prompt_format, job.train, recipe, "train", emit)
    dev = encode_all(tokenizer, job.prompt_format, job.dev, recipe, "dev", emit)
    task_rows = len(train.rows)
    replay = encode_replay(tokenizer, job.replay, recipe.max_length, emit)
    ids = (*train.ids, *(f"replay {at}" for at in range(1, len(replay) + 1)))
    train = replace(train, rows=train.rows + replay)
    return train_on(job, input_hash, tokenizer, train, dev, emit, stop, rows=task_rows, ids=ids)
