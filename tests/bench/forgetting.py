"""Is forgetting found, and mended? Adapters of graded strength, really trained, from trained well to ruined.

`python tests/bench/forgetting.py [--fast] [--only NAME …] [--until train|measure|repair|all]`. What is true of each adapter is its loss on
`standard`, whose items the quick suite and the repair never see; its gain is on rows that chose nothing. Everything measured is kept below
build/bench/forgetting/, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from advisor_tasks import banking, restaurant, rows_of, scrambled_form, shipped, style
from forgetting_report import LOST, Row, report, told
from harness import ROOT, Bench, measured_in_child
from peft import PeftModel
from rich.console import Console

import advisor.flow.repair as flow
from advisor.decision.repair import Choice, Tried, choose
from advisor.flow.session import Session
from advisor.flow.tuned import job_for, prompt_format, recipe_for, tuned_candidate
from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import Candidate, PromptFormat
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.models import DEMO_MODEL
from evals.evaluate import evaluate
from evals.events import Event, Note, ignore
from evals.general.fast import fast_lm
from evals.general.halves import half
from evals.general.lm_eval import GeneralScores, measure, run_task
from evals.general.named import suite_of
from evals.general.suites import Suite
from evals.metrics.text import normalise
from evals.records import content_hash
from evals.scores import Scores
from evals.statistics.margin import NonInferiority, non_inferiority
from evals.task.load import Task, load_task
from trainer.card import read_card
from trainer.launch import train
from trainer.repair import Arm, source

HOME = ROOT / "build" / "bench" / "forgetting"
MARGIN = 0.05
STEPS = 20
# Of a task's population so many rows choose, and the others tell the gain.
DEV = 60


@dataclass(frozen=True, eq=False)
class Case:
    """One training: `rows` of a task (0: all) by this recipe."""

    task: str
    name: str
    rows: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)


def case(task: str, name: str, learning_rate: float, rows: int = 0, **recipe: Any) -> Case:
    """Few rows are seen more often: all trainings take `STEPS` steps."""
    given = {"learning_rate": learning_rate, "num_train_epochs": 4.0, "max_steps": STEPS, "replay_share": 0.0, **recipe}
    return Case(task, name, rows, given)


TASKS: dict[str, Callable[[Path], None]] = {
    "triage": shipped("triage"),
    "capitals": shipped("capitals"),
    "style": style,
    "notation": scrambled_form(),
    "banking12": banking(12, 280),
    "restaurant8k": restaurant,
}
CASES = (
    case("triage", "1e-3", 1e-3),
    case("triage", "2e-3", 2e-3),
    case("triage", "4e-3", 4e-3),
    case("triage", "4e-3, 40 rows", 4e-3, rows=40),
    case("triage", "8e-3", 8e-3),
    case("style", "1e-3", 1e-3),
    case("style", "3e-3", 3e-3),
    case("style", "6e-3", 6e-3),
    case("style", "8e-3", 8e-3),
    case("style", "8e-3, rank 4", 8e-3, lora_r=4, lora_alpha=8),
    case("style", "6e-3, 40 rows", 6e-3, rows=40),
    case("style", "all weights 5e-4", 5e-4, use_peft=False),
    case("notation", "1e-3", 1e-3),
    case("notation", "2e-3", 2e-3),
    case("notation", "4e-3", 4e-3),
    case("notation", "8e-3", 8e-3),
    case("banking12", "2e-3", 2e-3),
    case("banking12", "4e-3", 4e-3),
    case("banking12", "8e-3", 8e-3),
    case("banking12", "8e-3, rank 4", 8e-3, lora_r=4, lora_alpha=8),
    case("restaurant8k", "2e-3", 2e-3),
    case("restaurant8k", "4e-3", 4e-3),
    case("restaurant8k", "6e-3", 6e-3),
    case("restaurant8k", "8e-3", 8e-3),
    case("capitals", "1e-3", 1e-3),
    case("capitals", "2e-3", 2e-3),
    case("capitals", "4e-3", 4e-3),
    case("capitals", "8e-3", 8e-3),
)
FAST = ("style 1e-3", "style 6e-3")


def named(one: Case) -> str:
    return f"{one.task} {one.name}"


def task_folder(name: str) -> Path:
    """The task's folder, with its population split in two: rows that choose, and rows that tell."""
    folder = HOME / "tasks" / name
    if not (folder / ".made").is_file():
        TASKS[name](folder)
        rows = [row for part in ("dev", "test") for row in rows_of(folder / f"{part}.jsonl")]
        once = {normalise(row["input"]): row for row in rows}
        numbered = [json.dumps({**row, "id": f"row-{at}"}) + "\n" for at, row in enumerate(once.values())]
        (folder / "dev.jsonl").write_text("".join(numbered[:DEV]), encoding="utf-8")
        (folder / "test.jsonl").write_text("".join(numbered[DEV:]), encoding="utf-8")
        (folder / ".made").touch()
    return folder


class Measurement:
    """One task's adapters: what they gain, what they lose, and what repair makes of them."""

    def __init__(self, name: str, console: Console) -> None:
        self.task: Task = load_task(task_folder(name))
        self.console = console
        self.session = Session(self.task, self.told)

    def told(self, event: Event) -> None:
        if isinstance(event, Note):
            self.console.print(f"{self.task.name}: {event.text}", markup=False, highlight=False)

    def job(self, one: Case) -> Any:
        recipe = recipe_for(
            replace(self.task, spec=self.task.spec.model_copy(update={"train": one.recipe})), self.session.weights
        )
        rows = self.task.train[: one.rows or len(self.task.train)]
        return job_for(self.task, self.session, recipe, rows, self.folder(one), named(one), scored=False)

    def folder(self, one: Case) -> Path:
        return HOME / "trained" / named(one).replace(" ", "_").replace(",", "").replace("%", "")

    def trained(self, one: Case) -> Path:
        """The adapter's (or the whole model's) folder; trained where it was not yet."""
        home = self.folder(one)
        for name in ("adapter", "model"):
            if (home / "training.json").is_file() and (home / name).is_dir():
                return home / name
        began = time.monotonic()
        folder = train(self.job(one), self.told).folder
        self.console.print(f"{named(one)}: trained in {time.monotonic() - began:.0f} s", markup=False, highlight=False)
        return folder

    @cached_property
    def base(self) -> HfEngine:
        return self.session.weights

    def rival(self, split: str) -> Scores:
        """The unchanged model with the whole instruction."""
        fmt = PromptFormat(self.task.instruction, "inline")
        prompt = Prompt("zero_shot", self.base, fmt, answer_format(self.task, self.base))
        return self.scored(prompt, split, HOME / "scores" / self.task.name)

    def scored(self, candidate: Candidate, split: Any, folder: Path) -> Scores:
        return evaluate(self.task, candidate, split, folder, self.told, self.session.metrics)

    def candidate(self, weights: Path, name: str) -> Candidate:
        fmt = prompt_format(self.task, recipe_for(self.task, self.base))
        return replace(tuned_candidate(self.task, self.session, weights, "arm", fmt), name=name)

    def general(self, weights: Path | None, suite: Suite, home: Path) -> GeneralScores:
        engine = self.base if weights is None else self.base.with_adapter(weights, "arm")
        return measure(engine, suite, home / "general", "base" if weights is None else "tuned", self.told)[0]

    def row(self, one: Case, weights: Path, quick: Suite, standard: Suite, *, mend: bool) -> Row:
        home = self.folder(one) / "measured"
        before = {suite.name: self.general(None, suite, home) for suite in (quick, standard)}
        after = {suite.name: self.general(weights, suite, home) for suite in (quick, standard)}
        found = {suite.name: lost(before[suite.name], after[suite.name], suite) for suite in (quick, standard)}
        gain = gained(self.scored(self.candidate(weights, "tuned"), "test", home / "scores"), self.rival("test"))
        # (Every adapter of this task is an "arm": the model holds one at a time.)
        bench = flow.Bench(
            self.task,
            self.session,
            home / "repair",
            half(quick, "a"),
            before[quick.name],
            self.rival("dev"),
            self.candidate,
            frozenset(),
            MARGIN,
            {"tuned": after[quick.name]},
        )
        own = source("tuned", weights)
        arms = flow.arms_of(own, (), (own,))
        row = Row(named(one), bench.kl(arms[0]), found["quick"], found["standard"], gain)
        if not mend or found["standard"].estimate > -LOST:
            return row
        return self.mended(row, bench, arms, standard, before["standard"])

    def mended(self, row: Row, bench: flow.Bench, arms: Sequence[Arm], standard: Suite, base: GeneralScores) -> Row:
        tried: tuple[Tried, ...] = flow.search(bench, arms)
        choice: Choice = choose(tried)
        if not choice.chosen:
            return replace(row, repaired="none chosen")
        arm = next(one for one in arms if one.name == choice.chosen)
        with bench.weights(arm) as folder:
            home = bench.folder / "chosen" / content_hash(read_card(folder, deep=False).digest)[:12]
            loss = lost(base, self.general(folder, standard, home), standard)
            gain = gained(self.scored(self.candidate(folder, arm.name), "test", home / "scores"), self.rival("test"))
        return replace(row, repaired=arm.name, loss_after=loss, gain_after=gain)


def lost(base: GeneralScores, tuned: GeneralScores, suite: Suite) -> NonInferiority:
    """The pooled change, decided as the product decides it."""
    before = {(one.task, one.id): one.score for one in base.items}
    both = [(one.score, before[one.task, one.id]) for one in tuned.items if one.task in suite.pooled]
    return non_inferiority([one for one, _ in both], [one for _, one in both], MARGIN)


def gained(scores: Scores, rival: Scores) -> float:
    return scores.mean - rival.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--until", choices=("train", "measure", "repair", "all"), default="all")
    arguments = parser.parse_args()
    wanted = arguments.only or (FAST if arguments.fast else None)
    order = wanted or [one.task for one in CASES]
    chosen = list(dict.fromkeys(one for name in order for one in CASES if name in (named(one), one.task)))
    console, bench = Console(), Bench("forgetting", fast=arguments.fast)
    measurements = {name: Measurement(name, console) for name in dict.fromkeys(one.task for one in chosen)}
    weights = {named(one): measurements[one.task].trained(one) for one in chosen}
    if arguments.until == "train":
        return
    quick, standard = suite_of("quick").decisive, suite_of("standard").decisive
    rows = []
    for one in chosen:
        mend = arguments.until in ("repair", "all")
        rows.append(measurements[one.task].row(one, weights[named(one)], quick, standard, mend=mend))
        console.print(told(rows[-1]), markup=False, highlight=False)
    report(bench, rows, mended=arguments.until != "measure")
    if arguments.until == "all":
        timed(bench, weights[named(chosen[-1])], limit=48 if arguments.fast else None)
    bench.finish()


def timed(bench: Bench, adapter: Path, limit: int | None) -> None:
    """Seconds of the quick suite, weights loaded in each process: ours base and tuned, a second tuned model; lm-eval's own class twice."""
    ours = {which: measured_in_child(answered, "ours", which, adapter, limit) for which in ("base", "tuned")}
    theirs = {which: measured_in_child(answered, "hflm", which, adapter, limit) for which in ("base", "tuned")}
    both = sum(one.seconds for one in ours.values())
    bench.figure("quick, seconds with loading", {which: round(one.seconds, 1) for which, one in ours.items()})
    bench.figure("lm-eval's own class, seconds with loading", {which: round(one.seconds, 1) for which, one in theirs.items()})
    bench.figure("times as fast as lm-eval run twice", sum(one.seconds for one in theirs.values()) / both)
    bench.goal("base and tuned together, seconds", 90, both, both < 90)
    bench.goal("a second tuned model, seconds", 45, ours["tuned"].seconds, ours["tuned"].seconds < 45)


def answered(peer: str, which: str, adapter: Path, limit: int | None) -> int:
    """The quick suite once in this process; the number of items."""
    from lm_eval.models.huggingface import HFLM

    handle = ModelHandle(DEMO_MODEL, "auto", ignore)
    engine = HfEngine(handle)
    if which == "tuned":
        engine = engine.with_adapter(adapter, "tuned")
    tasks = suite_of("quick").tasks
    if peer == "ours":
        lm: Any = fast_lm(engine, lambda _: None)
    else:
        model = PeftModel.from_pretrained(handle.base, adapter) if which == "tuned" else handle.base
        lm = HFLM(pretrained=model, tokenizer=handle.tokenizer, batch_size=32)
    return sum(len(rows) for task in tasks for rows in run_task(lm, part(task, limit))[1].values())


def part(task: Any, limit: int | None) -> Any:
    if limit is None:
        return task
    make = task.config["custom_dataset"]
    return replace(task, config={**task.config, "custom_dataset": partial(make.func, make.args[0][:limit])}, items=limit)


if __name__ == "__main__":
    main()
