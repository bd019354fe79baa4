"""`--dry-run`: what would be done, why so, and about how long it would take and how much memory on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.flow.intake import what_dev_can_tell
from advisor.flow.learning_curve import plan_of
from advisor.flow.mask import TrainingMask, training_mask
from advisor.flow.run import run_folder
from advisor.flow.session import Session
from advisor.flow.training_rows import foreseen_rows
from advisor.flow.tuned import expected, job_for, recipe_for, require_trainable, too_little_replay
from evals.engines.machine import Machine, free_memory_mib, measure_machine
from evals.events import OnEvent, ignore
from evals.task.load import Task
from trainer.calibrate import tried
from trainer.estimate import Estimate, calibrated, scaled
from trainer.recipe import Recipe
from trainer.recipe_reasons import reasons
from trainer.work import learnt_rows


@dataclass(frozen=True)
class TrainingPlan:
    """The training in full: its recipe with the source of each setting, rows with what is learnt of them, and what it will take.

    `curve` are (rows, seconds) of the trainings that the advice may buy before it.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    mask: TrainingMask
    estimate: Estimate
    rows: int
    curve: tuple[tuple[int, float], ...]
    machine: Machine
    dtype: str
    gpu_hour: float | None
    free_mib: float

    @property
    def fits(self) -> bool:
        return self.estimate.memory_mib is None or self.estimate.memory_mib <= self.free_mib

    @property
    def advice(self) -> str:
        """What to do where it does not fit into memory; empty where it does."""
        if self.fits:
            return ""
        less = f"per_device_train_batch_size: {self.recipe.per_device_train_batch_size // 2} and twice the gradient_accumulation_steps"
        other = less if self.recipe.gradient_checkpointing else f"gradient_checkpointing: true, or {less}"
        return (
            f"{self.estimate.memory_mib:,.0f} MiB are expected and {self.free_mib:,.0f} MiB are free. Set under `train:` {other}; "
            "without it the batch is halved when memory runs out."
        )


@dataclass(frozen=True)
class Plan:
    """`training` is None for a served model, whose weights are not here; `server` says then who is asked."""

    run: str
    said: tuple[str, ...]
    training: TrainingPlan | None = None
    server: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        body: dict[str, Any] = {"run": self.run, "said": list(self.said)}
        one = self.training
        if one is None:
            return {**body, "server": dict(self.server), "recipe": None}
        told = {"rows": one.rows, **asdict(one.estimate), "money": one.estimate.money(one.gpu_hour)}
        return {
            **body,
            "machine": {"processor": one.machine.processor, "device": one.machine.device, "dtype": one.dtype},
            "recipe": asdict(one.recipe),
            "reasons": dict(one.reasons),
            "examples": [
                {
                    "id": row.row.example.id,
                    "answer": row.answer or "target",
                    "fits": row.fits,
                    "segments": [asdict(segment) for segment in row.segments],
                }
                for row in one.mask.rows
            ],
            "examples_stand_ins": one.mask.stand_ins,
            "learning_curve": [{"rows": rows, "seconds": round(seconds, 1)} for rows, seconds in one.curve],
            "training_estimate": told,
            "memory_free_mib": one.free_mib,
        }


def plan(task: Task, runs_dir: Path, *, calibrate: bool = False, on_event: OnEvent = ignore) -> Plan:
    """Nothing is run or written in the run. With `calibrate` a few real steps are trained in a folder that is removed again, and the
    estimates rest on them. A served model is not trained: its plan names the server, which is not asked."""
    session = Session(task, on_event)
    run, said = str(run_folder(task, runs_dir)), (*task.said, what_dev_can_tell(task))
    model = task.spec.model
    if model.served:
        server = {"base_url": model.base_url, "model": model.model_name_or_path, "max_concurrency": model.max_concurrency}
        return Plan(run, said, server=server)
    engine = session.weights
    require_trainable(task, engine)
    recipe = recipe_for(task, engine)
    subsets = plan_of(task, session, recipe).subsets
    rows = foreseen_rows(task, recipe, task.train)
    said = (*said, *filter(None, [too_little_replay(task, recipe, learnt_rows(engine.handle.tokenizer, recipe, rows))]))
    whole = expected(task, engine, recipe, rows, memory=True)
    if calibrate:
        formula, whole = whole, _calibrated(task, session, recipe, whole, on_event)
        subsets = tuple((some, scaled(seconds, formula, whole)) for some, seconds in subsets)
    found = TrainingPlan(
        recipe,
        reasons(recipe, task.spec.train),
        training_mask(task, engine),
        whole,
        len(rows),
        subsets,
        measure_machine(),
        engine.handle.dtype,
        task.spec.prices.gpu_hour,
        free_memory_mib(engine.handle.device),
    )
    return Plan(run, said, found)


def _calibrated(task: Task, session: Session, recipe: Recipe, formula: Estimate, on_event: OnEvent) -> Estimate:
    with tempfile.TemporaryDirectory(prefix="advisor-calibrate-") as name:
        # Without replay, whose replies would have to be asked for: the trial has stand-ins for them.
        job = job_for(task, session, replace(recipe, replay_share=0.0), task.train, Path(name), "calibrate")
        return calibrated(formula, tried(replace(job, recipe=recipe), Path(name) / "trial", on_event))
