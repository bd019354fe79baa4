"""`advisor check --fix`: a cleaned copy of the data beside the original, and a line for each thing that was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.flow.checks import check_data
from advisor.flow.session import Session
from evals.errors import AdvisorError, Problem
from evals.events import OnEvent
from evals.records import write_jsonl
from evals.task.checks.findings import Finding, where
from evals.task.load import read_intake
from evals.task.reading.formats import Row

Spot = tuple[str, int]
# The share of a file's rows that may be left out because they leak.
MOST_LEFT_OUT = 0.2


@dataclass(frozen=True)
class Change:
    """What was done with one row, and why. `what` is "left out" or "renamed"."""

    file: str
    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.why}"


@dataclass(frozen=True)
class Fixed:
    """The files that were written, by split, the changes in them, and the problems that only a person can mend."""

    written: dict[str, Path]
    kept: dict[str, int]
    changes: tuple[Change, ...]
    remaining: tuple[Problem, ...]


def fix(task_file: Path, out: Path, on_event: OnEvent) -> Fixed:
    """Write what is left of the data after the checks: train to `out`, dev and test beside it where they changed.

    Left out: rows that cannot be read or used, repeated rows, and those of two nearly equal rows in two splits that stand
    in the lesser one. Not touched: contradictions, doubtful labels, personal data (a person has to judge them).
    Raises AdvisorError where `out` is there already.
    """
    intake = read_intake(task_file)
    session = Session(intake.task, on_event)
    checks = check_data(intake.task, session, on_event, embed=False).checks
    spots = {spot for rows in intake.given.values() for spot in _spots(rows)}
    unread = [one for one in intake.problems if one.line and (one.file, one.line) not in spots]
    faults = {(one.file, one.line): one for one in intake.problems if one.line}
    drops = {
        (one.places[0].file, one.places[0].line): one for one in checks.findings if one.drop and one.places and _for_good(one)
    }
    remaining = [one for one in intake.problems if not one.line]
    for rows in intake.given.values():
        alike = {spot for spot in _spots(rows) if spot in drops and drops[spot].check.startswith("leak.")}
        if len(alike) > MOST_LEFT_OUT * len(rows):
            # So many alike are a property of the task (questions about one passage), not slips: a group is the cure.
            drops = {spot: one for spot, one in drops.items() if spot not in alike}
            message = (
                f"{len(alike)} of {len(rows)} rows are nearly alike in another split, too many to leave out: name a `group:` "
                "column (or leave dev and test out of `data:`), and whole groups are split"
            )
            remaining.append(Problem(rows[0].file, 0, "data", message))
    changes = [
        Change(one.file, one.line, "left out", f"{one.key}: {one.message}" if one.key else one.message) for one in unread
    ]
    cleaned: dict[str, tuple[Path, list[dict[str, object]]]] = {}
    for split, rows in intake.given.items():
        bodies, made = _cleaned(rows, faults, drops)
        changes += made
        path = out if split == "train" else out.with_name(f"{out.stem}.{split}{out.suffix or '.jsonl'}")
        touched = made or any(Path(one.file) == Path(rows[0].file) for one in unread if rows)
        if split != "train" and not touched:
            continue
        if path.exists():
            raise AdvisorError("there is such a file already", where=str(path), do="name another with --fix, or move it away.")
        cleaned[split] = path, bodies
    for path, bodies in cleaned.values():
        write_jsonl(path, bodies)
    written = {split: path for split, (path, _) in cleaned.items()}
    kept = {split: len(bodies) for split, (_, bodies) in cleaned.items()}
    return Fixed(written, kept, tuple(sorted(changes, key=lambda one: (one.file, one.line))), tuple(remaining))


def _for_good(finding: Finding) -> bool:
    """Rows that repeat in dev or test show how often users ask: they stay, and count as one cluster."""
    return finding.check != "duplicate" or finding.places[0].pool == "train"


def _spots(rows: Sequence[Row]) -> list[Spot]:
    return [(row.file, row.line) for row in rows]


def _cleaned(
    rows: Sequence[Row], faults: dict[Spot, Problem], drops: dict[Spot, Finding]
) -> tuple[list[dict[str, object]], list[Change]]:
    """The bodies that stay, in their order, and the changes."""
    bodies: list[dict[str, object]] = []
    changes: list[Change] = []
    contents = {row.example.id: row.example for row in reversed(rows)}
    for row in rows:
        spot = (row.file, row.line)
        fault, drop = faults.get(spot), drops.get(spot)
        if fault is not None and fault.key == "id" and contents[row.example.id] != row.example:
            # Two rows of one name are two rows: without a name each is called after its content.
            bodies.append({key: value for key, value in row.body.items() if str(value) != row.example.id})
            changes.append(
                Change(row.file, row.line, "renamed", "its id belongs to another row too; it is now named after its content")
            )
        elif fault is not None:
            changes.append(
                Change(row.file, row.line, "left out", f"{fault.key}: {fault.message}" if fault.key else fault.message)
            )
        elif drop is not None:
            changes.append(Change(row.file, row.line, "left out", f"{drop.check}: {where(drop)}{drop.message}"))
        else:
            bodies.append(row.body)
    return bodies, changes
