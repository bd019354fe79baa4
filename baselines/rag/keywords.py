"""Keyword retrieval: BM25 (Robertson and Zaragoza 2009) over the words of an index's passages, by bm25s (Lù 2024, 2407.03618)."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from baselines.rag.chunks import Chunk
from baselines.rag.retriever import Found
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker, ignore, waiting
from evals.metrics.text import UNSPACED, fold
from evals.records import content_hash, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Goes up whenever words are found in another way: what was built from the old ones is built again.
WORDS_VERSION = 1
# Lucene's defaults: how soon the repetition of a word stops to count, and how much a long passage is discounted.
K1, B = 1.2, 0.75
METHOD = "lucene"

# More scripts in which a run of signs is no word: Thai, Lao, Myanmar, Khmer, rare Han. Korean puts spaces between words, but
# joins particles to them, so that only parts of its words come back in a question.
UNDIVIDED = UNSPACED + "\u3005\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uac00-\ud7a3\U00020000-\U0003ffff"
# Vowel points of Hebrew and Arabic, mostly left out in writing, and the stroke that only stretches a word.
_POINTS = [code for code in (*range(0x591, 0x5C8), *range(0x64B, 0x660), 0x670) if unicodedata.category(chr(code)) == "Mn"]
# Hyphens and dashes that NFKC leaves as they are; signs that are not seen; and the one that stands for a space.
SIGNS = {
    **dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2212], "-"),
    **dict.fromkeys([0xAD, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x640, *_POINTS], ""),
    0x200B: " ",
}
# A hyphen is left out of a whole word, so that "IL-6" is "IL6", but not between two numbers.
HYPHEN = re.compile(r"(?<!\d)-|-(?!\d)")
# A sequence of bases or an encoded file is one "word"; nobody asks for more of it than this.
LONGEST = 64

# Frequent in English and rare in other languages: together about a fifth of English text.
ENGLISH = frozenset(["the", "of", "and", "to", "that", "with", "this", "are", "from", "which", "were", "been", "not"])
ENGLISH_SHARE = 0.1
SAMPLED = 256


@dataclass(frozen=True)
class _Patterns:
    """`surface` finds a word with all that is joined to it, or a run of an undivided script (two groups); `part` the parts of
    the one, `sign` the signs of the other, each with its marks."""

    surface: re.Pattern[str]
    part: re.Pattern[str]
    sign: re.Pattern[str]


@cache
def _patterns(ascii_only: bool = False) -> _Patterns:
    """Vowel signs and accents that are characters of their own belong to the word, though `\\w` leaves them out: without them,
    Hindi and Tamil would be read as single consonants. A class of all scripts is slow: ASCII, which is most text, has its own.
    """
    every = (chr(code) for code in range(0x300, 0x20000))
    marks = "\u0300" if ascii_only else "".join(sign for sign in every if unicodedata.category(sign).startswith("M"))
    letter = "[a-z0-9]" if ascii_only else rf"[^\W_{UNDIVIDED}]"
    part = rf"{letter}+(?:[{marks}]+{letter}*)*"
    joint = r"(?:[-._:/@&]|(?<=\d),(?=\d))"
    possessive = rf"(?:['’]s(?!{letter}))?"
    sign = rf"[{UNDIVIDED}][{marks}]*"
    surface = rf"({part}(?:{joint}{part})*[+#]*){possessive}|((?:{sign})+)"
    return _Patterns(re.compile(surface), re.compile(part), re.compile(sign))


class Words:
    """Text -> the words that it is searched by: case-folded, of any script.

    What is joined by signs ("DC-SIGNR", "p-198A", "06:40", "C++") is found both whole and by its parts. Chinese, Japanese,
    Korean, Thai and their like are read as single signs and pairs of them. English words are stemmed (Porter 2) where asked.
    """

    def __init__(self, *, english: bool) -> None:
        self.english = english
        self._known: dict[str, tuple[str, ...]] = {}

    @cached_property
    def _stem(self) -> Any:
        import Stemmer

        return Stemmer.Stemmer("english").stemWord

    def __call__(self, text: str) -> list[str]:
        found: list[str] = []
        folded = fold(text)
        plain = folded.isascii()
        for word, signs in _patterns(plain).surface.findall(folded if plain else folded.translate(SIGNS)):
            found += self._known.get(word or signs) or self._remember(word, signs)
        return found

    def _remember(self, word: str, signs: str) -> tuple[str, ...]:
        found = self._known[word or signs] = tuple(self._of_word(word) if word else self._of_signs(signs))
        return found

    @staticmethod
    def _of_signs(run: str) -> list[str]:
        single = _patterns().sign.findall(run)
        return single + [first + second for first, second in pairwise(single)]

    def _of_word(self, word: str) -> list[str]:
        parts = _patterns().part.findall(word)
        found = [self._stem(part) if self.english else part for part in (part[:LONGEST] for part in parts)]
        if parts != [word] and len(word) <= LONGEST:
            initials = len(parts) > 1 and all(len(part) == 1 and part.isalpha() for part in parts)
            found.append("".join(parts) if initials else HYPHEN.sub("", word))
        return found


def is_english(texts: Sequence[str]) -> bool:
    """Whether frequent English words are at least a tenth of all words: a fifth is usual."""
    words = [word for text in texts for word in fold(text).split()]
    return bool(words) and sum(word in ENGLISH for word in words) >= ENGLISH_SHARE * len(words)


class Passages(Protocol):
    """What is needed of an index: its chunks, the folder where it lies, and a hash of what it holds."""

    @property
    def folder(self) -> Path: ...
    @property
    def hash(self) -> str: ...
    @property
    def chunks(self) -> Sequence[Chunk]: ...


class Keywords:
    """Chunks by the words that they share with a question, rare words first in weight. Exact: every posting is read.

    The weights are BM25's as Lucene computes them, and they depend on how often a word occurs in all chunks together: when any
    document changes, they are computed again from the chunks, which is much quicker than embedding them (a million chunks in
    some minutes). They are kept beside the index under a hash of it, as plain arrays and JSON, and are read through the
    memory map. A question of which no word is known finds nothing.
    """

    name = "bm25"

    def __init__(self, index: Passages, on_event: OnEvent = ignore) -> None:
        self.index = index
        self.on_event = on_event

    @property
    def settings(self) -> Mapping[str, Any]:
        words = {"version": WORDS_VERSION, "stemmed": self._words.english}
        return {"retriever": self.name, "method": METHOD, "k1": K1, "b": B, "words": words, "index": self.index.hash}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        return [self._found(question, count) for question in questions]

    def _found(self, question: str, count: int) -> list[Found]:
        bm25 = self._bm25
        known = [] if bm25 is None or count < 1 else bm25.get_tokens_ids(self._words(question))
        if not known:
            return []
        rows, scores = best_rows(bm25.get_scores_from_ids(known), count)
        chunks = self.index.chunks
        return [Found(chunks[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]

    @cached_property
    def _words(self) -> Words:
        chunks = self.index.chunks
        step = max(1, len(chunks) // SAMPLED)
        return Words(english=is_english([chunks[at].text for at in range(0, len(chunks), step)]))

    @cached_property
    def _bm25(self) -> Any:
        """bm25s' own object, read through the memory map; None where the chunks hold no word."""
        home = self.index.folder / "bm25"
        key = content_hash([self.index.hash, WORDS_VERSION, self._words.english, METHOD, K1, B])[:16]
        if not len(self.index.chunks):
            return None
        found = _opened(home / key, key)
        if found is None:
            if (home / key).exists():
                self.on_event(Note(f"{home / key}: the keyword index is damaged; it is built again.", "warning"))
            built = self._built()
            if built is None:
                return None
            _keep(built, home, key)
            found = _opened(home / key, key)
        if found is None:
            raise AdvisorError(
                "the keyword index cannot be read back",
                where=str(home / key),
                do="check the disk, delete the folder, try again.",
            )
        return found

    def _built(self) -> Any:
        """BM25's weights of all words in all chunks; None where there is no word. Texts are read one by one."""
        import bm25s

        words = Words(english=self._words.english)
        vocabulary: dict[str, int] = {}
        rows = _Rows()
        ticker = Ticker(self.on_event, "reading the words of the documents", len(self.index.chunks), "chunks")
        for chunk in self.index.chunks:
            rows.append([vocabulary.setdefault(word, len(vocabulary)) for word in words(chunk.passage)])
            ticker.advance()
        if not vocabulary:
            return None
        # scipy's sorting takes a third of the memory of numpy's.
        bm25 = bm25s.BM25(k1=K1, b=B, method=METHOD, csc_backend="scipy")
        corpus = bm25s.tokenization.Tokenized(ids=rows, vocab=vocabulary)
        with waiting(self.on_event, "weighing the words of the documents"):
            bm25.index(corpus, create_empty_token=False, show_progress=False)
        return bm25


class _Rows:
    """The numbers of the words of each chunk, 4 bytes a word. bm25s goes through them three times."""

    def __init__(self) -> None:
        self._numbers = array("i")
        self._ends = array("q", [0])

    def append(self, numbers: Sequence[int]) -> None:
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[array[int]]:
        for at in range(len(self)):
            yield self._numbers[self._ends[at] : self._ends[at + 1]]


def best_rows(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(rows, scores) of the `count` highest scores above 0, the best first, equals by row."""
    import numpy as np

    rows = np.flatnonzero(scores > 0)
    kept = scores[rows]
    if len(rows) > count:
        # All that equal the last one stay until the order decides, or which of them is found would be chance.
        near = kept >= np.partition(kept, len(kept) - count)[len(kept) - count]
        rows, kept = rows[near], kept[near]
    order = np.lexsort((rows, -kept))[:count]
    return rows[order], kept[order]


def _opened(folder: Path, key: str) -> Any:
    """What `_keep` left there; None where it is not whole. Nothing is unpickled."""
    import bm25s
    import numpy as np

    try:
        record = read_json(folder / "manifest.json")
        if record["key"] != key or record["sizes"] != _sizes(folder):
            return None
        found = bm25s.BM25.load(folder, mmap=True, allow_pickle=False, show_progress=False)
    except (AdvisorError, OSError, ValueError, KeyError, TypeError):
        return None
    # Plain arrays over the same map: numpy's own kind is slow to slice.
    found.scores = {name: np.asarray(value) if hasattr(value, "shape") else value for name, value in found.scores.items()}
    return found


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def _keep(bm25: Any, home: Path, key: str) -> None:
    """Write it whole or not at all, and delete what stands for older documents; whoever maps those still reads them."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-", ignore_cleanup_errors=True) as name:
            made = Path(name) / key
            bm25.save(made, allow_pickle=False, show_progress=False)
            for path in made.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            write_json(made / "manifest.json", {"key": key, "sizes": _sizes(made)})
            _replace(made, home / key)
        for path in home.iterdir():
            if path.name != key and not _in_work(path):
                shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise AdvisorError(
            f"the keyword index cannot be written: {error.strerror or error}",
            where=str(home),
            do="free some disk space, or make the folder writable, then run the same command again.",
        ) from error


def _replace(made: Path, target: Path) -> None:
    if target.exists() and _opened(target, target.name) is None:
        shutil.rmtree(target, ignore_errors=True)
    try:
        os.replace(made, target)
    except OSError:
        # Another process was quicker with the same.
        if _opened(target, target.name) is None:
            raise


def _in_work(path: Path) -> bool:
    """Whether another process may be writing there; what a killed one left is an hour old at some time."""
    return path.name.startswith(".new-") and time.time() - path.stat().st_mtime < 3600
