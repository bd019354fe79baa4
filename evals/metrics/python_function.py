"""A metric of the user's own: `python:FILE.py:FUNCTION`, (output, target) -> a score in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.child import Child, Ended, Late
from evals.errors import AdvisorError
from evals.metrics.metric import PROGRAMS
from evals.metrics.options import PythonFunction as PythonOptions
from evals.records import file_hash
from evals.task.example import Example


@dataclass(frozen=True)
class PythonFunction:
    """The user's function, run in one process a batch and never in ours: it may print, crash or hang.

    It has the user's rights and environment, and starts in the task's folder; modules beside its file can be imported.
    `settings` hold the file's hash, not that of modules that it imports. Raises AdvisorError, naming file, function and
    item, where the function raises, takes longer than `timeout` for an answer, or gives no finite number in [0, 1].
    """

    options: PythonOptions
    folder: Path

    @property
    def name(self) -> str:
        return self.options.label

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "python", "function": self.options.function, "file_sha256": file_hash(self.path)}

    @cached_property
    def path(self) -> Path:
        """The file, which must lie in the task's folder or below. Raises AdvisorError."""
        root = self.folder.resolve()
        path = (root / self.options.file).resolve()
        if not path.is_relative_to(root):
            raise self._failed("the file lies outside the task's folder", do="put it beside the task file.")
        if not path.is_file():
            raise self._failed("there is no such file", do="put it beside the task file, or mend its name.")
        return path

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        if not pairs:
            return []
        with Child(["-P"], PROGRAMS / "function.py", str(self.path), self.options.function, folder=self.folder) as child:
            return [self._score(child, example, answer) for example, answer in pairs]

    def _score(self, child: Child, example: Example, answer: str) -> float:
        item = f"on the answer to {example.id}"
        try:
            said = child.ask([answer, example.target], self.options.timeout)
        except Late as error:
            raise self._failed(f"{item}: no score within {self.options.timeout:g} s") from error
        except Ended as error:
            raise self._failed(f"{item}: its process ended") from error
        if "error" in said:
            raise self._failed(f"{item}: {said['error']}")
        score = float(said["score"])
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise self._failed(f"{item}: the score is {score:g}, and must be from 0 to 1")
        return score

    def _failed(
        self, what: str, do: str = "mend the function; it is called as FUNCTION(output, target), both text."
    ) -> AdvisorError:
        return AdvisorError(what, where=f"metric python:{self.options.file}:{self.options.function}", do=do)
