"""From a trl trainer to trained weights on disk: going on from the last whole checkpoint, events on the way, the record at the end.

What a method brings (rows, loss, trainer) is in `methods/`; what all of them share is here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.machine import physical_cores
from evals.events import Note, OnEvent, TrainingStep
from trainer.callbacks import Meter, Stop, event_stream
from trainer.card import write_card
from trainer.checkpoints import BEST, Spent, delete_foreign, keep_weights, last_complete, prune_best, refuse_pickles
from trainer.job import TrainedAdapter, TrainingJob, flattering
from trainer.model import learn_in_fp32
from trainer.saving import load_weights, save_weights
from trainer.settled import Settled, read_settled
from trainer.surviving import Guard
from trainer.template import prepared
from trainer.watching import Measured, check_scored, watch_over


@dataclass(frozen=True)
class Start:
    """Where a training begins: the device, and the checkpoint that it goes on from (None at the very beginning)."""

    device: str
    checkpoints: Path
    kept: Path | None
    meter: Meter

    @property
    def step(self) -> int:
        return int(self.kept.name.removeprefix("checkpoint-")) if self.kept else 0


def begin(job: TrainingJob, emit: OnEvent) -> Start:
    """Seeds, threads and the last whole checkpoint of the job's folder."""
    import torch
    from transformers import set_seed

    check_scored(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = _threads(job.folder)
    if device == "cpu":
        torch.set_num_threads(threads)
    checkpoints = job.folder / "checkpoints"
    for name in delete_foreign(checkpoints, job.input_hash):
        emit(Note(f"{job.purpose}: {name} is of another base, recipe or rows: it is not gone on from, and deleted", "warning"))
    found = last_complete(checkpoints)
    kept, spent = found or (None, Spent())
    if kept:
        refuse_pickles(kept)
    start = Start(device, checkpoints, kept, Meter(before=spent))
    if kept:
        emit(Note(f"{job.purpose}: going on from step {start.step}"))
    set_seed(job.recipe.seed)
    return start


def _threads(folder: Path) -> int:
    """As many as there are cores of their own: counted, not measured, and kept for going on, so that sums are rounded alike."""
    settled = read_settled(folder) or Settled(physical_cores())
    settled.write(folder)
    return settled.threads


def finish(
    job: TrainingJob,
    input_hash: str,
    trainer: Any,
    start: Start,
    dev: Measured,
    emit: OnEvent,
    stop: Stop,
    *,
    rows: int,
    dropped: int,
    ids: Sequence[str] = (),
) -> TrainedAdapter | None:
    """Train to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept).

    `rows` of the task are trained on, and `dropped` were too long. `ids` names the rows of the training set, in its order.
    """
    meter = start.meter
    learn_in_fp32(trainer.model)
    trainer.guard = Guard(
        job.folder, input_hash, job.purpose, job.recipe.save_total_limit, emit, meter, ids or _ids(job, dropped)
    )
    looks = watch_over(trainer, job, dev, start.checkpoints, start.device, start.step, emit)
    watch = looks.watch
    trainer.add_callback(event_stream(emit, meter, stop, job.purpose, watch))
    # After the one that hears 'stop', so that no checkpoint is made of the step at which a training ends.
    trainer.add_callback(looks.callback(_keeper(trainer, start.checkpoints), emit, job.purpose))
    trainer.train(resume_from_checkpoint=str(start.kept) if start.kept else None)
    stop.training = False
    steps = trainer.state.global_step
    if steps < trainer.state.max_steps and not watch.over:
        return None

    spent = meter.spent
    kept = watch.best if watch.patience and watch.decisive else steps
    if kept < steps:
        load_weights(trainer.model, start.checkpoints / f"{BEST}{kept}")
        emit(Note(f"{job.purpose}: the weights of step {kept} of {steps} are kept, the best on dev"))
    chosen_of = len(watch.decisive) if watch.patience else 0
    if told := flattering(job.recipe, chosen_of):
        emit(Note(f"{job.purpose}: {told}"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final_loss = sum(losses[-10:]) / len(losses[-10:])
    dev_loss = dev.loss(dev.rows) if dev.rows else None
    speed = spent.tokens / max(spent.seconds, 1e-9)
    score, kl = looks.score(kept), looks.kl(kept)
    memory = meter.spent.memory_mib
    emit(TrainingStep(job.purpose, steps, steps, final_loss, dev_loss, 0.0, speed, 0.0, memory, dev_score=score, kl=kl))
    trained = TrainedAdapter(
        folder=save_weights(trainer.model, job.folder, tokenizer_of=job.model_folder, beside=prepared(job).save),
        input_hash=input_hash,
        steps=steps,
        train_tokens=spent.tokens,
        seconds=round(spent.seconds, 3),
        tokens_per_second=round(speed, 1),
        final_loss=final_loss,
        dev_loss=dev_loss,
        peak_memory_mib=round(memory, 1),
        rows=rows,
        dropped=dropped,
        reused=False,
        dev_score=score,
        kl=kl,
        chosen_of=chosen_of,
    )
    write_card(trained.folder, job, trained)
    trained.write(job.folder)
    if job.recipe.save_total_limit > 1:
        keep_weights(start.checkpoints, kept)
    else:
        shutil.rmtree(start.checkpoints, ignore_errors=True)
    return trained


def _ids(job: TrainingJob, dropped: int) -> tuple[str, ...]:
    """The job's rows come first in every training set, replay behind them; which of them were dropped, only the method knows."""
    return () if dropped else tuple(row.id for row in job.train)


def _keeper(trainer: Any, checkpoints: Path) -> Callable[[int], None]:
    """Keeps the weights of a step by its number. Going on from a checkpoint, an earlier one may be the best again."""

    def keep(step: int) -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        save_weights(trainer.model, checkpoints, f"{BEST}{step}")
        prune_best(checkpoints)

    return keep
