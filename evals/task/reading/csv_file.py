"""CSV and TSV as rows of text: the delimiter is found in the header, and a row of the wrong length is told with its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.text_file import MAX_LINE, FileError, lines

DELIMITERS = (",", "\t", ";", "|")
MAX_COLUMNS = 1000


class Lines:
    """Feeds the csv reader, and stops a record of many lines (a quote that is never closed) before it eats the file."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._lines = lines(file)
        self._length = 0
        self.number = 0
        self.start = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if line is None:
            raise FileError(f"the line is longer than {MAX_LINE:,} characters", self.number)
        self._length += len(line)
        if self._length > MAX_LINE:
            raise FileError(f"a row of more than {MAX_LINE:,} characters begins here: is a quote never closed?", self.start)
        return line

    def next_record(self) -> None:
        """A new record begins with the next line."""
        self._length = 0
        self.start = self.number + 1


def csv_rows(file: io.TextIOWrapper) -> Iterator[RawRow | Fault]:
    """Rows by the names of the header, all cells as text. Raises FileError where no row behind can be trusted."""
    # One limit for the whole process; csv's own is 131,072, which a document in a cell exceeds.
    csv.field_size_limit(MAX_LINE)
    feed = Lines(file)
    first = next((line for line in feed if line.strip()), "")
    delimiter = found_delimiter(first)
    header = _header(feed, first, delimiter)
    feed.next_record()
    records = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise FileError("the row that begins here ends inside of a quote that is never closed", feed.start) from error
            yield Fault(feed.start, f"broken CSV: {error}")
            feed.next_record()
            continue
        start = feed.start
        feed.next_record()
        if not cells or (len(cells) == 1 and len(header) > 1 and not cells[0].strip()):
            continue
        if len(cells) == len(header):
            yield RawRow(start, {name: cell for name, cell in zip(header, cells, strict=True) if name})
        else:
            yield Fault(start, f"{len(cells)} cells in this row, and {len(header)} columns in the header")


def found_delimiter(header: str) -> str:
    """The delimiter that cuts the header into most columns; a comma where none cuts it."""
    counts = {}
    for delimiter in DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([header], delimiter=delimiter)))
        except (csv.Error, StopIteration):
            counts[delimiter] = 0
    return max(DELIMITERS, key=lambda one: counts[one])


def _header(feed: Lines, first: str, delimiter: str) -> list[str]:
    """The names of the columns. Raises FileError for names that stand twice."""
    try:
        names = [name.strip() for name in next(csv.reader(_with(first, feed), delimiter=delimiter, strict=True))]
    except (csv.Error, StopIteration) as error:
        raise FileError(f"the header is no CSV: {error}", feed.start) from error
    if len(names) > MAX_COLUMNS:
        raise FileError(f"{len(names):,} columns (at most {MAX_COLUMNS:,})", feed.start)
    for name in names:
        if name and names.count(name) > 1:
            raise FileError(f"the column {name[:60]!r} stands in the header twice", feed.start)
    return names


def _with(first: str, feed: Lines) -> Iterator[str]:
    yield first
    yield from feed
