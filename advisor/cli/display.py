"""Events on stderr, with rich: a line a stage, a bar for what takes long. Results on stdout."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from advisor.decision.compare import Comparison
from advisor.decision.forgetting import Forgetting
from advisor.decision.recommend import Recommendation
from advisor.decision.repair import Repair
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
        self.trained = ""
        self.measured: dict[str, str] = {}

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
            text = (
                f"{event.step}/{event.total_steps} steps  {self._figures(event)}lr {event.learning_rate:.1e}  "
                f"{event.tokens_per_second:.0f} tokens/s  {event.memory_mib:.0f} MiB  {duration(event.eta)} left"
            )
            self._advance(event.purpose, event.step, event.total_steps, text)

    def _figures(self, event: TrainingStep) -> str:
        """The loss, and what was measured last of what is not measured at every step."""
        if event.purpose != self.trained:
            self.trained, self.measured = event.purpose, {}
        named = {"loss": event.loss, "dev loss": event.dev_loss, "dev score": event.dev_score, "KL": event.kl}
        self.measured |= {name: f"{name} {value:.3f}  " for name, value in named.items() if value is not None}
        return "".join(self.measured[name] for name in named if name in self.measured)

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


def print_repair(repair: Repair, folder: Path) -> None:
    """What repair found, on stdout."""
    console = Console(highlight=False)
    console.print(f"Repair: {escape(repair.sentence)}", soft_wrap=True)
    if repair.won_back is not None and repair.kept is not None:
        console.print(
            f"  {100 * repair.won_back:.0f}% of the loss won back, {100 * repair.kept:.0f}% of the gain kept, where it was chosen"
        )
    for one in repair.offers:
        console.print(f"  - {escape(one.sentence())}", soft_wrap=True)
    if any(not one.done for one in repair.offers):
        console.print(f"  next: advisor train --remedy {folder.name}", soft_wrap=True, markup=False)


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
        _print_recommendation(console, journey.recommendation)
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
            _print_forgetting(console, general.measures)
    if journey.repair and journey.repair.needed:
        print_repair(journey.repair, journey.folder)
    if journey.verdict:
        console.print(f"[bold]Gate: {journey.verdict.verdict}[/bold]")
    console.print(f"Report: {journey.folder / 'report.md'}", soft_wrap=True, markup=False)


def _print_forgetting(console: Console, found: Forgetting) -> None:
    pooled = found.pooled
    settle = f"; about {pooled.more_items} more items would settle it" if pooled.more_items else ""
    console.print(
        f"General benchmarks: {100 * pooled.estimate:+.1f} points on {pooled.n} items "
        f"(95% bounds {100 * pooled.low:+.1f} to {100 * pooled.high:+.1f}); "
        f"no loss beyond {100 * pooled.margin:g} points: {pooled.answer}{settle}"
    )
    if found.broken:
        names = ", ".join(f"{one.task} {100 * (one.tuned - one.base):+.1f}" for one in found.broken)
        console.print(f"  broken on their own (Holm): {escape(names)}")
    for one in found.divergences:
        console.print(
            f"  {escape(one.name)}: KL {one.kl:.3f} nats a token, perplexity {one.base:.1f} to {one.tuned:.1f} ({one.tokens:,} tokens)"
        )


def _print_recommendation(console: Console, one: Recommendation) -> None:
    console.print(f"[bold]Recommendation: {one.action}[/bold] ({escape(one.candidate)}){'' if one.sure else ', not sure'}")
    for reason in one.reasons:
        console.print(f"  - {escape(reason.sentence)}")
    for title, told in (("would settle it", one.settle), ("else", [each.sentence for each in one.sensitivity])):
        for sentence in told:
            console.print(f"  {title}: {escape(sentence)}")


def _difference(one: Comparison) -> str:
    interval = f"95% interval {100 * one.low:+.1f} to {100 * one.high:+.1f}"
    return f"{escape(one.a)} minus {escape(one.b)} = {100 * one.difference:+.1f} points, {interval}"
