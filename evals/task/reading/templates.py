"""The user's own prompts: Markdown files with front matter, in the folder `prompts` beside the task file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.errors import Problem


@dataclass(frozen=True)
class Template:
    """One file. `frame` is the user's turn, with the mark `{{input}}` in it; what else may stand between double braces
    (`{{instruction}}`, `{{labels}}`, `{{schema}}`, also in `system`) is filled in when the arm is made.

    `shots` demonstrations are chosen as `choose` says; `constrained` enforces the form of answers, `reason` lets the model think first.
    """

    name: str
    system: str
    frame: str
    shots: int = 0
    choose: Literal["random", "diverse", "nearest"] = "nearest"
    constrained: bool = False
    reason: bool = False
    file: str = ""


def read_templates(folder: Path, problems: list[Problem]) -> tuple[Template, ...]:
    """The templates of `folder`/*.md in the order of their names; none where there is no such folder. Faults go to `problems`."""
    if not folder.is_dir():
        return ()
    raise NotImplementedError
