"""Errors that a person can act on: what happened, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class AdvisorError(Exception):
    """Something went wrong that the user can mend. `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.do:
            lines.append(f"What to do: {self.do}")
        return "\n".join(lines)


class UsageError(AdvisorError):
    """The command was called wrongly (exit code 2)."""

    exit_code = 2


class Interrupted(AdvisorError):
    """Stopped by the user; what is finished is kept (exit code 130)."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a user's file. `line` counts from 1; 0 means the file as a whole."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ProblemsError(AdvisorError):
    """All problems of a task, reported at once."""

    def __init__(self, problems: Iterable[Problem], *, do: str = "mend these and run `advisor check` again.") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} found", do=do)

    def __str__(self) -> str:
        shown = [f"  {problem}" for problem in self.problems[:40]]
        if len(self.problems) > 40:
            shown.append(f"  … and {len(self.problems) - 40} more")
        return "\n".join([f"{self.what}:", *shown, f"What to do: {self.do}"])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known word, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
