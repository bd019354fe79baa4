"""Are the estimates true? Twenty recipes: memory and time said before, by the formula and by a few real steps, and measured after.

`python tests/bench/estimates.py [--fast] [--only NAME …]`. Each is one pass of a real training of the demo model in its own process; what
is measured is kept in build/bench/estimates/ by commit and recipe, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import ROOT, Bench, commit
from rich.console import Console
from rich.table import Table

from advisor.flow.intake import read_task
from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.machine import measure_machine
from evals.engines.models import DEMO_MODEL, parameter_count, resolve_model
from evals.engines.tokenizer import open_tokenizer
from evals.events import ignore
from evals.records import content_hash, read_json, write_json
from evals.task.example import Example
from trainer.calibrate import tried
from trainer.estimate import calibrated, estimate
from trainer.footprint import footprint
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.recipe import Recipe
from trainer.work import work_of

KEPT = ROOT / "build" / "bench" / "estimates"
GOALS = {"memory, formula": 0.15, "memory, calibrated": 0.05}


@dataclass(frozen=True)
class Case:
    """`rows` of a shipped example (`long`: with the handbook's pages before the question), one pass by the recipe."""

    name: str
    task: str = "triage"
    rows: int = 128
    dtype: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)


def case(name: str, task: str = "triage", rows: int = 128, dtype: str = "", **recipe: Any) -> Case:
    return Case(name, task, rows, dtype, recipe)


CASES = (
    case("default"),
    case("batch 1", rows=32, per_device_train_batch_size=1),
    case("batch 4", rows=96, per_device_train_batch_size=4),
    case("batch 16", rows=240, per_device_train_batch_size=16),
    case("rank 4", lora_r=4, lora_alpha=8),
    case("rank 64", lora_r=64, lora_alpha=128),
    case("queries and values", lora_target_modules=("q_proj", "v_proj")),
    case("accumulation", rows=160, per_device_train_batch_size=4, gradient_accumulation_steps=4),
    case("short rows", "capitals", rows=100),
    case("short rows, batch 16", "capitals", rows=100, per_device_train_batch_size=16),
    case("mixed rows", "handbook", rows=96),
    case("long rows", "long", rows=24, per_device_train_batch_size=2),
    case("long rows, batch 4", "long", rows=32, per_device_train_batch_size=4),
    case("long rows, recomputed", "long", rows=24, per_device_train_batch_size=4, gradient_checkpointing=True),
    case("fp32", rows=64, dtype="float32"),
    case("fp32, batch 2", rows=32, dtype="float32", per_device_train_batch_size=2),
    case("DoRA", rows=64, use_dora=True, per_device_train_batch_size=4),
    case("rsLoRA, rank 32", lora_r=32, use_rslora=True),
    case("all weights", rows=64, use_peft=False, per_device_train_batch_size=4),
    case("DPO", rows=48, method="dpo", per_device_train_batch_size=4),
)
FAST = ("batch 1", "short rows", "default")


def examples(task: str, rows: int) -> tuple[Example, ...]:
    if task != "long":
        return read_task(task).train[:rows]
    found = read_task("handbook")
    pages = [page.text for page in found.documents]
    return tuple(
        replace(one, messages=(Message("user", f"{pages[at % len(pages)][:1800]}\n\n{one.text}"),))
        for at, one in enumerate(found.train[:rows])
    )


def job_of(one: Case, folder: Path) -> TrainingJob:
    rows = examples(one.task, one.rows)
    if one.recipe.get("method") == "dpo":
        rows = tuple(
            replace(row, rejected=rows[at - 1].target) for at, row in enumerate(rows) if rows[at - 1].target != row.target
        )
    settings = {"num_train_epochs": 1.0, "learning_rate": 1e-4, "save_steps": 1000, "replay_share": 0.0, **one.recipe}
    task = read_task("handbook" if one.task == "long" else one.task)
    return TrainingJob(
        resolve_model(DEMO_MODEL, ignore),
        Recipe(**settings),
        PromptFormat(task.instruction.split("\n\n", 1)[0], "inline"),
        rows,
        (),
        folder / "job",
        one.dtype or measure_machine().dtype,
        one.name,
    )


def measured(one: Case) -> dict[str, float]:
    """Predicted and measured MiB and seconds; kept."""
    path = KEPT / f"{content_hash([commit(), one])[:16]}.json"
    if path.is_file():
        return {name: float(value) for name, value in read_json(path)["found"].items()}
    folder = Path(tempfile.mkdtemp(prefix="advisor-estimates-"))
    try:
        job = job_of(one, folder)
        tokenizer, _ = open_tokenizer(job.model_folder)
        work = work_of(tokenizer, job.prompt_format, job.recipe, job.train, job.dev)
        machine, parameters = measure_machine(), parameter_count(job.model_folder)
        size = footprint(
            job.model_folder, job.recipe, work.longest(job.recipe.per_device_train_batch_size), job.dtype, machine.device
        )
        formula = estimate(job.recipe, work, parameters, machine, job.dtype, size)
        real = calibrated(formula, tried(job, folder / "trial", ignore))
        began = time.monotonic()
        trained = train(job, ignore)
        found = {
            "memory": trained.peak_memory_mib,
            "memory, formula": formula.memory_mib or 0.0,
            "memory, calibrated": real.memory_mib or 0.0,
            "kept": size.kept / 2**20,
            "seconds": time.monotonic() - began,
            "seconds, formula": formula.seconds,
            "seconds, calibrated": real.seconds,
            "steps": float(trained.steps),
            "training seconds": trained.seconds,
            "tokens": float(trained.train_tokens),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(path, {"case": one.name, "found": found})
    return found


def off(found: dict[str, float], name: str) -> float:
    """Predicted over measured, less 1."""
    return found[name] / found[name.split(",", maxsplit=1)[0]] - 1


def report(bench: Bench, found: dict[str, dict[str, float]]) -> None:
    names = ("memory, formula", "memory, calibrated", "seconds, formula", "seconds, calibrated")
    table = Table(title="measured, and how far off what was said before is", title_justify="left")
    for head in ("recipe", "MiB", "formula", "calibrated", "seconds", "formula", "calibrated"):
        table.add_column(head, justify="left" if head == "recipe" else "right")
    for name, one in found.items():
        first, second, third, fourth = (f"{100 * off(one, each):+.1f}%" for each in names)
        table.add_row(name, f"{one['memory']:.0f}", first, second, f"{one['seconds']:.1f}", third, fourth)
    Console().print(table)
    for each in names:
        errors = sorted(abs(off(one, each)) for one in found.values())
        median, ninth = statistics.median(errors), errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
        bench.figure(f"{each}: error", {"median": round(median, 4), "p90": round(ninth, 4), "worst": round(errors[-1], 4)})
        if each in GOALS:
            bench.goal(f"{each}: worst error", GOALS[each], round(errors[-1], 4), errors[-1] <= GOALS[each])
        if each == "seconds, calibrated":
            bench.goal(f"{each}: median error", 0.10, round(median, 4), median <= 0.10)
            bench.goal(f"{each}: error at the 90th percentile", 0.25, round(ninth, 4), ninth <= 0.25)
    bench.figure("recipes", found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args(arguments)
    wanted = given.only or (FAST if given.fast else [one.name for one in CASES])
    bench = Bench("estimates", fast=given.fast)
    found = {}
    for one in CASES:
        if one.name in wanted:
            found[one.name] = measured(one)
            print(one.name, {name: round(value, 1) for name, value in found[one.name].items()}, flush=True)
    report(bench, found)
    bench.finish()


if __name__ == "__main__":
    main()
