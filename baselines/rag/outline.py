"""What stands under which headings: a document's sections, each with the title that its passages bear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from evals.task.reading.documents import SUFFIXES, Document

# ATX headings and code fences of CommonMark 0.31 (sections 4.2 and 4.5): up to three spaces before them.
MARK = re.compile(r"^ {0,3}(?:(#{1,6})(?=[ \t\r\n]|\Z)|(`{3,}|~{3,}))", re.MULTILINE)
# A line with more than this is text, whatever marks it begins with: all words of a heading shall stand in a title.
HEADING_WORDS = 16
HEADING_LENGTH = 200
# A longer first line is a paragraph and no title.
LINE_WORDS = 30
LINE_LENGTH = 300
SENTENCE_ENDS = tuple(".!?:;,。！？：；，؟۔।…")


@dataclass(frozen=True, slots=True)
class Section:
    """The text between two headings, from `start` to `end` in characters; `path` are the document's title and the headings
    over it, the outermost first."""

    path: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading line from `start` to `end`; `level` from 1 to 6."""

    level: int
    text: str
    start: int
    end: int


def sections(document: Document) -> Iterator[Section]:
    """The sections in order, those without text left out. What is in none of them is headings and white space.

    A document whose first line is its title but no heading bears that title over all headings; one that has neither is called
    by its name.
    """
    text = document.text
    found = headings(text)
    first = found[0].start if found else len(text)
    lead = bool(text[:first].strip())
    root = _first_line(text, first) if lead else ""
    if lead:
        yield Section((root or _name(document.id),), 0, first)
    over: list[Heading] = []
    for at, heading in enumerate(found):
        end = found[at + 1].start if at + 1 < len(found) else len(text)
        over = [one for one in over if one.level < heading.level] + [heading]
        if text[heading.end : end].strip():
            path = tuple(one for one in (root, *(one.text for one in over)) if one)
            yield Section(path or (_name(document.id),), heading.end, end)


def headings(text: str) -> list[Heading]:
    """ATX headings outside code fences. A fence that is not closed goes on to the end."""
    found = []
    fence = ""
    for mark in MARK.finditer(text):
        end = text.find("\n", mark.end())
        end = len(text) if end < 0 else end
        opened = mark[2] or ""
        if fence:
            closes = opened[:1] == fence[0] and len(opened) >= len(fence)
            fence = "" if closes and not text[mark.end() : end].strip() else fence
        elif opened:
            # Such a line in a text is code within it: a fence of backticks has none behind it.
            fence = "" if opened[0] == "`" and "`" in text[mark.end() : end] else opened
        elif end - mark.end() <= HEADING_LENGTH:
            words = _unclosed(text[mark.end() : end].strip()).split()
            if len(words) <= HEADING_WORDS:
                found.append(Heading(len(mark[1]), " ".join(words), mark.start(), end))
    return found


def _unclosed(heading: str) -> str:
    """Without the marks that may close it: "Tea ##" is "Tea", and "C#" is itself."""
    bare = heading.rstrip("#")
    return bare.rstrip() if bare != heading and (not bare or bare[-1].isspace()) else heading


def _first_line(text: str, first: int) -> str:
    """The first line before the first heading cut short, where it ends as no sentence does and something stands below it; else
    an empty string."""
    line, below, _ = text[:first].strip().partition("\n")
    line = line.strip().lstrip("#").strip()
    words = line.split() if len(line) <= LINE_LENGTH else []
    if (
        not (below or first < len(text))
        or not 0 < len(words) <= LINE_WORDS
        or line.endswith(SENTENCE_ENDS)
        or not re.search(r"\w", line)
    ):
        return ""
    return " ".join(words[:HEADING_WORDS])[:HEADING_LENGTH]


def _name(document: str) -> str:
    """A document's id without its folders and its kind of file."""
    name = document.rstrip("/").rsplit("/", 1)[-1]
    path = PurePosixPath(name)
    name = path.stem if path.suffix.lower() in SUFFIXES else name
    return " ".join(name.split())[:HEADING_LENGTH] or document[:HEADING_LENGTH]
