"""How things are written on the screen: harmless, short, in plain words.

What comes from people's files (names, paths, sentences, model output) goes through `clean` or `line` and then into
`Content` or `rich.text.Text`, never through markup: it cannot style the screen, nor reach the terminal as an escape.
"""

from __future__ import annotations

import math
import traceback
from pathlib import Path

from textual.content import Content

from evals.errors import AdvisorError, ProblemsError, clean

SHOWN_PROBLEMS = 40


def line(text: object) -> str:
    """`text` on one line, without anything that a terminal obeys."""
    return " ".join(clean(text).split())


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, form: str) -> str:
    """A figure that may be unknown: an event that was read from JSON holds None for what JSON cannot hold."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def points(value: float | None) -> str:
    """A difference of scores in points of 100, signed."""
    return "–" if value is None else number(100 * value, "+.1f")


def bullet(*parts: str | Content | tuple[str, str]) -> Content:
    return Content.assemble("\n• ", *parts)


def error_text(error: BaseException) -> Content:
    """What happened, where, and what to do."""
    if isinstance(error, ProblemsError):
        problems = [f"\n  {clean(problem)}" for problem in error.problems[:SHOWN_PROBLEMS]]
        if len(error.problems) > SHOWN_PROBLEMS:
            problems.append(f"\n  … and {len(error.problems) - SHOWN_PROBLEMS} more")
        return Content.assemble((f"{clean(error.what)}:", "bold $text-error"), *problems, what_to_do(error.do))
    if isinstance(error, AdvisorError):
        where = f"\n  {clean(error.where)}" if error.where else ""
        return Content.assemble((clean(error.what), "bold $text-error"), where, what_to_do(error.do))
    return Content.assemble(
        (f"unexpected {type(error).__name__}: {clean(error)}", "bold $text-error"),
        f"\n  {_place(error)}",
        what_to_do("try again; what is finished is kept. If it stays, report what `advisor run TASK --debug` prints."),
    )


def what_to_do(sentence: str) -> Content:
    return Content.assemble("\n\n", ("What to do: ", "bold"), clean(sentence)) if sentence else Content("")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {Path(frames[-1].filename).name}, line {frames[-1].lineno} ({frames[-1].name})" if frames else ""
