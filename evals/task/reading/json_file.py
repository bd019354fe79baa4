"""A JSON document as rows: a list of objects, an object that holds one such list, or an object that is the one row.

Read element by element, so that a file of 256 MB never stands in memory, and each broken element is told apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.strict_json import JsonError, parse_at, skip_space
from evals.task.reading.text_file import MAX_LINE, FileError

# Lists of objects that are part of one row, and no list of rows.
PARTS = {"messages", "conversations", "tools", "prompt", "completion", "chosen", "rejected", "tool_calls"}
PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},"]', re.DOTALL)


class Buffer:
    """A window on a text that is read once from front to back: at least one whole element ahead of `at`.

    `position` is the offset of `at` in the whole text, `line` its line.
    """

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self.text = ""
        self.at = 0
        self.line = 1
        self.position = 0
        self.ended = False

    def peek(self) -> str:
        """The next character that is no space, or an empty string at the end."""
        while True:
            self._fill()
            self.go(skip_space(self.text, self.at))
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]

    def go(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.position += end - self.at
        self.at = end

    def take(self, sign: str, where: str) -> None:
        if self.peek() != sign:
            raise FileError(f"broken JSON: {sign!r} is missing {where}", self.line)
        self.go(self.at + 1)

    def value(self) -> Any:
        """The next value. Raises FileError."""
        self.peek()
        try:
            value, end = parse_at(self.text, self.at)
        except JsonError as error:
            raise FileError(self.reason(error), self.line_of(error.at)) from error
        self.go(end)
        return value

    def reason(self, error: JsonError) -> str:
        """What is wrong with a value that does not end: it may go on behind the window."""
        if self.ended or error.at < 0 or _end_of(self.text, self.at) >= 0:
            return error.message
        return f"one element is longer than {MAX_LINE:,} characters, or never closed"

    def line_of(self, at: int) -> int:
        return self.line + (self.text.count("\n", self.at, at) if at > self.at else 0)

    def _fill(self) -> None:
        if self.ended or len(self.text) - self.at > MAX_LINE:
            return
        chunk = self._file.read(2 * MAX_LINE)
        self.ended = not chunk
        if "\0" in chunk:
            raise FileError("a NUL byte: this is no text", self.line)
        self.text, self.at = self.text[self.at :] + chunk, 0


def json_rows(file: io.TextIOWrapper) -> Iterator[RawRow | Fault]:
    """Rows of a document and its broken elements. Raises FileError where it cannot be followed any further."""
    buffer = Buffer(file)
    if buffer.peek() == "[":
        yield from _elements(buffer)
    else:
        yield from _object(buffer)
    if buffer.peek():
        raise FileError("broken JSON: something stands after its end (one row a line is JSON Lines)", buffer.line)


def _object(buffer: Buffer) -> Iterator[RawRow | Fault]:
    """The rows that stand under one key; an object without such a list is itself the row."""
    start = buffer.line
    buffer.take("{", "at the start")
    rest: dict[str, Any] = {}
    rows_under = ""
    length = 0
    while buffer.peek() != "}":
        key = buffer.value()
        if not isinstance(key, str):
            raise FileError("broken JSON: a key must be text", buffer.line)
        if key in rest:
            raise FileError(f"the key {key[:60]!r} stands here twice", buffer.line)
        buffer.take(":", "after a key")
        rest[key] = None
        if buffer.peek() == "[" and key not in PARTS and _holds_objects(buffer):
            if rows_under:
                raise FileError(f"two lists of objects ({rows_under[:60]!r}, {key[:60]!r}): which are the rows?", buffer.line)
            rows_under = key
            yield from _elements(buffer)
        else:
            before = buffer.position
            rest[key] = buffer.value()
            length += buffer.position - before
            if length > MAX_LINE:
                raise FileError(f"an object of more than {MAX_LINE:,} characters that is no list of rows", buffer.line)
        if buffer.peek() != ",":
            break
        buffer.go(buffer.at + 1)
    buffer.take("}", "at the end")
    if not rows_under and rest:
        yield RawRow(start, rest)


def _holds_objects(buffer: Buffer) -> bool:
    inside = skip_space(buffer.text, buffer.at + 1)
    return buffer.text[inside : inside + 1] == "{"


def _elements(buffer: Buffer) -> Iterator[RawRow | Fault]:
    """The elements of the list that starts here. Where the first two begin in one line, elements are counted, not lines."""
    buffer.take("[", "at the start")
    number = 0
    counted = False
    while buffer.peek() != "]":
        number += 1
        line = buffer.line
        element = _element(buffer, line)
        if buffer.peek() == ",":
            buffer.go(buffer.at + 1)
            after = buffer.peek()
            counted = buffer.line == line if number == 1 else counted
            if after == "]":
                yield Fault(buffer.line, "broken JSON: a comma stands before the end of the list")
        elif buffer.peek() != "]":
            yield element
            raise FileError("broken JSON: ',' or ']' is missing behind an element, or the list is cut off", buffer.line)
        yield _at(element, number) if counted else element
    buffer.take("]", "at the end of the list")


def _at(item: RawRow | Fault, number: int) -> RawRow | Fault:
    return RawRow(number, item.body) if isinstance(item, RawRow) else Fault(number, item.message, item.key)


def _element(buffer: Buffer, line: int) -> RawRow | Fault:
    """One element; a broken one is passed over where its end can be found."""
    try:
        value, end = parse_at(buffer.text, buffer.at)
    except JsonError as error:
        end = _end_of(buffer.text, buffer.at)
        if end < 0:
            message = f"{buffer.reason(error)}; nothing behind it can be read"
            raise FileError(message, buffer.line_of(error.at)) from error
        fault = Fault(buffer.line_of(error.at), error.message)
        buffer.go(end)
        return fault
    length = end - buffer.at
    buffer.go(end)
    if length > MAX_LINE:
        return Fault(line, f"one element is longer than {MAX_LINE:,} characters")
    return RawRow(line, value) if isinstance(value, dict) else Fault(line, "each element is one JSON object")


def _end_of(text: str, start: int) -> int:
    """The end of a broken element, by its brackets: where a comma or the list's end stands outside of it. -1: not found."""
    depth = 0
    for piece in PIECE.finditer(text, start):
        sign = piece.group()
        if sign == '"':
            return -1  # a text that is never closed
        if sign in {"[", "{"}:
            depth += 1
        elif sign in {"]", "}"}:
            if depth == 0:
                return piece.start()
            depth -= 1
        elif sign == "," and depth == 0:
            return piece.start()
    return -1
