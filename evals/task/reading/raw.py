"""What every reader gives: rows as they stand in a file, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawRow:
    """`line` counts from 1: the line where the row begins; of Parquet, datasets and JSON on one line it is the row."""

    line: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A row that is none."""

    line: int
    message: str
    key: str = ""
