"""`--dry-run`: what would be done, and about how long it would take on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from advisor.flow.advice import probe_rows
from advisor.flow.intake import what_dev_can_tell
from advisor.flow.run import run_folder
from advisor.flow.session import Session
from advisor.flow.tuned import expected, probe_recipe, recipe_for
from evals.engines.machine import measure_machine
from evals.events import ignore
from evals.task.load import Task
from trainer.estimate import Estimate


def plan(task: Task, runs_dir: Path) -> dict[str, Any]:
    """The resolved recipe and the estimates of both trainings (seconds, tokens, MiB). Nothing is run or written in the run.

    A served model is not trained: its plan names the server, which is not asked.
    """
    session = Session(task, ignore)
    said = {"run": str(run_folder(task, runs_dir)), "said": [*task.said, what_dev_can_tell(task)]}
    model = task.spec.model
    if model.served:
        server = {"base_url": model.base_url, "model": model.model_name_or_path, "max_concurrency": model.max_concurrency}
        return {**said, "server": server, "recipe": None}
    engine = session.weights
    recipe = recipe_for(task, engine)
    probe = probe_recipe(recipe)
    machine = measure_machine()
    return {
        **said,
        "machine": {"processor": machine.processor, "device": machine.device, "dtype": engine.handle.dtype},
        "recipe": asdict(recipe),
        "probe_estimate": _told(expected(task, engine, probe, probe_rows(task)), len(probe_rows(task))),
        "training_estimate": _told(expected(task, engine, recipe, task.train), len(task.train)),
    }


def _told(found: Estimate, rows: int) -> dict[str, Any]:
    return {"rows": rows, **asdict(found)}
