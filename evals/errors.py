"""Errors that a person can act on: what happened, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

# Control codes as their pictures (␛ for escape); what has none, and what turns the reading direction round, as a box.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if code != 10}
_HIDDEN = [0x7F, *range(0x80, 0xA0), 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_TABLE: dict[int, str] = {**_PICTURES, 9: "    ", **dict.fromkeys(_HIDDEN, "\N{REPLACEMENT CHARACTER}")}


def clean(text: object) -> str:
    """`text` without anything that a terminal obeys; lines stay lines.

    What people's files hold (names, paths, values, model output) is shown through this: an escape in it cannot reach the
    terminal.
    """
    whole = str(text).replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8")
    return whole.translate(_TABLE)


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
        return clean("\n".join(lines))


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
        whole = f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"
        # One problem is one line, whatever stands in a file's name.
        return clean(whole).replace("\n", "␊")


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
