"""The task's documents: a folder of Markdown, text, HTML and PDF, or a JSON Lines file of `id` and `text`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evals.errors import Problem
from evals.task.reading.apart import Apart
from evals.task.reading.read import Source, open_source, raw_rows
from evals.task.reading.text_file import FileError, first_bytes, no_text, opened

TEXTS = {".md", ".markdown", ".txt"}
PAGES = {".html", ".htm"}
SUFFIXES = {*TEXTS, *PAGES, ".pdf"}
MAX_FILES = 100_000
MAX_BYTES = 64 * 1024**2
# A parsed page takes up to a hundred times its own size in memory.
MAX_HTML_BYTES = 4 * 1024**2
# What all documents hold together, in characters.
MAX_TEXT = 256 * 1024**2
MAX_PROBLEMS = 1000


@dataclass(frozen=True)
class Document:
    """One document of the task: `id` is its path below the documents folder, or the `id` of its row."""

    id: str
    text: str


def read_documents(path: Path) -> tuple[list[Document], list[Problem]]:
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
            return [], [Problem(str(path), 0, "data.documents", "there is no such folder or file")]
    except FileError as error:
        reading.problems.append(Problem(str(path), error.line, "data.documents", error.message))
    except (OSError, ValueError) as error:
        reading.problems.append(Problem(str(path), 0, "data.documents", f"cannot be read: {error}"))
    if not reading.documents and not reading.problems:
        what = "no .md or .txt file, HTML or PDF with text in it"
        reading.problems.append(Problem(str(path), 0, "data.documents", what))
    return reading.documents, reading.problems


class Reading:
    """Documents and problems as they are found, with the limits on both."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
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
            raise FileError(f"the documents hold more than {MAX_TEXT // 1024**2} million characters: leave some out")
        self.documents.append(one)


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


def _read_rows(path: Path, reading: Reading) -> None:
    """Documents as rows: JSON Lines, or any other container of rows."""
    source: Source = open_source(path.name, path.parent, "train")
    ids: dict[str, int] = {}
    for row in raw_rows(source):
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
