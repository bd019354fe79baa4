"""Files and datasets -> raw rows: the container is found by content first and by name second, and read in a stream."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import Problem
from evals.task.reading.json_file import json_rows
from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.strict_json import JsonError, measure, parse
from evals.task.reading.text_file import MAX_LINE, MAX_LINES, FileError, first_bytes, lines, no_text, opened
from evals.task.spec import HubDataset

MAX_ROWS = 1_000_000
# Lists, objects, texts and numbers of one file: each takes some 60 bytes of memory beside its own length.
MAX_VALUES = 10_000_000
LINES_SUFFIXES = {".jsonl", ".ndjson"}
TABLE_SUFFIXES = {".csv", ".tsv", ".tab", ".psv"}
DATA_SUFFIXES = {*LINES_SUFFIXES, *TABLE_SUFFIXES, ".json", ".parquet", ".pq", ".txt", ".gz", ".zip", ".xlsx", ".arrow"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What the Hub calls the splits of a task.
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Source:
    """Where rows come from. `container` is JSON Lines, JSON, CSV, TSV, Parquet or a dataset; `typed` where values have the
    types of columns, so that a null may only mean that another row has such a key."""

    file: str
    container: str
    items: Iterator[RawRow | Fault]
    typed: bool = False


def open_source(source: str | HubDataset, folder: Path, split: str) -> Source:
    """`split` is the task's: it chooses the Hub's split where `source` is only a name. `items` may raise FileError."""
    dataset = _as_dataset(source, folder, split)
    if dataset is not None:
        from evals.task.reading.hub import dataset_rows

        name = dataset.dataset_name
        local = folder / name
        kind = "a local dataset" if local.is_dir() else "a dataset of the Hub"
        return Source(str(local) if local.is_dir() else name, kind, dataset_rows(dataset, folder), typed=True)
    path = folder / str(source)
    try:
        container = container_of(path)
    except FileError as error:
        return Source(str(path), "", iter([Fault(error.line, error.message)]))
    if container == "Parquet":
        from evals.task.reading.parquet_file import parquet_rows

        return Source(str(path), container, parquet_rows(path), typed=True)
    return Source(str(path), container, _text_rows(path, container))


def open_lines(path: Path, *, limit: int, longest: int, most: int) -> Source:
    """JSON Lines with limits of their own: `limit` bytes in all, `longest` characters a line, `most` lines."""
    return Source(str(path), "JSON Lines", _long_lines(path, limit, longest, most))


def _long_lines(path: Path, limit: int, longest: int, most: int) -> Iterator[RawRow | Fault]:
    if name := no_text(first_bytes(path, limit=limit)):
        raise FileError(f"this is {name}")
    with opened(path) as file:
        yield from _line_rows(file, longest, most)


def raw_rows(source: Source, most: int = MAX_ROWS, values: int = MAX_VALUES) -> Iterator[RawRow | Problem]:
    """The rows of a source, and a Problem for each that is none. Ends at the limits, and where nothing more can be read."""
    count = held = 0
    try:
        for item in source.items:
            count += 1
            if count > most:
                raise FileError(f"more than {most:,} rows: take a sample")
            if isinstance(item, Fault):
                yield Problem(source.file, item.line, item.key, item.message)
                continue
            held += measure(item.body)[1]
            if held > values:
                raise FileError(f"more than {values:,} values (texts, numbers, lists): take a sample", item.line)
            yield item
    except FileError as error:
        yield Problem(source.file, error.line, "", error.message)


def _as_dataset(source: str | HubDataset, folder: Path, split: str) -> HubDataset | None:
    """The dataset that a source names, or None where it is a file. What looks like a path or a data file is one."""
    if isinstance(source, HubDataset):
        return source
    path = folder / source
    try:
        if path.is_dir():
            return HubDataset(dataset_name=source or ".", split=HUB_SPLITS.get(split, "train"))
        exists = path.exists() or (folder / source.split("/", maxsplit=1)[0]).exists()
    except (OSError, ValueError):
        return None
    if exists or not HUB_NAME.fullmatch(source) or path.suffix.lower() in DATA_SUFFIXES:
        return None
    return HubDataset(dataset_name=source, split=HUB_SPLITS.get(split, "train"))


def container_of(path: Path) -> str:
    """JSON Lines, JSON, CSV, TSV or Parquet, by what the file holds. Raises FileError for what is none of them."""
    head = first_bytes(path)
    if head.startswith(b"PAR1"):
        return "Parquet"
    if name := no_text(head):
        raise FileError(f"this is {name}")
    suffix = path.suffix.lower()
    table = "TSV" if suffix in {".tsv", ".tab"} else "CSV"
    with opened(path) as file:
        filled = (line for line in lines(file) if line is None or line.strip())
        first = next(filled, "")
        one_line = next(filled, "") == ""
    start = (first or file_start(path)).lstrip()[:1]
    if start not in {"{", "["}:
        return table if start and suffix not in {*LINES_SUFFIXES, ".json"} else "JSON Lines"
    return _kind_of_json(first, start, suffix, one_line, table)


def file_start(path: Path) -> str:
    """The first characters of a file whose first line is too long to be read whole."""
    with opened(path) as file:
        return file.read(1000).lstrip()


def _kind_of_json(first: str | None, start: str, suffix: str, one_line: bool, table: str) -> str:
    """What a text is whose first filled line (None: too long) starts like JSON."""
    if first is None:
        return "JSON Lines" if suffix in LINES_SUFFIXES else "JSON"
    text = first.strip()
    try:
        value = parse(text)
    except JsonError as error:
        if suffix in TABLE_SUFFIXES:
            return table
        # A document that goes on in the next line; in JSON Lines only where nothing else stands in the first one.
        cut = text in {"{", "[", "[{"} if suffix in LINES_SUFFIXES else error.at >= len(text) or start == "["
        return "JSON" if cut else "JSON Lines"
    if not one_line:
        return "JSON Lines"
    if isinstance(value, list):
        return "JSON" if suffix not in LINES_SUFFIXES or any(isinstance(one, dict) for one in value) else "JSON Lines"
    return "JSON" if suffix not in LINES_SUFFIXES else "JSON Lines"


def _text_rows(path: Path, container: str) -> Iterator[RawRow | Fault]:
    with opened(path) as file:
        if container == "JSON":
            yield from json_rows(file)
        elif container == "JSON Lines":
            yield from _line_rows(file)
        else:
            from evals.task.reading.csv_file import csv_rows

            yield from csv_rows(file)


def _line_rows(file: io.TextIOWrapper, longest: int = MAX_LINE, most: int = MAX_LINES) -> Iterator[RawRow | Fault]:
    for number, line in enumerate(lines(file, longest, most), start=1):
        if line is None:
            yield Fault(number, f"the line is longer than {longest:,} characters")
        elif line.strip():
            yield _line_row(number, line)


def _line_row(number: int, line: str) -> RawRow | Fault:
    try:
        body: Any = parse(line.strip())
    except JsonError as error:
        at = f" at column {error.at + 1 + len(line) - len(line.lstrip())}" if error.at >= 0 else ""
        return Fault(number, error.message + at)
    return RawRow(number, body) if isinstance(body, dict) else Fault(number, "each line is one JSON object")
