"""Arms of one task on its test items, scored and kept below the benchmark's folder, so that a run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from advisor.decision.cost import cost_per_1k
from evals.candidate import Candidate
from evals.engines.cache import ResponseCache
from evals.engines.embed import Embedder
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.machine import cache_folder
from evals.engines.models import DEMO_MODEL
from evals.evaluate import evaluate
from evals.events import CandidateScored, Event, Note
from evals.scores import Scores, task_metrics
from evals.statistics.paired import mean_interval, paired_difference
from evals.task.load import Task, load_task


class Arms:
    """One task's arms on its test items, asked of the demo model. `reference` is what differences are taken from."""

    def __init__(self, name: str, task_folder: Path, scores: Path, console: Console, reference: str = "zero_shot") -> None:
        self.task: Task = load_task(task_folder)
        self.name, self.folder, self.console, self.reference = name, scores, console, reference
        handle = ModelHandle(DEMO_MODEL, "auto", self.told)
        self.engine = HfEngine(handle, cache=ResponseCache(cache_folder() / "responses.sqlite"))
        self.embedder = Embedder("all-MiniLM-L6-v2", self.told)
        self.metrics = task_metrics(self.task, self.told, embedder=lambda: self.embedder)
        self.scores: dict[str, Scores] = {}

    def told(self, event: Event) -> None:
        if isinstance(event, CandidateScored):
            text = f"{self.name} {event.candidate}: {event.mean:.3f} ({event.seconds:.0f} s)"
            self.console.print(text, markup=False, highlight=False)
        elif isinstance(event, Note):
            self.console.print(f"{self.name}: {event.text}", markup=False, highlight=False)

    def measure(self, arms: Sequence[Candidate]) -> None:
        for arm in arms:
            self.scores[arm.name] = evaluate(self.task, arm, "test", self.folder / self.name, self.told, self.metrics)

    def figures(self) -> dict[str, Any]:
        """Score, interval, difference from the reference, tokens and seconds a request, by arm."""
        reference = self.scores[self.reference].values()
        groups = [example.group or example.id for example in self.task.test]
        found: dict[str, Any] = {}
        for name, scores in self.scores.items():
            interval, away = mean_interval(scores.values(), groups), paired_difference(scores.values(), reference, groups)
            cost = cost_per_1k(scores, self.task.spec.prices)
            found[name] = {
                self.task.metric: scores.mean,
                "low": interval.low,
                "high": interval.high,
                f"minus_{self.reference}": away.estimate,
                "minus_low": away.low,
                "minus_high": away.high,
                "tokens_in": cost.prompt_tokens / 1000,
                "tokens_out": cost.output_tokens / 1000,
                "ms_a_request": cost.seconds,
            }
        return found

    def table(self) -> Table:
        heading = f"{self.name}: {self.task.metric} on {len(self.task.test)} test items"
        table = Table("arm", "score", "95%", f"minus {self.reference}", "95%", "tokens in", "out", "ms", title=heading)
        for name, one in sorted(Arms.figures(self).items(), key=lambda pair: -pair[1][self.task.metric]):
            table.add_row(
                escape(name),
                f"{one[self.task.metric]:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
                f"{100 * one[f'minus_{self.reference}']:+.1f}",
                f"{100 * one['minus_low']:+.1f} to {100 * one['minus_high']:+.1f}",
                f"{one['tokens_in']:.0f}",
                f"{one['tokens_out']:.0f}",
                f"{one['ms_a_request']:.1f}",
            )
        return table
