"""A text file that a stranger wrote, read in a stream: its size, its encoding, and the length of its lines are limited."""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_LINE = 1_000_000
MAX_LINES = 2_000_000
MAX_BYTES = 256 * 1024 * 1024
# How a file begins that is no text: its first bytes and what to call it.
NO_TEXT = (
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed (gzip): unpack it with `gunzip`"),
    (b"PK\x03\x04", "a ZIP archive (or an Office file): unpack it, or save the table as CSV"),
    (b"BZh", "compressed (bzip2): unpack it"),
    (b"\xfd7zXZ", "compressed (xz): unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd): unpack it"),
    (b"ARROW1", "an Arrow file: save it as Parquet"),
    (b"SQLite format 3", "a database: save the table as CSV"),
    (b"%PDF-", "a PDF"),
    (b"\x00\x00\xfe\xff", "UTF-32 text, not UTF-8: save it as UTF-8"),
    (b"\xff\xfe\x00\x00", "UTF-32 text, not UTF-8: save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text, not UTF-8: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text, not UTF-8: save it as UTF-8"),
)


class FileError(Exception):
    """Why a file as a whole, or from `line` on, cannot be read."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def first_bytes(path: Path, count: int = 16, *, limit: int = MAX_BYTES) -> bytes:
    """The first bytes of a regular file of at most `limit` bytes. Raises FileError; a pipe or a device is never opened."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FileError("this is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise FileError("this is no regular file (a pipe, a device or a socket)")
        if status.st_size > limit:
            raise FileError(f"the file is larger than {limit // 1024**2} MB")
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise FileError("there is no such file") from error
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise FileError(f"cannot be read: {error}") from error


def no_text(head: bytes) -> str:
    """What a file is that begins so, or an empty string where it may be text."""
    return next((name for magic, name in NO_TEXT if head.startswith(magic)), "")


@contextmanager
def opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """A file as UTF-8 text, with or without a byte-order mark, line ends as they are. FileError for what is no such text."""
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        offset, line = _bad_byte(path)
        raise FileError(f"not UTF-8 text: byte {offset:,} cannot be read; save the file as UTF-8", line) from error
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from error


def lines(file: io.TextIOWrapper, longest: int = MAX_LINE, most: int = MAX_LINES) -> Iterator[str | None]:
    """Lines with their ends, and None for each of more than `longest` characters.

    Raises FileError where a NUL stands, and behind the first `most` lines.
    """
    number = 0
    while line := file.readline(longest + 2):
        number += 1
        if number > most:
            raise FileError(f"more than {most:,} lines: take a sample", number)
        if "\0" in line:
            raise FileError("a NUL byte: this is no text", number)
        if len(line.rstrip("\r\n")) > longest:
            while line and not line.endswith(("\n", "\r")):
                line = file.readline(longest + 2)
            yield None
        else:
            yield line


def _bad_byte(path: Path) -> tuple[int, int]:
    """The offset of the first byte that is no UTF-8, and its line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=len(chunk) < 1 << 20)
            except UnicodeDecodeError as error:
                start = error.start - waiting
                return offset + start, line + _line_ends(chunk[: max(start, 0)])
            line += _line_ends(chunk)
            offset += len(chunk)
    return os.path.getsize(path), line


def _line_ends(chunk: bytes) -> int:
    return chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
