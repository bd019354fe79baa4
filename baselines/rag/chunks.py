"""Documents -> chunks: whole sentences packed up to a size, one sentence of overlap, under the document's title."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evals.task.reading.documents import Document

CHUNK_WORDS = 60
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[A-Z0-9ÄÖÅÆØÉ])")
HEADING = re.compile(r"^#{1,6}\s+")


@dataclass(frozen=True)
class Chunk:
    """Part of a document: `text` is its characters from `start` to `end`, literally; `position` its number among the document's
    chunks, from 0, so that its neighbours are those of `position - 1` and `position + 1`. `title` says where it stands: the
    document's first heading or name, and the headings over it."""

    document: str
    title: str
    position: int
    start: int
    end: int
    text: str

    @property
    def passage(self) -> str:
        """What is embedded and what the model reads."""
        return f"{self.title}: {self.text}"


def split_document(document: Document, words: int = CHUNK_WORDS) -> list[Chunk]:
    lines = document.text.splitlines()
    headings = [HEADING.sub("", line).strip() for line in lines if HEADING.match(line)]
    title = headings[0] if headings else document.id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    body = "\n".join("" if HEADING.match(line) else line for line in lines)
    sentences = [
        piece
        for paragraph in re.split(r"\n\s*\n", body)
        for sentence in SENTENCE_END.split(" ".join(paragraph.split()))
        for piece in _pieces(sentence, words)
    ]
    chunks: list[Chunk] = []
    current: list[str] = []
    for sentence in sentences:
        if current and sum(len(one.split()) for one in current) + len(sentence.split()) > words:
            chunks.append(Chunk(document.id, title, len(chunks), 0, 0, " ".join(current)))
            last = current[-1].split()
            current = current[-1:] if len(current) > 1 and len(last) + len(sentence.split()) <= words else []
        current.append(sentence)
    if current:
        chunks.append(Chunk(document.id, title, len(chunks), 0, 0, " ".join(current)))
    return chunks


def _pieces(sentence: str, words: int) -> list[str]:
    """A sentence longer than a chunk is cut at the size."""
    every = sentence.split()
    return [" ".join(every[start : start + words]) for start in range(0, len(every), words)]


def split_documents(documents: Sequence[Document], words: int = CHUNK_WORDS) -> list[Chunk]:
    return [chunk for document in documents for chunk in split_document(document, words)]


def covers(chunk: Chunk, gold: str) -> bool:
    """Whether the chunk covers at least half of a gold passage's characters (longest common run; white space folded)."""
    from difflib import SequenceMatcher

    passage, text = " ".join(gold.split()), " ".join(chunk.text.split())
    if not passage:
        return False
    if passage in text:
        return True
    run = SequenceMatcher(None, text, passage, autojunk=False).find_longest_match().size
    return 2 * run >= len(passage)
