"""The report of a run, as its folder holds it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Header, Markdown

from advisor.tui.text import line
from evals.errors import clean


class Report(Markdown):
    """`report.md` as a widget. Its links are shown and never opened: data may stand in it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", id=id, open_links=False)

    async def read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            text = f"The report cannot be read: {error.strerror or error}."
        await self.update(clean(text))


class ReportScreen(Screen[None]):
    CSS_PATH = "report.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back", id="report.back"),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.sub_title = line(path)

    def compose(self) -> ComposeResult:
        yield Header(icon="")
        with VerticalScroll(id="report-scroll"):
            yield Report(id="report")
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        self.query_one("#report-scroll").focus()
        await self.query_one(Report).read(self.path)
