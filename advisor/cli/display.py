"""Events on stderr, with rich: a line a stage, a bar for what takes long. Results on stdout."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from advisor.decision.compare import Comparison
from advisor.report.journey import Journey
from evals.events import CandidateScored, Event, Note, StageFinished, StageStarted, TrainingStep
from evals.events import Progress as Advanced

EVERY_SECONDS_WITHOUT_TERMINAL = 5.0


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}" if whole >= 60 else f"{whole} s"


class Display:
    """Draws the event stream. Where stderr is no terminal (CI), a plain line now and then instead of a bar."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.bar: TaskID | None = None
        self.task = ""
        self.told = 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def on_event(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self.console.print(f"[bold]{escape(event.stage)}[/bold]  {escape(event.title)}")
        elif isinstance(event, StageFinished):
            self._clear()
            how = "already there" if event.reused else duration(event.seconds)
            self.console.print(f"  [green]done[/green] ({how}): {escape(event.summary)}")
        elif isinstance(event, Note):
            colour = "yellow" if event.level == "warning" else "dim"
            self.console.print(f"  [{colour}]{escape(event.text)}[/{colour}]")
        elif isinstance(event, CandidateScored):
            how = "already there" if event.reused else duration(event.seconds)
            self.console.print(
                f"  {escape(event.candidate):<28} {event.metric} [bold]{event.mean:.3f}[/bold] on {event.n} {event.split} items ({how})"
            )
        elif isinstance(event, Advanced):
            text = f"{event.done}/{event.total} {event.unit}" if event.unit else ""
            if event.rate:
                text += f"  {event.rate:.1f}/s, {duration(event.eta)} left"
            self._advance(event.task, event.done, event.total, text)
        elif isinstance(event, TrainingStep):
            loss = "" if event.loss is None else f"loss {event.loss:.3f}  "
            text = (
                f"{event.step}/{event.total_steps} steps  {loss}{event.tokens_per_second:.0f} tokens/s  "
                f"{event.memory_mib:.0f} MiB  {duration(event.eta)} left"
            )
            self._advance(event.purpose, event.step, event.total_steps, text)

    def _advance(self, task: str, done: int, total: int, text: str) -> None:
        if not self.console.is_terminal:
            now = time.monotonic()
            if now - self.told >= EVERY_SECONDS_WITHOUT_TERMINAL and 0 < done < total:
                self.told = now
                self.console.print(f"  {escape(task)}: {escape(text)}")
            return
        if task != self.task:
            self._clear()
            self.task = task
            self.bar = self.bars.add_task(task, total=total, text=text)
        if self.bar is not None:
            # A total of one step without a unit is a wait of unknown length: the bar pulses.
            self.bars.update(self.bar, completed=done, total=None if not text and done < total else total, text=text)
        if done >= total:
            self._clear()

    def _clear(self) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
        self.bar, self.task = None, ""


def print_journey(journey: Journey) -> None:
    """The result in one screen, on stdout; the rest is in the report."""
    console = Console(highlight=False)
    metric = journey.task.metric
    if journey.reevaluated:
        scores, split = journey.reevaluated.test, "locked test"
    else:
        scores, split = journey.arms, "dev"
    if scores:
        table = Table(title=f"{journey.task.name}: {metric} on the {split}", title_justify="left")
        for name in ("candidate", "kind", metric, "tokens in", "tokens out", "ms"):
            # A name that is cut short is no name: the rest goes on the next line.
            table.add_column(name, justify="left" if name in {"candidate", "kind"} else "right", overflow="fold")
        for one in sorted(scores, key=lambda row: -row.mean):
            table.add_row(
                escape(one.candidate),
                one.kind,
                f"{one.mean:.3f}",
                f"{one.average('prompt_tokens'):.0f}",
                f"{one.average('output_tokens'):.0f}",
                f"{1000 * one.average('seconds'):.1f}",
            )
        console.print(table)
        if journey.race and journey.race.left and not journey.reevaluated:
            console.print(f"{journey.race.sentence()}; the report tells which.")
    if journey.recommendation:
        console.print(
            f"[bold]Recommendation: {journey.recommendation.action}[/bold] ({escape(journey.recommendation.candidate)})"
        )
        for reason in journey.recommendation.reasons:
            console.print(f"  - {escape(reason.sentence)}")
    if journey.reevaluated:
        claim, *others = [journey.reevaluated.claim, *journey.reevaluated.others]
        console.print(f"Locked test, the claim: {_difference(claim)} (n = {claim.n})")
        clean = journey.reevaluated.claim_without_tainted
        if clean:
            count = len(journey.reevaluated.tainted)
            console.print(
                f"  without {count} items that stand nearly alike in train or dev: {_difference(clean)} (n = {clean.n})"
            )
        if journey.reevaluated.judge:
            console.print(f"  the judge: {escape(journey.reevaluated.judge.sentence)}")
        for other in others:
            console.print(f"  beside it: {_difference(other)}")
        general = journey.reevaluated.general
        if general:
            found = general.forgetting
            console.print(
                f"General benchmarks: {100 * found.estimate:+.1f} points on {found.n} items "
                f"(95% bounds {100 * found.low:+.1f} to {100 * found.high:+.1f}); "
                f"no loss beyond {100 * found.margin:.0f} points: {found.answer}"
            )
    if journey.verdict:
        console.print(f"[bold]Gate: {journey.verdict.verdict}[/bold]")
    console.print(f"Report: {journey.folder / 'report.md'}", soft_wrap=True, markup=False)


def _difference(one: Comparison) -> str:
    interval = f"95% interval {100 * one.low:+.1f} to {100 * one.high:+.1f}"
    return f"{escape(one.a)} minus {escape(one.b)} = {100 * one.difference:+.1f} points, {interval}"
