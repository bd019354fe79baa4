"""The tool arms of a task."""

from __future__ import annotations

from baselines.prompts.prompt import answer_format
from baselines.tools.candidate import ToolCandidate
from baselines.tools.demonstrations import traces
from baselines.tools.lookup import Lookup
from evals.candidate import PromptFormat
from evals.engines.engine import Engine
from evals.events import OnEvent
from evals.task.load import Task
from evals.task.tools import ToolsSpec

# Limits of a task that names no tools, whose rows offer some.
ROWS_OWN = ToolsSpec(functions=("calculator",))


def tool_arms(task: Task, engine: Engine, lookup: Lookup | None, on_event: OnEvent) -> list[ToolCandidate]:
    """One arm where the task or its rows have tools, by the chat template where that has a place for them.

    Training rows with calls are its demonstrations; where there are none, `bootstrapped` can find some.
    """
    if not task.tools and not any(one.tools for one in (*task.train, *task.dev, *task.test)):
        return []
    native = engine.takes_tools
    return [
        ToolCandidate(
            "tools_native" if native else "tools_json",
            engine,
            PromptFormat(task.instruction, "system"),
            answer_format(task, engine),
            task.tools,
            task.spec.tools or ROWS_OWN,
            task.folder,
            native,
            traces(task, task.tools, on_event),
            lookup,
            on_event=on_event,
        )
    ]
