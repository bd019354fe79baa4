"""`--dry-run`: what would be done, and about how long it would take on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from advisor.flow.advice import probe_rows
from advisor.flow.intake import what_dev_can_tell
from advisor.flow.run import run_folder
from advisor.flow.session import Session
from advisor.flow.tuned import probe_recipe, prompt_format, recipe_for
from evals.candidate import PromptFormat
from evals.engines.hf import HfEngine
from evals.engines.machine import measure_machine
from evals.events import ignore
from evals.task.example import Example
from evals.task.load import Task
from trainer.estimate import estimate, training_rate
from trainer.recipe import Recipe


def plan(task: Task, runs_dir: Path) -> dict[str, Any]:
    """The resolved recipe and the estimates of both trainings (seconds, tokens, MiB). Nothing is run or written in the run."""
    session = Session(task, ignore)
    recipe = recipe_for(task, session.engine)
    probe = probe_recipe(recipe)
    machine = measure_machine()
    return {
        "run": str(run_folder(task, runs_dir)),
        "said": [*task.said, what_dev_can_tell(task)],
        "machine": {"processor": machine.processor, "device": machine.device, "dtype": session.engine.handle.dtype},
        "recipe": asdict(recipe),
        "probe_estimate": _estimate(task, session.engine, probe, probe_rows(task)),
        "training_estimate": _estimate(task, session.engine, recipe, task.train),
    }


def _estimate(task: Task, engine: HfEngine, recipe: Recipe, rows: tuple[Example, ...]) -> dict[str, Any]:
    dtype = engine.handle.dtype
    rate = training_rate(measure_machine(), dtype, engine.parameters)
    tokens = _tokens(engine, prompt_format(task, recipe), rows)
    return {"rows": len(rows), **asdict(estimate(recipe, engine.parameters, tokens, rate, rows=len(rows), dtype=dtype))}


def _tokens(engine: HfEngine, fmt: PromptFormat, rows: tuple[Example, ...]) -> int:
    """Tokens of one pass over the rows: prompt by the chat template, and answer."""
    prompts = sum(len(engine.prompt_ids(fmt.messages(example))) for example in rows)
    return prompts + sum(engine.count_tokens([example.target for example in rows]))
