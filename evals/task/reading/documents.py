"""The task's documents: a folder of Markdown, text, HTML and PDF, or a JSON Lines file of `id` and `text`."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, overload

from evals.errors import Problem
from evals.task.reading.apart import Apart
from evals.task.reading.read import LINES_SUFFIXES, Source, open_lines, open_source, raw_rows
from evals.task.reading.text_file import MAX_BYTES as MAX_TABLE_BYTES
from evals.task.reading.text_file import FileError, first_bytes, no_text, opened

TEXTS = {".md", ".markdown", ".txt"}
PAGES = {".html", ".htm"}
SUFFIXES = {*TEXTS, *PAGES, ".pdf"}
MAX_FILES = 100_000
MAX_BYTES = 64 * 1024**2
# A parsed page takes up to a hundred times its own size in memory.
MAX_HTML_BYTES = 4 * 1024**2
# What all documents hold together, in characters, and how many there may be as rows.
MAX_TEXT = 8 * 1024**3
MAX_ROWS = 10_000_000
MAX_LINES_BYTES = 4 * MAX_TEXT
# Bytes of text that are kept in memory; from here on they lie on disk.
IN_MEMORY = 64 * 1024**2
WRITTEN_AT_ONCE = 1024**2
MAX_PROBLEMS = 1000


@dataclass(frozen=True)
class Document:
    """One document of the task: `id` is its path below the documents folder, or the `id` of its row."""

    id: str
    text: str

    @cached_property
    def sha256(self) -> str:
        """Of its text, 64 hex digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


class Documents(Sequence[Document]):
    """Documents in order, each read where it lies when it is asked for: in memory, or in a file without a name that is gone
    with the process. A million of them cost 16 MB of memory and their texts on disk.

    Made by `Shelf`. A slice is a list. Equal to any sequence of equal documents.
    """

    def __init__(self, held: bytes | IO[bytes], borders: array[int], digest: str) -> None:
        self._held = held
        # Where each id begins, where its text begins, and so on; the end of all.
        self._borders = borders
        self.hash = digest

    def __len__(self) -> int:
        return len(self._borders) // 2

    @overload
    def __getitem__(self, at: int) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> list[Document]: ...
    def __getitem__(self, at: int | slice) -> Document | list[Document]:
        if isinstance(at, slice):
            return [self._read(one) for one in range(*at.indices(len(self)))]
        one = at + len(self) if at < 0 else at
        if not 0 <= one < len(self):
            raise IndexError(at)
        return self._read(one)

    def __iter__(self) -> Iterator[Document]:
        return map(self._read, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Documents):
            return self.hash == other.hash
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} documents>"

    def _read(self, at: int) -> Document:
        start, middle, end = self._borders[2 * at : 2 * at + 3]
        # Not mapped: pages of a mapped file count as memory of the process.
        held = self._held[start:end] if isinstance(self._held, bytes) else _read_at(self._held.fileno(), start, end)
        name, text = held[: middle - start], held[middle - start :]
        return Document(name.decode("utf-8", "surrogatepass"), text.decode("utf-8", "surrogatepass"))


def _read_at(descriptor: int, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`. The system gives at most 2 GiB at once."""
    parts = []
    while start < end:
        parts.append(os.pread(descriptor, end - start, start))
        if not parts[-1]:
            raise OSError("the file with the texts of the documents was cut short")
        start += len(parts[-1])
    return b"".join(parts)


class Shelf:
    """Takes documents one by one, and lays them on disk as soon as they are more than `IN_MEMORY`. Raises FileError where there
    is no room for them."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._borders = array("Q", [0])
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._borders) // 2

    def put(self, one: Document) -> None:
        name, text = (part.encode("utf-8", "surrogatepass") for part in (one.id, one.text))
        middle = self._borders[-1] + len(name)
        self._borders.extend((middle, middle + len(text)))
        self._hash.update(_line(one.id, hashlib.sha256(text).hexdigest()))
        self._held += name
        self._held += text
        if len(self._held) > (IN_MEMORY if self._file is None else WRITTEN_AT_ONCE):
            self._lay_down()

    def close(self) -> Documents:
        """All that was put here, in order."""
        if self._file is not None:
            self._lay_down()
        held = bytes(self._held) if self._file is None else self._file
        return Documents(held, self._borders, self._hash.hexdigest())

    def _lay_down(self) -> None:
        try:
            self._file = self._file or tempfile.TemporaryFile(dir=_disk(), buffering=0)  # noqa: SIM115
            rest = memoryview(self._held)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            where = _disk() or tempfile.gettempdir()
            what = f"their texts do not fit into {where} ({error.strerror or error})"
            raise FileError(f"{what}: free some space there, or name another folder by the variable TMPDIR") from error
        self._held = bytearray()


def _disk() -> str | None:
    """A folder for large files, or None for the usual one: /tmp is memory on many machines, and /var/tmp is not."""
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return "/var/tmp" if not chosen and os.access("/var/tmp", os.W_OK | os.X_OK) else None


def _line(name: str, sha256: str) -> bytes:
    # A length before what a stranger chose: no two lists of documents are the same bytes.
    known = name.encode("utf-8", "surrogatepass")
    return b"%d:%s%s" % (len(known), known, sha256.encode())


def documents_hash(documents: Sequence[Document]) -> str:
    """sha256 of all ids and texts in their order, 64 hex digits; the texts are read one by one."""
    if isinstance(documents, Documents):
        return documents.hash
    whole = hashlib.sha256()
    for one in documents:
        whole.update(_line(one.id, one.sha256))
    return whole.hexdigest()


def read_documents(path: Path) -> tuple[Documents, list[Problem]]:
    """All documents in order of their paths (or rows), and all problems. Files of other kinds and empty ones are passed over.

    Links that lead out of the folder or in a circle, pipes, unreadable and too large documents are problems.
    """
    reading = Reading()
    try:
        if path.is_dir():
            _read_folder(path, reading)
        elif path.exists():
            _read_rows(path, reading)
        else:
            raise FileError("there is no such folder or file")
        if not len(reading.shelf) and not reading.problems:
            raise FileError("no .md or .txt file, HTML or PDF with text in it")
    except FileError as error:
        reading.problems.append(Problem(str(path), error.line, "data.documents", error.message))
    except (OSError, ValueError) as error:
        reading.problems.append(Problem(str(path), 0, "data.documents", f"cannot be read: {error}"))
    try:
        return reading.shelf.close(), reading.problems
    except FileError as error:
        full = Problem(str(path), 0, "data.documents", error.message)
        return Shelf().close(), list(dict.fromkeys([*reading.problems, full]))


class Reading:
    """Documents and problems as they are found, with the limits on both."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.problems: list[Problem] = []
        self._held = 0

    def problem(self, file: str, line: int, key: str, message: str) -> None:
        self.problems.append(Problem(file, line, key, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise FileError(f"more than {MAX_PROBLEMS:,} problems: reading stopped here")

    def document(self, one: Document) -> None:
        """Keep it. A text that stands in two documents is no fault of the file: the checks say so."""
        self._held += len(one.text)
        if self._held > MAX_TEXT:
            raise FileError(f"the documents hold more than {MAX_TEXT:,} characters: leave some out")
        self.shelf.put(one)


def _read_folder(folder: Path, reading: Reading) -> None:
    root = folder.resolve()
    with Apart() as apart:
        for path in sorted(_files(folder, reading)):
            try:
                text = _text(path, root, apart)
            except FileError as error:
                reading.problem(str(path), error.line, "", error.message)
                continue
            if text.strip():
                name = path.relative_to(folder).as_posix()
                reading.document(Document(name.encode("utf-8", "replace").decode(), text))


def _files(folder: Path, reading: Reading) -> Iterator[Path]:
    """Files of the known kinds below a folder. Linked folders are not entered."""
    count = 0
    for here, folders, names in os.walk(folder, onerror=lambda error: _closed(error, reading)):
        for name in folders:
            if (Path(here) / name).is_symlink():
                reading.problem(str(Path(here) / name), 0, "", "a link to a folder: not followed; put the documents here")
        for name in names:
            path = Path(here) / name
            if path.suffix.lower() in SUFFIXES:
                count += 1
                if count > MAX_FILES:
                    raise FileError(f"more than {MAX_FILES:,} documents")
                yield path


def _closed(error: OSError, reading: Reading) -> None:
    reading.problem(str(error.filename), 0, "", f"this folder cannot be read: {error.strerror}")


def _text(path: Path, root: Path, apart: Apart) -> str:
    """The text of one file. Raises FileError."""
    if path.is_symlink():
        _check_link(path, root)
    suffix = path.suffix.lower()
    limit = MAX_HTML_BYTES if suffix in PAGES else MAX_BYTES
    head = first_bytes(path, limit=limit)
    if suffix not in TEXTS:
        return apart.text(path)
    if name := no_text(head):
        raise FileError(f"this is {name}")
    with opened(path) as file:
        text = file.read()
    if "\0" in text:
        raise FileError("a NUL byte: this is no text", text.count("\n", 0, text.index("\0")) + 1)
    return text.replace("\r\n", "\n")


def _check_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # Python before 3.13 calls a circle a RuntimeError
        raise FileError("a link that leads nowhere or in a circle") from error
    if root not in target.parents:
        raise FileError("a link that leads out of the documents folder")
    if not stat.S_ISREG(target.stat().st_mode):
        raise FileError("a link to what is no regular file")


def _rows_of(path: Path) -> Source:
    """JSON Lines are read in a stream, whatever their size; other containers up to the size of a table."""
    lines = path.suffix.lower() in LINES_SUFFIXES
    if not (lines and path.stat().st_size > MAX_TABLE_BYTES):
        source = open_source(path.name, path.parent, "train")
        if not (lines and source.container == "JSON Lines"):
            return source
    return open_lines(path, limit=MAX_LINES_BYTES, longest=MAX_BYTES, most=MAX_ROWS)


def _read_rows(path: Path, reading: Reading) -> None:
    """Documents as rows: JSON Lines, or any other container of rows."""
    source = _rows_of(path)
    ids: dict[str, int] = {}
    for row in raw_rows(source, most=MAX_ROWS, values=10 * MAX_ROWS):
        if isinstance(row, Problem):
            reading.problem(row.file, row.line, row.key, row.message)
            continue
        name, text = row.body.get("id"), row.body.get("text")
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            reading.problem(source.file, row.line, "id", "a document needs an `id` (text or a number)")
        elif not isinstance(text, str) or not text.strip():
            reading.problem(source.file, row.line, "text", "a document needs its `text`")
        elif str(name) in ids:
            reading.problem(source.file, row.line, "id", f"{str(name)[:60]!r} stands at line {ids[str(name)]} too")
        else:
            ids[str(name)] = row.line
            reading.document(Document(str(name), text))
