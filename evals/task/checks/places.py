"""How a finding shows a row: where it stands, and its question and answer on one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from evals.task.checks.findings import Place, Pool
from evals.task.reading.formats import Row

Splits = Mapping[str, Sequence[Row]]

# Rows shown of a finding that is about many, and characters shown of each text.
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 160


def every_row(splits: Splits) -> Iterator[tuple[str, Row]]:
    """(split, row) of all rows, in their order."""
    for pool, rows in splits.items():
        for row in rows:
            yield pool, row


def place(pool: str, row: Row) -> Place:
    """Where a row stands, with its question and answer shortened for showing."""
    text = f"{shortened(row.example.text)} → {shortened(row.example.target)}"
    return Place(cast(Pool, pool), row.example.id, row.file, row.line, text)


def whole_file(splits: Splits, pool: str) -> tuple[Place, ...]:
    """The file of a split, where it has rows: for what is about all of them."""
    rows = splits.get(pool, ())
    return (Place(cast(Pool, pool), "", rows[0].file, 0, ""),) if rows else ()


def shortened(text: str, length: int = SHOWN_CHARACTERS) -> str:
    """One line of at most `length` characters: of a longer text its beginning and its end, since both say what it is."""
    # Ends first: a text of a megabyte is not split into words to show 160 characters of it.
    near = 8 * length
    line = " ".join((text if len(text) <= 2 * near else f"{text[:near]} {text[-near:]}").split())
    if len(line) <= length:
        return line
    half = (length - 3) // 2
    return f"{line[:half].rstrip()} … {line[-half:].lstrip()}"
