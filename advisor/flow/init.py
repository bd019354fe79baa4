"""`advisor init`: look at data, choose its columns, write the drafted task file beside its schema, and read it back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advisor.flow.intake import what_dev_can_tell
from advisor.flow.schema import schema_text
from advisor.flow.sources import TASK_FILE, Sources, first_rows, free
from advisor.flow.task_yaml import SCHEMA_FILE, Draft, in_comment, task_text
from evals.errors import AdvisorError, Problem, ProblemsError, UsageError, did_you_mean
from evals.records import write_text
from evals.task.guess import LOOKED_AT, Column, Guess, columns_of, guess_columns
from evals.task.load import load_task
from evals.task.reading.formats import read_rows
from evals.task.schema import TITLE
from evals.task.spec import ColumnsSpec


@dataclass(frozen=True)
class Table:
    """What the training rows look like. `detected` names their format, where it is a known one; the guesses are for the rest."""

    detected: str
    columns: tuple[Column, ...]
    keys: frozenset[str]
    asks: Guess | None = None
    answers: Guess | None = None


@dataclass(frozen=True)
class Written:
    """The new task file, what `advisor check` says of it, and what is wrong with its data (nothing, where it can be used)."""

    path: Path
    said: tuple[str, ...]
    problems: tuple[Problem, ...]


def look(sources: Sources) -> Table:
    """The format of the training rows, their columns, and a guess which is which. Raises ProblemsError without rows."""
    source = sources.source("train")
    rows, problems = first_rows(source, sources.folder, "train", LOOKED_AT)
    if not rows:
        nothing = Problem(sources.title, 0, "", "there are no rows")
        raise ProblemsError(problems or [nothing], do="mend the file, then run `advisor init` again.")
    keys = frozenset(key for row in rows for key in row)
    _, _, detected = read_rows(source, sources.folder, ColumnsSpec())
    columns = columns_of(rows)
    asks, answers = guess_columns(columns, len(rows))
    return Table(detected, tuple(columns), keys, asks, answers)


def chosen(table: Table, column: str | None, guess: Guess | None, flag: str) -> str:
    """The column that was named, else the guess. Raises UsageError with the columns where there is neither."""
    if column is None:
        if guess is None:
            what = "asked" if flag == "--input" else "the answer"
            raise UsageError(
                f"which column is {what}? Nothing says it:\n{shown_columns(table)}", do=f"name it with {flag} COLUMN."
            )
        return guess.value
    if column not in table.keys:
        hint = did_you_mean(column, table.keys)
        raise UsageError(f"there is no column {column!r}{hint}:\n{shown_columns(table)}", do=f"name one of them with {flag}.")
    return column


def shown_columns(table: Table, most: int = 20) -> str:
    """A line for each column, with two of its values."""
    lines = [
        f"  {in_comment(one.name, 30):<20} {' | '.join(in_comment(value, 40) for value in one.samples)}"
        for one in table.columns[:most]
    ]
    more = len(table.keys) - most
    return "\n".join([*lines, *([f"  … and {more:,} more"] if more > 0 else [])])


def write(one: Draft, folder: Path) -> Written:
    """Write the task file and its schema, then read it back. What the data have wrong is in the result, not raised."""
    file, schema = folder / TASK_FILE, folder / SCHEMA_FILE
    foreign = schema.exists() and f'"title": "{TITLE}"' not in schema.read_text(encoding="utf-8", errors="replace")[:2000]
    try:
        text = task_text(one, schema=not foreign)
    except ValueError as error:
        raise AdvisorError(
            f"this data cannot be named in YAML: {error}", where=one.source, do="rename the file or its columns."
        ) from error
    free(file)
    write_text(file, text)
    if not foreign:
        write_text(schema, schema_text())
    try:
        task = load_task(folder)
    except ProblemsError as error:
        return Written(file, (), error.problems)
    return Written(file, (*task.said, what_dev_can_tell(task)), ())
