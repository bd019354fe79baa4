"""The first screen: a shipped example, a task of one's own, or a run to go on with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Header, Input, OptionList, Static
from textual.widgets.option_list import Option

from advisor.tui.flow import Flow, examples_folder
from advisor.tui.report import ReportScreen
from advisor.tui.run import RunScreen
from advisor.tui.text import error_text, line
from advisor.tui.work import Work
from evals.errors import AdvisorError, UsageError, clean
from evals.records import read_json

if TYPE_CHECKING:
    from advisor.tui.app import AdvisorApp
    from evals.task.load import Task

SHOWN_RUNS = 100


@dataclass(frozen=True)
class Past:
    """A run that is there: how far it has come, in one word, and when it was last worked on."""

    folder: Path
    state: str
    at: float


class PickScreen(Screen[None]):
    CSS_PATH = "pick.tcss"
    AUTO_FOCUS = "#examples"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "Next list", id="pick.next"),
        Binding("r", "report", "Report of the run", id="pick.report"),
    ]

    def __init__(self, runs_dir: Path, flow: Flow) -> None:
        super().__init__()
        self.runs_dir, self.flow = runs_dir, flow
        self.examples: list[str] = []
        self.runs: list[Past] = []
        self.work: Work | None = None

    def compose(self) -> ComposeResult:
        yield Header(icon="")
        yield Static("Prompt, retrieve or fine-tune? Start with a shipped example", classes="heading", markup=False)
        yield OptionList(id="examples", markup=False)
        yield Static("or with a task of your own: its folder or task.yaml", classes="heading", markup=False)
        yield Input(placeholder="path/to/task", id="path")
        yield Static("", classes="heading", id="runs-heading", markup=False)
        yield OptionList(id="runs", markup=False)
        with VerticalScroll(id="problem-box"):
            yield Static("", id="problem", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        folder = examples_folder()
        self.examples = sorted(one.parent.name for one in folder.glob("*/task.yaml"))
        width = max((len(name) for name in self.examples), default=0)
        options = [
            Option(Content.assemble((f"{name:<{width}}", "bold"), "  ", (description(folder / name), "dim")))
            for name in self.examples
        ]
        there = self.query_one("#examples", OptionList)
        there.add_options(options)
        there.highlighted = 0 if options else None

    def on_screen_resume(self) -> None:
        self.runs = past_runs(self.runs_dir)
        there = self.query_one("#runs", OptionList)
        there.clear_options()
        heading = f"or go on with a run in {line(self.runs_dir)}, the latest first" if self.runs else ""
        self.query_one("#runs-heading", Static).update(Content(heading or f"no runs yet in {line(self.runs_dir)}"))
        there.display = bool(self.runs)
        width = max((len(line(one.folder.name)) for one in self.runs), default=0)
        for one in self.runs:
            when = datetime.fromtimestamp(one.at).strftime("%Y-%m-%d %H:%M")
            name = f"{line(one.folder.name):<{width}}"
            there.add_option(Option(Content.assemble((name, "bold"), f"  {one.state:<22}  ", (when, "dim"))))
        there.highlighted = 0 if self.runs else None

    @on(OptionList.OptionSelected, "#examples")
    def pick_example(self, event: OptionList.OptionSelected) -> None:
        name = self.examples[event.option_index]
        self._open(lambda: self.flow.task(name))

    @on(OptionList.OptionSelected, "#runs")
    def pick_run(self, event: OptionList.OptionSelected) -> None:
        name = self.runs[event.option_index].folder.name
        self._open(lambda: self.flow.run(name, self.runs_dir))

    @on(Input.Submitted)
    def pick_path(self, event: Input.Submitted) -> None:
        name = event.value.strip().strip("'\"")
        if not name:
            do = "write the path of a task's folder or task.yaml, or pick one from a list."
            self._show(UsageError("no path was given", do=do))
            return
        self._open(lambda: self.flow.task(_expanded(name)))

    def action_report(self) -> None:
        """The report of the marked run."""
        index = self.query_one("#runs", OptionList).highlighted
        if not self.runs:
            return
        folder = self.runs[index or 0].folder
        if (folder / "report.md").is_file():
            self.app.push_screen(ReportScreen(folder / "report.md"))
        else:
            do = "press Enter on it: it goes on where it stopped."
            self._show(AdvisorError("this run has no report yet", where=str(folder), do=do))

    def _open(self, read: Callable[[], Task]) -> None:
        """Read the task in a thread (its files may be large), then watch its run."""
        if self.work is not None and self.work.alive:
            return
        self._say(Content("reading the task …"))
        app = cast("AdvisorApp", self.app)
        self.work = app.working(Work(lambda _: read(), self.post_message))

    @on(Work.Done)
    def opened(self, message: Work.Done) -> None:
        self._say(None)
        self.app.push_screen(RunScreen(message.result, self.runs_dir, self.flow))

    @on(Work.Failed)
    def refused(self, message: Work.Failed) -> None:
        self._show(message.error)

    def _show(self, error: BaseException) -> None:
        self._say(error_text(error))

    def _say(self, content: Content | None) -> None:
        self.query_one("#problem", Static).update(content or "")
        self.query_one("#problem-box").set_class(content is not None, "shown")


def _expanded(name: str) -> str:
    try:
        return str(Path(name).expanduser())
    except RuntimeError:
        return name


def description(folder: Path) -> str:
    """What an example is about: its README's title where that says more than the name, else the first line below it."""
    for file in (folder / "README.md", folder / "instruction.md"):
        try:
            lines = [one.strip() for one in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        except OSError:
            continue
        for one in filter(None, lines):
            told = re.sub(r"^#+\s*[\w-]*:?\s*", "", one) if one.startswith("#") else one
            if told:
                return line(told)
    return ""


def past_runs(runs_dir: Path) -> list[Past]:
    """The runs of a folder, the latest first. A record that cannot be read makes a run unfinished, no more."""
    found = []
    for record in runs_dir.glob("*/task.json"):
        try:
            at = max(one.stat().st_mtime for one in (record, record.parent / "events.jsonl") if one.exists())
        except (OSError, ValueError):
            continue
        found.append(Past(record.parent, _state(record.parent), at))
    return sorted(found, key=lambda one: -one.at)[:SHOWN_RUNS]


def _state(folder: Path) -> str:
    for file, key, word in (("verdict.json", "verdict", ""), ("recommendation.json", "action", "advice: ")):
        try:
            return word + clean(read_json(folder / file)[key])[:16]
        except (OSError, AdvisorError, KeyError):
            continue
    return "unfinished"
