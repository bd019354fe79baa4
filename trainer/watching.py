"""What is measured of the model while it trains: dev's loss, the task's own score of answers that it writes, and the tripwire's KL."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.engine import Request
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from evals.scoring import Scoring
from evals.task.example import Example
from trainer.callbacks import Probe, Watch, watching
from trainer.job import TrainingJob
from trainer.tripwire import Tripwire, limit_passed, warning
from trainer.twin import engine_of

# So many dev rows are answered in mid-training at most, and at least where there are as many.
MOST_ANSWERED, LEAST_ANSWERED = 32, 8
# Answering them is to cost about as much as so many steps,
COST_IN_STEPS = 4
# and a tenth of the training's time, where nothing hangs on it; the tripwire a fiftieth.
SHARE, TRIPWIRE_SHARE = 0.1, 0.02
# Dev's loss is measured on so many rows at most, and at least on so many where there are as many: SHARE of a training's time pays for them.
MOST_MEASURED, LEAST_MEASURED = 64, 8
# In a training too short for that many, it is measured at least so often, on fewer.
LOOKS = 4
# A prompt's token is read in a third of the time that learning from one takes; an answer's, written one by one for all rows at
# once, takes four times that time (SmolLM2 on a processor, 32 rows at once; docs/training.md).
READ, WRITTEN = 1 / 3, 4.0
# A token of the tripwire's texts takes as long as one that is learnt from: its pass is a small one, through peft's own forwards.
COMPARED = 1.0
NO_EARLY_STOP = (
    "{purpose}: the training will not stop early, and its last weights are kept: `early_stopping_patience: {patience}` goes by dev's loss, "
    "which cannot be measured here (no dev rows, or none with a `rejected` answer for DPO). Write `metric_for_best_model: score`, or "
    "leave it out."
)
# The token columns of what a trainer is given.
COLUMNS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids")
LOOKED_AT = 256


@dataclass(frozen=True)
class Measured:
    """How a method measures dev: the mean loss over rows (`loss`), of which there are `rows`."""

    rows: Sequence[Any]
    loss: Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class DevAnswers:
    """The sample of dev that the model in training answers, greedily, and how its answers are scored."""

    engine: HfEngine
    rows: tuple[Example, ...]
    scoring: Scoring
    job: TrainingJob

    def score(self) -> float:
        requests = [Request(row.id, self.job.prompt_format.messages(row), self.scoring.max_new_tokens) for row in self.rows]
        return self.scoring.mean(self.rows, {one.id: one for one in self.engine.generate(requests)})


@dataclass(frozen=True)
class Watching:
    """Everything that looks at a training. `answers` and `tripwire` are None where there is nothing to answer or to compare with."""

    watch: Watch
    probes: tuple[Probe, ...]
    answers: DevAnswers | None
    tripwire: Tripwire | None

    def callback(self, keep: Callable[[int], None], emit: OnEvent, purpose: str) -> Any:
        def heard(step: int, kl: float) -> None:
            if limit_passed([*self.watch.divergences.values()], kl):
                emit(warning(purpose, step, kl))

        return watching(self.watch, self.probes, keep, heard)

    def score(self, step: int) -> float | None:
        """The dev score of the weights of a step, which the model holds now."""
        if self.answers is None:
            return None
        known = self.watch.scores.get(step)
        return self.answers.score() if known is None else known

    def kl(self, step: int) -> float | None:
        if self.tripwire is None:
            return None
        known = self.watch.divergences.get(step)
        return self.tripwire.measure() if known is None else known


def check_scored(job: TrainingJob) -> None:
    """Raises AdvisorError where the recipe wants the best by a score that cannot be measured."""
    recipe = job.recipe
    if not recipe.early_stopping_patience or recipe.metric_for_best_model != "score":
        return
    if job.scoring is None or not job.dev:
        why = "there are no dev rows" if not job.dev else "the task's metric asks another model, which a training cannot"
        raise AdvisorError(
            f"the best weights are to be chosen by dev's score, and it cannot be measured: {why}",
            where=job.purpose,
            do="write `metric_for_best_model: loss` under `train:`.",
        )


def watch_over(trainer: Any, job: TrainingJob, dev: Measured, folder: Path, device: str, step: int, emit: OnEvent) -> Watching:
    """What is measured of `trainer`'s model, how often, and what earlier parts of the training (up to `step`) have measured.

    `dev` may have no rows: its loss is then not measured. `folder` is that of the checkpoints.
    """
    recipe = job.recipe
    by_score = recipe.metric_for_best_model == "score"
    watch = Watch(folder / "measured.json", recipe.early_stopping_patience, recipe.metric_for_best_model)
    watch.go_on_from(step)
    engine = engine_of(job, trainer.model, device)
    of_step = _tokens_of_a_step(trainer)
    probes = []
    if watch.patience and not by_score and not dev.rows:
        emit(Note(NO_EARLY_STOP.format(purpose=job.purpose, patience=watch.patience), "warning"))
    if dev.rows:
        probes.append(_loss_probe(job, dev, of_step, recipe.total_steps(len(trainer.train_dataset))))
    answers = _dev_answers(job, engine, of_step)
    if answers:
        cost = _cost_of_answers(engine, job.dev, answers.scoring) * len(answers.rows) / of_step
        decides = bool(watch.patience and by_score)
        every = recipe.eval_steps if decides else max(recipe.eval_steps, math.ceil(cost / SHARE))
        # Where nothing is chosen by it, the weights that are kept in the end are measured, not those of the last step.
        probes.append(Probe("scores", every, answers.score, at_last=decides))
        _say_cost(job, len(answers.rows), every, cost, emit)
    tripwire = _tripwire(engine, folder, step)
    if tripwire:
        every = max(2, math.ceil(tripwire.texts.tokens * COMPARED / TRIPWIRE_SHARE / of_step))
        probes.append(Probe("divergences", every, tripwire.measure))
    return Watching(watch, tuple(probes), answers, tripwire)


def _loss_probe(job: TrainingJob, dev: Measured, of_step: float, steps: int) -> Probe:
    """Dev's loss on a sample of its rows: every `eval_steps` where something is chosen by it or by the score beside it.

    Else it may take SHARE of the time of the `steps`, and is measured as often as that pays for, but not more often than every
    `eval_steps`, and `LOOKS` times in any training that is long enough for the fewest rows. The end has a measurement of all of dev.
    """
    recipe, most = job.recipe, min(MOST_MEASURED, len(dev.rows))
    drawn = random.Random(recipe.seed).sample(list(dev.rows), most)
    if recipe.early_stopping_patience:
        return Probe("losses", recipe.eval_steps, lambda: dev.loss(drawn))
    tokens = sum(len(row[name]) for row in drawn for name in COLUMNS if name in row)
    # Of one row, in steps.
    cost = max(1e-9, READ * tokens / most / of_step)
    some = max(1, steps // LOOKS)
    every = max(min(recipe.eval_steps, some), min(math.ceil(most * cost / SHARE), some))
    count = min(most, max(LEAST_MEASURED, int(every * SHARE / cost)))
    every = max(every, math.ceil(count * cost / SHARE))
    return Probe("losses", every, lambda: dev.loss(drawn[:count]), at_last=False)


def _tripwire(engine: HfEngine, folder: Path, step: int) -> Tripwire | None:
    wire = Tripwire(engine.handle, folder)
    if step == 0:
        wire.remember()
        return wire
    return wire if wire.recall() else None


def _dev_answers(job: TrainingJob, engine: HfEngine, of_step: float) -> DevAnswers | None:
    if job.scoring is None or not job.dev:
        return None
    each = _cost_of_answers(engine, job.dev, job.scoring)
    count = min(MOST_ANSWERED, max(LEAST_ANSWERED, int(COST_IN_STEPS * of_step / each)), len(job.dev))
    rows = random.Random(job.recipe.seed).sample(list(job.dev), count)
    return DevAnswers(engine, tuple(rows), job.scoring, job)


def _cost_of_answers(engine: HfEngine, rows: Sequence[Example], scoring: Scoring) -> float:
    """What answering one row costs, in tokens that are learnt from: estimated from the targets' lengths."""
    looked = rows[:LOOKED_AT]
    answers = sum(min(count, scoring.max_new_tokens) + 1 for count in engine.count_tokens([row.target for row in looked]))
    prompts = sum(engine.count_tokens([row.text for row in looked]))
    return max(1.0, (READ * prompts + WRITTEN * answers) / len(looked))


def _tokens_of_a_step(trainer: Any) -> float:
    """Tokens that one optimiser step learns from."""
    rows = trainer.train_dataset
    looked = [rows[at] for at in range(min(LOOKED_AT, len(rows)))]
    tokens = sum(len(row[name]) for row in looked for name in COLUMNS if name in row)
    rows_of_a_step: int = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    return max(1.0, tokens / len(looked) * rows_of_a_step)


def _say_cost(job: TrainingJob, rows: int, every: int, cost: float, emit: OnEvent) -> None:
    emit(
        Note(
            f"{job.purpose}: every {every} steps and at the end the model answers {rows} of {len(job.dev)} dev rows, which are scored by "
            f"{job.scoring.metric['name'] if job.scoring else ''}: about the time of {cost:.1f} steps each"
        )
    )
