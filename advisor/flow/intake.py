"""Intake: read the task, freeze its splits by id, and say what was inferred and what the data can carry."""

from __future__ import annotations

from pathlib import Path

from advisor.flow.checks import check_data, tell
from advisor.flow.drift import drift
from advisor.flow.run import EXAMPLES, Run, reuse
from advisor.flow.session import Session
from evals.events import Note
from evals.records import write_json
from evals.statistics.power import minimum_detectable_effect
from evals.task.checks.findings import Checks, from_record
from evals.task.load import Task, find_task, load_task
from evals.task.splits import freeze


def read_task(name: str) -> Task:
    """TASK of the command line: a file, a folder or a shipped example. Raises with all problems at once."""
    return load_task(find_task(name, EXAMPLES))


def what_dev_can_tell(task: Task) -> str:
    effect = minimum_detectable_effect(len(task.dev))
    return f"{len(task.dev)} dev items can show a difference of about {100 * effect:.0f} points (power 80%, 5% level)"


def intake(task: Task, run: Run, session: Session) -> Checks:
    """Write `task.json`, `splits.json` and `checks.json`."""

    def make() -> tuple[Checks, str, bool]:
        key = task.hash()
        kept = reuse(run.path("checks.json"), key)
        there = kept and reuse(run.path("task.json"), key) and reuse(run.path("splits.json"), key)
        changed = drift(task, run.folder.parent)
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
        for sentence in changed.sentences() if changed else ():
            run.on_event(Note(sentence, "warning"))
        if kept:
            checks = from_record(kept)
        else:
            checks = check_data(task, session, run.on_event, fetch=True).checks
            write_json(run.path("checks.json"), {"input_hash": key, **checks.record()})
        tell(checks, run.on_event)
        sizes = ", ".join(f"{name} {len(task.split(name))}" for name in ("train", "dev", "test"))
        return checks, f"{sizes}; output {task.output_type}, metric {task.metric}", bool(there)

    return run.stage("intake", "Read and check the task", make)


def _source(task: Task) -> Path:
    return task.folder.resolve()
