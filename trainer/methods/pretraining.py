"""Continued pretraining on the task's documents: the loss on every token of raw text (Gururangan et al. 2020, 2004.10964).

The honest test of "train the knowledge in": what comes of it is asked for by the task's own questions, whose loss dev measures.
"""

from __future__ import annotations

from dataclasses import replace

from evals.events import Note, OnEvent
from trainer.answer_trainer import train_on
from trainer.callbacks import Stop
from trainer.data import encode_all, encode_replay, load_tokenizer
from trainer.job import TrainedAdapter, TrainingJob
from trainer.raw_text import encode_documents


def run(job: TrainingJob, input_hash: str, emit: OnEvent, stop: Stop) -> TrainedAdapter | None:
    """Train to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept).

    The job's train rows are documents, its dev rows questions: dev's loss is that of their answers, as in SFT. Replay rows are
    conversations with the base's replies, and learnt as such.
    """
    recipe = job.recipe
    tokenizer = load_tokenizer(job.model_folder)
    train = encode_documents(tokenizer, job.train, recipe.max_length)
    dev = encode_all(tokenizer, job.prompt_format, job.dev, recipe, "dev", emit)
    replay = encode_replay(tokenizer, job.replay, recipe.max_length, emit)
    documents = len(job.train) - train.dropped
    left_out = f" ({train.dropped} without any text are left out)" if train.dropped else ""
    emit(
        Note(
            f"{job.purpose}: {documents} documents{left_out}, {train.tokens:,} tokens in {len(train.rows)} blocks, each learnt once a pass"
        )
    )
    ids = (*train.ids, *(f"replay {at}" for at in range(1, len(replay) + 1)))
    train = replace(train, rows=train.rows + replay)
    return train_on(job, input_hash, tokenizer, train, dev, emit, stop, rows=documents, ids=ids)
