"""Intake: read the task, freeze its splits by id, and say what was inferred and what the data can carry."""

from __future__ import annotations

from pathlib import Path

from advisor.flow.run import EXAMPLES, Run, reuse
from evals.events import Note
from evals.records import write_json
from evals.statistics.power import minimum_detectable_effect
from evals.task.load import Task, find_task, load_task
from evals.task.splits import freeze


def read_task(name: str) -> Task:
    """TASK of the command line: a file, a folder or a shipped example. Raises with all problems at once."""
    return load_task(find_task(name, EXAMPLES))


def what_dev_can_tell(task: Task) -> str:
    effect = minimum_detectable_effect(len(task.dev))
    return f"{len(task.dev)} dev items can show a difference of about {100 * effect:.0f} points (power 80%, 5% level)"


def intake(task: Task, run: Run) -> None:
    """Write `task.json` and `splits.json`."""

    def make() -> tuple[None, str, bool]:
        key = task.hash()
        there = reuse(run.path("task.json"), key) and reuse(run.path("splits.json"), key)
        if not there:
            record = {
                "input_hash": key,
                "name": task.name,
                "source": str(_source(task)),
                "instruction": task.instruction,
                "output_type": task.output_type,
                "metrics": task.metrics,
                "spec": task.spec.model_dump(mode="json"),
                "said": task.said,
            }
            write_json(
                run.path("splits.json"),
                {"input_hash": key, **freeze({n: task.split(n) for n in ("train", "dev", "test")})},
            )
            write_json(run.path("task.json"), record)
        for sentence in [*task.said, what_dev_can_tell(task)]:
            run.on_event(Note(sentence))
        sizes = ", ".join(f"{name} {len(task.split(name))}" for name in ("train", "dev", "test"))
        return None, f"{sizes}; output {task.output_type}, metric {task.metric}", bool(there)

    run.stage("intake", "Read and check the task", make)


def _source(task: Task) -> Path:
    return task.folder.resolve()
