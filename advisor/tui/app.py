"""`advisor` alone: the terminal app. It picks, watches and reads; everything else is done by `advisor/flow`."""

from __future__ import annotations

import os
import sys
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType

from advisor.tui.flow import Flow, RealFlow
from advisor.tui.pick import PickScreen
from advisor.tui.run import RunScreen
from advisor.tui.work import Work
from evals.errors import Interrupted

STOPPED = "Stopped. What is finished is kept: start it again, here or with `advisor run`, and it goes on."


class AdvisorApp(App[int]):
    """`flow` is the real one but in tests."""

    TITLE = "finetune-advisor"
    ENABLE_COMMAND_PALETTE = False
    # How long the flow may take to stop before the app leaves without it; nothing is lost by that but the step at hand.
    GRACE_SECONDS = 10.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", id="quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True, id="quit-at-once"),
    ]

    def __init__(self, runs_dir: Path, flow: Flow | None = None) -> None:
        super().__init__()
        self.runs_dir = runs_dir
        self.flow: Flow = flow or RealFlow()
        self.leaving = False
        self.works: list[Work] = []

    def on_mount(self) -> None:
        self.push_screen(PickScreen(self.runs_dir, self.flow))

    def run(self, *args: Any, **kwargs: Any) -> int | None:
        """As App.run; a flow that did not stop in time is left behind with the process."""
        # While the app holds stderr Python cannot start it, and a library that locks between processes would fail.
        resource_tracker.ensure_running()
        result = super().run(*args, **kwargs)
        if any(work.alive for work in self.works):
            # Ending the usual way would pull the interpreter away from under a thread that is busy in torch. The
            # training process sees that we are gone, and writes its checkpoint.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.return_code or 0)
        return result

    def working(self, work: Work) -> Work:
        """Keep account of a thread that is at work."""
        self.works = [*(one for one in self.works if one.alive), work]
        return work.start()

    async def action_quit(self) -> None:
        """Stop what is running, then leave; the second time leave at once."""
        running = [screen for screen in self.screen_stack if isinstance(screen, RunScreen) and screen.busy]
        if not running:
            self.exit()
        elif self.leaving:
            self.leave()
        else:
            self.leaving = True
            self.set_timer(self.GRACE_SECONDS, self.leave)
            for screen in running:
                screen.stop()

    def leave(self) -> None:
        """End the app after the flow was stopped."""
        self.exit(Interrupted.exit_code, return_code=Interrupted.exit_code, message=Text(STOPPED))
