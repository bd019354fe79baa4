"""The second screen: watch each stage live, read the recommendation, start training, read the verdict."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, Footer, Header, Static, TabbedContent, TabPane

from advisor.tui.advice import recommendation_text, verdict_text
from advisor.tui.flow import Flow
from advisor.tui.live import Candidates, Log, Now, Stages, Training
from advisor.tui.report import Report, ReportScreen
from advisor.tui.text import error_text, line, what_to_do
from advisor.tui.work import Work
from evals.errors import AdvisorError
from evals.events import CandidateScored, Note, OnEvent, Progress, StageFinished, StageStarted, TrainingStep

if TYPE_CHECKING:
    from advisor.report.journey import Journey
    from advisor.tui.app import AdvisorApp
    from evals.task.load import Task

Phase = Literal["running", "stopping", "deciding", "finished", "stopped", "failed"]
SENTENCES: dict[Phase, str] = {
    "running": "running",
    "stopping": "stopping, and keeping what is finished …",
    "deciding": "your decision",
    "finished": "finished",
    "stopped": "stopped, resumable",
    "failed": "failed",
}
READING = ("recommendation", "verdict", "problem")
BUTTONS: dict[Phase, tuple[str, ...]] = {
    "running": ("stop",),
    "stopping": ("leave",),
    "deciding": ("train", "open", "leave"),
    "finished": ("report", "back", "leave"),
    "stopped": ("resume", "back", "leave"),
    "failed": ("resume", "back", "leave"),
}


class RunScreen(Screen[None]):
    """First the flow goes until the advice; what follows is the user's decision; then it goes until the verdict.

    Going on calls the same `go` again: it finds its records and does not do them twice. So does going on after a stop.
    """

    CSS_PATH = "run.tcss"
    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "train", "Start training", id="run.train"),
        Binding("r", "report", "Report", id="run.report"),
        Binding("s", "stop", "Stop", id="run.stop"),
        Binding("escape", "back", "Back", id="run.back"),
    ]

    def __init__(self, task: Task, runs_dir: Path, flow: Flow) -> None:
        super().__init__()
        self.flow_task, self.runs_dir, self.flow = task, runs_dir, flow
        self.sub_title = line(task.name)
        self.phase: Phase = "running"
        self.until = "advice"
        self.train: bool | None = None
        self.journey: Journey | None = None
        self.work: Work | None = None

    def compose(self) -> ComposeResult:
        yield Header(icon="")
        with Horizontal(id="overview"):
            yield Stages(id="stages")
            yield Candidates(id="candidates")
        with TabbedContent(id="tabs"):
            with TabPane("Live", id="live-pane"), Horizontal():
                with Vertical(id="figures"):
                    yield Now(id="now")
                    yield Training(id="training")
                yield Log(id="log")
            for name in READING:
                scroll = VerticalScroll(classes="reading", id=f"{name}-scroll")
                with TabPane(name.capitalize(), id=f"{name}-pane"), scroll:
                    yield Static("", id=f"{name}-text", markup=False)
                    if name == "verdict":
                        yield Report(id="verdict-report")
        with Horizontal(id="actions"):
            yield Button("Start training", id="train", variant="primary", compact=True)
            yield Button("Open the locked test without training", id="open", compact=True)
            yield Button("Go on", id="resume", variant="primary", compact=True)
            yield Button("Read the report", id="report", variant="primary", compact=True)
            yield Button("Stop", id="stop", compact=True)
            yield Button("Back", id="back", compact=True)
            yield Button("Quit", id="leave", compact=True)
            yield Static("", id="state", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#stages").border_title = "stages"
        self.query_one("#candidates").border_title = "candidates"
        for name in READING:
            self.query_one(TabbedContent).hide_tab(f"{name}-pane")
        self._enter("running")
        # Only when the tabs have come to rest: they would answer their own start after ours, and turn back to Live.
        self.call_after_refresh(self._go)

    # The flow, in a thread.

    @property
    def busy(self) -> bool:
        return self.phase in {"running", "stopping"}

    def stop(self) -> None:
        """Ask the flow to stop at its next event."""
        if self.phase == "running" and self.work is not None:
            self.work.stop()
            self._enter("stopping")

    def _go(self) -> None:
        task, until, train = self.flow_task, self.until, self.train
        self.query_one(TabbedContent).hide_tab("problem-pane")
        self._turn_to("live")
        self._enter("running")
        self.query_one(Now).rest("starting …")

        def job(on_event: OnEvent) -> Journey:
            return self.flow.go(task, self.runs_dir, on_event, until=until, train=train)

        self.work = cast("AdvisorApp", self.app).working(Work(job, self.post_message))

    @on(Work.Happened)
    def draw(self, message: Work.Happened) -> None:
        log, stages = self.query_one(Log), self.query_one(Stages)
        match message.event:
            case StageStarted() as event:
                stages.started(event)
                log.started(event)
            case StageFinished() as event:
                stages.finished(event)
                log.finished(event)
            case Progress() as event:
                self.query_one(Now).advanced(event)
            case CandidateScored() as event:
                self.query_one(Candidates).scored(event)
            case TrainingStep() as event:
                self.query_one(Now).stepped(event)
                self.query_one(Training).stepped(event)
            case Note() as event:
                log.noted(event)

    @on(Work.Done)
    async def finished(self, message: Work.Done) -> None:
        journey: Journey = message.result
        self.journey = journey
        if journey.recommendation is not None:
            self._show("recommendation", recommendation_text(journey.recommendation))
        if self.until == "advice":
            self.query_one("#train", Button).label = "Start training" if self._trains else "Train anyway"
            self._enter("deciding")
            self._turn_to("recommendation")
        else:
            if journey.verdict is not None:
                self._show("verdict", verdict_text(journey.verdict, journey.reevaluated))
            await self.query_one(Report).read(journey.folder / "report.md")
            self.query_one(Stages).complete()
            self._enter("finished")
            self._turn_to("verdict")
        self._leave_if_asked()

    @on(Work.Failed)
    def failed(self, message: Work.Failed) -> None:
        error = message.error
        if not isinstance(error, AdvisorError):
            for one in traceback.format_exception(error):
                for each in one.splitlines():
                    self.query_one(Log).say(each, "dim")
        self.query_one(Stages).ended("failed")
        self._show("problem", error_text(error))
        self._enter("failed")
        self._turn_to("problem")
        self._leave_if_asked()

    @on(Work.Stopped)
    def stopped(self) -> None:
        self.query_one(Stages).ended("stopped")
        kept = Content.assemble(
            ("Stopped, resumable.", "bold $text-warning"),
            f"\nWhat is finished is kept in {line(self.runs_dir)}; training goes on from its last checkpoint.",
            what_to_do("choose Go on, here or another day: the same task, or its run in the first screen's list."),
        )
        self._show("problem", kept)
        self._enter("stopped")
        self._turn_to("problem")
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        app = cast("AdvisorApp", self.app)
        if app.leaving:
            app.leave()

    # What is shown.

    @property
    def _trains(self) -> bool:
        recommendation = self.journey.recommendation if self.journey else None
        return recommendation is not None and recommendation.trains

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        shown = set(BUTTONS[phase])
        if self._trains:
            # The test is opened for what was recommended, and that is not there before it is trained.
            shown.discard("open")
        for button in self.query("#actions Button"):
            button.display = button.id in shown
        self.query_one("#state", Static).update(Content(SENTENCES[phase]))
        if not self.busy:
            self.query_one(Now).rest(SENTENCES[phase])
        self.refresh_bindings()

    def _show(self, name: str, content: Content) -> None:
        self.query_one(f"#{name}-text", Static).update(content)
        self.query_one(TabbedContent).show_tab(f"{name}-pane")

    def _turn_to(self, name: str) -> None:
        """Its text takes the keys, so that the arrows scroll it, and an Enter too many presses no button."""
        self.query_one(TabbedContent).active = f"{name}-pane"
        self.query_one("#log" if name == "live" else f"#{name}-scroll").focus()

    # What the user does.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "train":
            return self.phase == "deciding"
        if action == "report":
            return self.journey is not None
        if action == "stop":
            return self.phase == "running"
        if action == "back":
            return not self.busy
        return True

    def action_train(self) -> None:
        self._decide(train=True)

    def action_report(self) -> None:
        if self.journey is not None:
            self.app.push_screen(ReportScreen(self.journey.folder / "report.md"))

    def action_stop(self) -> None:
        self.stop()

    def action_back(self) -> None:
        self.app.pop_screen()

    def _decide(self, *, train: bool) -> None:
        if self.phase == "deciding":
            self.until, self.train = "verdict", train
            self._go()

    @on(Button.Pressed)
    async def press(self, event: Button.Pressed) -> None:
        match event.button.id:
            case "train":
                self._decide(train=True)
            case "open":
                self._decide(train=False)
            case "resume":
                self._go()
            case "report":
                self.action_report()
            case "stop":
                self.stop()
            case "back":
                self.action_back()
            case "leave":
                await self.app.action_quit()
