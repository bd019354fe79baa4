"""What the first worker of a job settled for the machine, and every later one keeps: so a resumed training computes what it would have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.errors import AdvisorError
from evals.records import read_json, write_json

NAME = "settled.json"


@dataclass(frozen=True)
class Settled:
    """`threads` of a processor (sums are rounded by how they are split); `rows_at_once` fit into memory, 0 is the recipe's whole batch.

    Neither is part of the job's hash: the adapter of a recipe is found again on the same machine, whatever runs beside it.
    """

    threads: int
    rows_at_once: int = 0

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, {"threads": self.threads, "rows_at_once": self.rows_at_once})


def read_settled(folder: Path) -> Settled | None:
    """What is settled for the job of this folder; None where nothing is yet, or the record is damaged."""
    try:
        record = read_json(folder / NAME)
        return Settled(max(1, int(record["threads"])), max(0, int(record["rows_at_once"])))
    except (OSError, AdvisorError, KeyError, TypeError, ValueError):
        return None
