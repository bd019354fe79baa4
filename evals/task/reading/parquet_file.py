"""Parquet as rows. What the file says of its own size is looked at before anything is decoded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.task.reading.columns import Budget, batch_rows, readable
from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.text_file import MAX_BYTES, MAX_LINES, FileError

ROWS_AT_ONCE = 500
MAX_CELLS = 20_000_000
MAX_COLUMNS = 1000
PROBE_SECONDS = 120.0
PROBE = "import sys; sys.path.append(sys.argv[1]); from evals.task.reading.parquet_file import consume; consume(sys.argv[2])"


def parquet_rows(path: Path) -> Iterator[RawRow | Fault]:
    """Rows, counted from 1. Raises FileError for a file that is broken or too large, before or while it is read."""
    import pyarrow as pa

    probe(path)
    try:
        yield from _rows(path)
    except (pa.ArrowException, OSError, ValueError, MemoryError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FileError(f"not a Parquet file that can be read: {reason}") from error


def probe(path: Path) -> None:
    """Read the file once in a process apart: the library aborts on some broken files, and takes its process with it.

    Raises FileError where it does, or takes too long. Whatever else is wrong is found when the file is read here.
    """
    command = [sys.executable, "-P", "-c", PROBE, str(Path(__file__).parents[3]), str(path)]
    try:
        quiet = subprocess.DEVNULL
        done = subprocess.run(command, check=False, stdin=quiet, stdout=quiet, stderr=quiet, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise FileError(f"not a Parquet file that can be read: more than {PROBE_SECONDS:.0f} s") from error
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read: {error}") from error
    if done.returncode != 0:
        raise FileError("not a Parquet file that can be read: it breaks the library that reads it")


def consume(path: str) -> None:
    """What the probe does: read everything, and say nothing of errors that are errors."""
    with suppress(Exception):
        for _ in _rows(Path(path)):
            pass


def _rows(path: Path) -> Iterator[RawRow | Fault]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, thrift_string_size_limit=16_000_000, thrift_container_size_limit=200_000) as file:
        columns = check_parquet(file)
        leaves = [file.metadata.schema.column(at) for at in range(file.metadata.num_columns)]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False) as file:
        budget = Budget()
        number = 1
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns, use_threads=False):
            yield from batch_rows(batch, number, budget)
            number += batch.num_rows


def check_parquet(file: Any) -> list[str]:
    """The columns to read. Raises FileError where rows, cells or decoded bytes are over the limits."""
    metadata = file.metadata
    if metadata.num_rows > MAX_LINES:
        raise FileError(f"{metadata.num_rows:,} rows (at most {MAX_LINES:,}): take a sample")
    if metadata.num_columns > MAX_COLUMNS:
        raise FileError(f"{metadata.num_columns:,} columns (at most {MAX_COLUMNS:,})")
    columns = [field.name for field in file.schema_arrow if readable(field.type)]
    for name in columns:
        if columns.count(name) > 1:
            raise FileError(f"the column {name[:60]!r} stands in the file twice")
    size = cells = 0
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(at)
            if chunk.path_in_schema.split(".", maxsplit=1)[0] in columns:
                size += chunk.total_uncompressed_size
                cells += chunk.num_values
    if size > MAX_BYTES:
        raise FileError(f"decodes to {size // 1024**2:,} MB (at most {MAX_BYTES // 1024**2}): take a sample")
    if cells > MAX_CELLS:
        raise FileError(f"{cells:,} values (at most {MAX_CELLS:,}): take a sample")
    return columns
