"""The flow as the app calls it, imported in the thread that first uses it: the first screen is there at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evals.events import OnEvent

if TYPE_CHECKING:
    from advisor.report.journey import Journey
    from evals.task.load import Task

# As advisor.flow.whole.STAGES, which is too heavy to import before the first screen (a test holds the two together).
STAGES = ("intake", "baselines", "advice", "training", "repair", "re-evaluation", "verdict")


class Flow(Protocol):
    """What the app needs of the flow; tests put a scripted one in its place. All three may raise AdvisorError."""

    def task(self, name: str) -> Task:
        """A task file, its folder, or a shipped example."""

    def run(self, name: str, runs_dir: Path) -> Task:
        """The task that a run in `runs_dir` belongs to."""

    def go(self, task: Task, runs_dir: Path, on_event: OnEvent, *, until: str, train: bool | None) -> Journey:
        """The stages up to `until`; what is recorded is not done again."""


class RealFlow:
    """The functions of advisor.flow that the command line calls as well."""

    def task(self, name: str) -> Task:
        from advisor.flow.intake import read_task

        return read_task(name)

    def run(self, name: str, runs_dir: Path) -> Task:
        from advisor.flow.run import find_run, task_of

        return task_of(find_run(name, runs_dir))

    def go(self, task: Task, runs_dir: Path, on_event: OnEvent, *, until: str, train: bool | None) -> Journey:
        from advisor.flow.whole import go

        return go(task, runs_dir, on_event, until=until, train=train)


def examples_folder() -> Path:
    from advisor.flow.run import EXAMPLES

    return EXAMPLES
