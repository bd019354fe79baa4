"""`tools:` of a task file: functions that a model may call while it answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from evals.errors import Problem
from evals.task.strict import Strict


class ToolsSpec(Strict):
    """`functions`: `calculator` and `lookup` (over the documents) come built in; `python:FILE.py:FUNCTION` is one of the
    user's, described by its signature and docstring; `FILE.json` declares functions by schema, whose call is the answer.

    A function may take `timeout` seconds and `memory_mib`; an answer may take `max_turns` calls.
    """

    functions: tuple[str, ...] = Field(min_length=1)
    max_turns: int = Field(default=4, ge=1, le=50)
    timeout: float = Field(default=5.0, gt=0, le=600)
    memory_mib: int = Field(default=1024, ge=64)


@dataclass(frozen=True)
class Tool:
    """A function as the model is told of it: `parameters` is the JSON schema of its arguments.

    `kind` says who runs it: we (`builtin`), a process with the user's function (`python`), or nobody (`declared`: the call
    itself is the answer). `file` and `function` are the user's.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    kind: Literal["builtin", "python", "declared"]
    file: str = ""
    function: str = ""
    file_sha256: str = ""

    @property
    def schema(self) -> str:
        """As `Request.tools` has it."""
        body = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return json.dumps({"type": "function", "function": body}, ensure_ascii=False)


def read_tools(spec: ToolsSpec | None, folder: Path, problems: list[Problem]) -> tuple[Tool, ...]:
    """The tools of a task file. Whatever is wrong with one is added to `problems`."""
    if spec is None:
        return ()
    raise NotImplementedError
