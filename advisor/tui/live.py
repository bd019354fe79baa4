"""The panels that draw the event stream. Each takes the events that concern it, and works nothing out."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.reactive import reactive
from textual.widgets import DataTable, ProgressBar, RichLog, Sparkline, Static

from advisor.tui.flow import STAGES
from advisor.tui.text import duration, line, number
from evals.events import CandidateScored, Note, Progress, StageFinished, StageStarted, TrainingStep

KEPT_LINES = 5000
State = Literal["waiting", "running", "done", "reused", "failed", "stopped", "skipped"]
SIGNS: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold $text-primary"),
    "done": ("✓", "$text-success"),
    "reused": ("✓", "$text-success"),
    "failed": ("✗", "bold $text-error"),
    "stopped": ("■", "bold $text-warning"),
    "skipped": ("–", "dim"),
}


@dataclass
class Stage:
    state: State = "waiting"
    seconds: float = 0.0
    since: float = 0.0

    @property
    def time(self) -> str:
        if self.state == "running":
            return duration(time.monotonic() - self.since)
        return "" if self.state in {"waiting", "skipped"} else duration(self.seconds)


class Stages(Static):
    """The seven stages with their state and time."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", id=id, markup=False)
        self.stages = {name: Stage() for name in STAGES}
        self._before: dict[str, Stage] = {}

    def on_mount(self) -> None:
        self.draw()
        self.set_interval(1.0, self.draw)

    def started(self, event: StageStarted) -> None:
        before = self.stages.get(event.stage, Stage())
        if before.state == "done":
            self._before[event.stage] = before
        self.stages[event.stage] = Stage("running", since=time.monotonic())
        self.draw()

    def finished(self, event: StageFinished) -> None:
        done = Stage("reused" if event.reused else "done", event.seconds)
        # What this screen has seen done stays done when going on finds its record.
        self.stages[event.stage] = self._before.get(event.stage, done) if event.reused else done
        self.draw()

    def ended(self, state: Literal["failed", "stopped"]) -> None:
        """The flow ended in the midst of a stage."""
        for stage in self.stages.values():
            if stage.state == "running":
                stage.seconds, stage.state = time.monotonic() - stage.since, state
        self.draw()

    def complete(self) -> None:
        """The flow is through: what has not run was not wanted."""
        for stage in self.stages.values():
            if stage.state == "waiting":
                stage.state = "skipped"
        self.draw()

    def draw(self) -> None:
        lines = []
        for name, stage in self.stages.items():
            sign, style = SIGNS[stage.state]
            lines.append(Content.assemble((f"{sign} {line(name):<14}{stage.state:<8}", style), f"{stage.time:>7}"))
        self.update(Content("\n").join(lines))


class Now(Vertical):
    """What is being done at this moment, how fast, and for how long yet."""

    def compose(self) -> ComposeResult:
        yield Static("", id="now-task", markup=False)
        yield ProgressBar(total=1, show_eta=False, id="now-bar")
        yield Static("", id="now-rate", markup=False)

    def advanced(self, event: Progress) -> None:
        counted = f"{event.done} of {event.total} {line(event.unit)}" if event.unit else ""
        rate = f"{number(event.rate, '.1f')}/s, {duration(event.eta)} left" if event.rate else ""
        # A step without a unit is a wait of unknown length: the bar moves to and fro.
        self._show(event.task, event.done, event.total if event.unit or event.done else None, counted, rate)

    def stepped(self, event: TrainingStep) -> None:
        counted = f"{event.step} of {event.total_steps} steps"
        left = f"{duration(event.eta)} left" if event.eta else ""
        self._show(event.purpose, event.step, event.total_steps, counted, left)

    def rest(self, sentence: str) -> None:
        """Nothing is being done."""
        self._show(sentence, 0, 1, "", "")
        self.query_one(ProgressBar).display = False

    def _show(self, task: str, done: int, total: int | None, counted: str, rate: str) -> None:
        self.query_one("#now-task", Static).update(Content.assemble((line(task), "bold")))
        self.query_one("#now-rate", Static).update(Content("\n".join(filter(None, [counted, rate]))))
        bar = self.query_one(ProgressBar)
        bar.display = True
        bar.update(total=total, progress=done)


class Training(Vertical):
    """The training that runs, or the last one: its loss as a curve, and its newest figures."""

    losses: reactive[tuple[float, ...]] = reactive(())

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._purpose, self._step = "", 0
        self._measured = {"dev loss": "–"}

    def compose(self) -> ComposeResult:
        yield Static("", id="training-loss", markup=False)
        yield Sparkline((), id="training-curve", summary_function=_mean)
        yield Static("", id="training-speed", markup=False)

    def stepped(self, event: TrainingStep) -> None:
        self.display = True
        if event.purpose != self._purpose or event.step < self._step:
            self._measured, self.losses = {"dev loss": "–"}, ()
        self._purpose, self._step = event.purpose, event.step
        if event.loss is not None and math.isfinite(event.loss):
            self.losses = (*self.losses, event.loss)
        found = {"dev loss": event.dev_loss, "dev score": event.dev_score, "KL": event.kl}
        self._measured |= {name: number(value, ".3f") for name, value in found.items() if value is not None}
        last = number(self.losses[-1] if self.losses else None, ".3f")
        told = [f"loss {last}   dev loss {self._measured['dev loss']}"]
        told += [
            "   ".join(f"{name} {self._measured[name]}" for name in found if name != "dev loss" and name in self._measured)
        ]
        self.query_one("#training-loss", Static).update(Content("\n".join(filter(None, told))))
        speed = f"{number(event.tokens_per_second, ',.0f')} tokens/s   {number(event.memory_mib, ',.0f')} MiB"
        rate = f"learning rate {number(event.learning_rate, '.1e')}"
        self.query_one("#training-speed", Static).update(Content(f"{speed}\n{rate}"))

    def watch_losses(self, losses: tuple[float, ...]) -> None:
        if self.is_mounted:
            self.query_one(Sparkline).data = losses


def _mean(values: Any) -> float:
    return sum(values) / len(values) if values else 0.0


class Candidates(DataTable[Text]):
    """A row a candidate and split, as the scores come in."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True, cell_padding=1)

    def on_mount(self) -> None:
        for name in ("candidate", "split", "score", "n", "time", "metric"):
            self.add_column(Text(name, justify="right" if name in {"score", "n", "time"} else "left"), key=name)

    def scored(self, event: CandidateScored) -> None:
        """A candidate that is scored already is told again when going on: its row stays as it is."""
        key = f"{event.split}/{event.candidate}"
        if key in self.rows:
            self.update_cell(key, "score", _right(number(event.mean, ".3f"), "bold"))
            return
        took = "kept" if event.reused else duration(event.seconds)
        self.add_row(
            Text(line(event.candidate)),
            Text(line(event.split)),
            _right(number(event.mean, ".3f"), "bold"),
            _right(str(event.n)),
            _right(took, "dim"),
            Text(line(event.metric), "dim"),
            key=key,
        )
        if not self.has_focus:
            self.move_cursor(row=self.row_count - 1)


def _right(text: str, style: str = "") -> Text:
    return Text(text, style, justify="right")


class Log(RichLog):
    """What the stages say.

    A RichLog wraps a line once, at the width that it has then, and it has none while another tab is shown: so the lines
    are kept, and written again when the width changes.
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, wrap=True, markup=False, highlight=False)
        self._told: deque[Text] = deque(maxlen=KEPT_LINES)
        self._width = 0

    def on_resize(self, event: Resize) -> None:
        width = self.scrollable_content_region.width
        if width and width != self._width:
            self._width = width
            self.clear()
            for text in self._told:
                self.write(text, width)

    def noted(self, event: Note) -> None:
        self.say(event.text, "yellow" if event.level == "warning" else "")

    def started(self, event: StageStarted) -> None:
        self.say(f"▶ {event.stage}: {event.title}", "bold")

    def finished(self, event: StageFinished) -> None:
        how = "already there" if event.reused else duration(event.seconds)
        self.say(f"✓ {event.stage} ({how}): {event.summary}", "green")

    def say(self, text: str, style: str = "") -> None:
        self._told.append(Text(line(text), style))
        if self._width:
            self.write(self._told[-1], self._width)
