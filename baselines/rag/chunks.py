"""Documents -> chunks: by whole sentences, by headings and paragraphs, or by windows of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from baselines.rag.outline import Section, sections
from baselines.rag.token_places import TokenPlaces
from evals.engines.embed import Embedder
from evals.task.reading.documents import Document
from evals.task.reading.strict_json import SURROGATE

How = Literal["sentences", "structure", "tokens"]
Span = tuple[int, int]
Cut = Callable[[str, int, int], Iterator[Span]]

# To be raised where the same settings begin to give other chunks: indices that were built before are then told apart.
RULES = 1
# Characters that are tokenised at once: a longer document is read in parts, so that its tokens are never all in memory.
BLOCK = 250_000
PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
PATH_SIGN = " > "
# Tokens of a passage beside its title and its text: the colon and a space, and the marks at both ends.
MARKS = 4
LEAST_TITLE = 8


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


@dataclass(frozen=True)
class Chunking:
    """One way to cut documents; `size` and `overlap` are in tokens of the embedding model.

    - `sentences`: as many whole sentences as fit into `size`; the last one stands at the head of the next chunk too, where it
      fits there.
    - `structure`: as many whole paragraphs as fit.
    - `tokens`: windows of `size` tokens that share `overlap` of them, cut between words.

    No chunk goes beyond a heading; headings stand in titles and in no text. All other text is in some chunk. What is longer
    than `size` is cut by the next smaller thing: paragraphs, sentences, lines, windows of tokens.
    """

    how: How
    size: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.how not in ("sentences", "structure", "tokens"):
            raise ValueError(f"there is no chunking {self.how!r}")
        if self.size < 1 or not 0 <= self.overlap <= self.size // 2 or (self.overlap and self.how != "tokens"):
            raise ValueError(f"{self.name}: windows of tokens overlap by half their size at most, and nothing else by tokens")

    @property
    def name(self) -> str:
        return f"{self.how}_{self.size}" + (f"_{self.overlap}" if self.overlap else "")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"how": self.how, "size": self.size, "overlap": self.overlap, "rules": RULES}

    def split(self, document: Document, embedder: Embedder) -> Iterator[Chunk]:
        """The chunks of one document in order; none where it holds nothing but headings."""
        text = document.text
        titles: dict[tuple[str, ...], str] = {}
        position = 0
        for block in _blocks(text, sections(document)):
            places = TokenPlaces(text, block[0].start, block[-1].end, embedder)
            for section in block:
                if section.path not in titles:
                    titles[section.path] = _title(section.path, embedder.window - self.size - MARKS, embedder)
                for start, end in self._spans(places, section):
                    yield Chunk(document.id, titles[section.path], position, start, end, text[start:end])
                    position += 1

    def _spans(self, places: TokenPlaces, section: Section) -> Iterator[Span]:
        start, end = section.start, section.end
        if self.how == "tokens":
            found: Iterable[Span] = places.windows(start, end, self.size, self.overlap)
        elif self.how == "sentences":
            found = self._packed(places, self._units(places, (start, end), (_sentences, _lines), whole=False), again=True)
        else:
            cuts = (_paragraphs, _sentences, _lines)
            found = self._packed(places, self._units(places, (start, end), cuts, whole=False), again=False)
        for one in found:
            if (stripped := _stripped(places.text, *one))[0] < stripped[1]:
                yield stripped

    def _units(self, places: TokenPlaces, span: Span, cuts: Sequence[Cut], *, whole: bool = True) -> Iterator[Span]:
        """What is never cut, each of `size` tokens at most: the span itself where it may stay `whole` and fits, else its parts."""
        if whole and places.count(*span) <= self.size:
            yield span
        elif cuts:
            for part in cuts[0](places.text, *span):
                yield from self._units(places, part, cuts[1:])
        else:
            yield from places.windows(*span, self.size)

    def _packed(self, places: TokenPlaces, units: Iterable[Span], *, again: bool) -> Iterator[Span]:
        """As many units together as fit; `again`: the last of them begins the next chunk too, where it fits."""
        current: list[Span] = []
        for unit in units:
            if current and places.count(current[0][0], unit[1]) > self.size:
                yield current[0][0], current[-1][1]
                last = current[-1]
                fits = again and len(current) > 1 and places.count(last[0], unit[1]) <= self.size
                current = [last] if fits else []
            current.append(unit)
        if current:
            yield current[0][0], current[-1][1]


def around(chunks: Sequence[Chunk]) -> Chunk:
    """Neighbours of one document, in order, as one chunk under the first one's title and position.

    What stands between two of them was white space and headings: `text` has as many characters there, the headings as far as
    the later one's title tells them. Raises ValueError where there are none, or those of several documents.
    """
    if not chunks or len({one.document for one in chunks}) > 1:
        raise ValueError("neighbours are chunks of one document, one at least")
    whole, before = chunks[0], chunks[0].title
    for one in chunks[1:]:
        if one.end > whole.end:
            text = whole.text + _between(before, one, one.start - whole.end) + one.text[max(0, whole.end - one.start) :]
            whole = replace(whole, end=one.end, text=text)
        before = one.title
    return whole


def _between(before: str, chunk: Chunk, length: int) -> str:
    """So many characters before a chunk that follows one of the title `before`: headings that are new, or white space."""
    if length <= 1:
        return " " * length
    old, new = before.split(PATH_SIGN), chunk.title.split(PATH_SIGN)
    same = next((at for at, (left, right) in enumerate(zip(old, new, strict=False)) if left != right), min(len(old), len(new)))
    marks = [f"{'#' * min(at + 1, 6)} {new[at]}" for at in range(same, len(new))]
    for some in (marks, new[same:], new[-1:] if same < len(new) else []):
        text = "\n\n" + "\n\n".join(some) + "\n" if some else "\n\n"
        if len(text) <= length:
            return text.ljust(length, "\n")
    return "\n" * length


def _blocks(text: str, found: Iterable[Section]) -> Iterator[list[Section]]:
    """Sections that are tokenised together; one that is too long is several."""
    block: list[Section] = []
    for section in found:
        for part in _parts(text, section):
            if block and part.end - block[0].start > BLOCK:
                yield block
                block = []
            block.append(part)
    if block:
        yield block


def _parts(text: str, section: Section) -> Iterator[Section]:
    """A section in parts of at most BLOCK characters, cut between paragraphs, else lines, else words, else anywhere."""
    start = section.start
    while section.end - start > BLOCK:
        least, most = start + BLOCK // 2, start + BLOCK
        end = next((at for sign in ("\n\n", "\n", " ") if (at := text.rfind(sign, least, most)) >= 0), most)
        yield replace(section, start=start, end=end)
        start = end
    yield replace(section, start=start)


def _title(path: tuple[str, ...], tokens: int, embedder: Embedder) -> str:
    """The path as one line of at most so many tokens: of one that is too long the first and the last heading, then cut short."""
    tokens = max(tokens, LEAST_TITLE)
    for some in (path, (path[0], path[-1]) if len(path) > 2 else path):
        title = PATH_SIGN.join(some)
        places = TokenPlaces(title, 0, len(title), embedder)
        if len(places.places) <= tokens:
            return title
    return title[: places.windows(0, len(title), tokens)[0][1]].strip()


def _paragraphs(text: str, start: int, end: int) -> Iterator[Span]:
    for blank in PARAGRAPH_END.finditer(text, start, end):
        yield from _filled(text, start, blank.start())
        start = blank.end()
    yield from _filled(text, start, end)


def _sentences(text: str, start: int, end: int) -> Iterator[Span]:
    from sentencex import get_sentence_boundaries

    # The rules for English know full stops of other scripts too; a language cannot be told from a sentence.
    for one in get_sentence_boundaries("en", SURROGATE.sub("?", text[start:end])):
        yield from _filled(text, start + one["start_index"], start + one["end_index"])


def _lines(text: str, start: int, end: int) -> Iterator[Span]:
    while (at := text.find("\n", start, end)) >= 0:
        yield from _filled(text, start, at)
        start = at + 1
    yield from _filled(text, start, end)


def _filled(text: str, start: int, end: int) -> Iterator[Span]:
    """The part without the white space at its ends; nothing where it is nothing else."""
    start, end = _stripped(text, start, end)
    if start < end:
        yield start, end


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return (start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())) if part.strip() else (start, start)
