"""Passages that a vector database keeps already: the small protocol to it, and the retriever over any that speaks it.

Nothing is copied and nothing is written: questions go out as vectors, passages come back. So the vectors there must be of our
embedding model, which is tried on a sample before anything is asked.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from baselines.rag.chunks import Chunk
from baselines.rag.questions import say_cut
from baselines.rag.retriever import Found
from evals.engines.embed import Embedder
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Questions in one message to the database.
BATCH = 64
# Points asked for in place of those that hold no passage, or one that is there twice: four times as many, up to this number.
MOST_ASKED = 1024
# A longer text is no passage: it would not fit into a prompt.
MAX_CHARACTERS = 100_000
MAX_NAME = 500
# Questions by which an exchange with the database is timed, and the passages that each asks for.
TIMED, TIMED_COUNT = 8, 10
# Cosines of a stored vector and our own of the same text: one model's are 1 but for rounding (float16: 0.9999). Below the first
# it was another model or another text; between both something was added to the texts, such as "passage: ".
OTHER_MODEL, SAME_MODEL = 0.9, 0.99


@dataclass(frozen=True)
class Stored:
    """A point of the database. `text` is empty where it holds none, `document` and `title` where it does not say."""

    id: str
    text: str
    document: str = ""
    title: str = ""


class VectorStore(Protocol):
    """What a database must do to be searched: say how many points it has, show some, and find the nearest.

    `name` is the retriever's in reports, `collection` the collection's or table's, `where` stands before an error's words.
    `settings` is what else its answers depend on, as JSON, as far as that can be seen from outside.
    """

    @property
    def name(self) -> str: ...
    @property
    def collection(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def count(self) -> int: ...
    def sample(self) -> Sequence[tuple[Stored, NDArray[np.float32]]]:
        """Some dozen points and their vectors (d), from all over the collection, and the same ones as long as it is the same."""
        ...

    def nearest(self, vectors: NDArray[np.float32], count: int) -> Sequence[Sequence[tuple[Stored, float]]]:
        """For each unit vector (n, d) the `count` nearest points and their scores, the nearest first: fewer only where
        there are no more."""
        ...


class StoreRetriever:
    """Finds passages in a vector database. Points without a usable text are passed over, and their number is told.

    A database does not say where in its document a passage stood: `position`, made from the point's id, only tells it from the
    others, and `start` and `end` are both the same number, as of an empty span, so that nobody joins it to another.
    """

    def __init__(self, store: VectorStore, embedder: Embedder, on_event: OnEvent = ignore) -> None:
        self.store = store
        self.embedder = embedder
        self.on_event = on_event
        self._passed_over: set[str] = set()
        self._exchange_seconds = 0.0

    @property
    def name(self) -> str:
        return self.store.name

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """As they are when they are first asked for: a collection that changes while a run lasts is not noticed."""
        return {**self.store.settings, "points": self.store.count(), "embeddings": self.embedder.fingerprint}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        """Raises AdvisorError where the database does not answer."""
        if count < 1 or not questions:
            return [[] for _ in questions]
        say_cut(questions, self.embedder, self.on_event)
        vectors = self.embedder.encode(questions, "embedding the questions")
        known = len(self._passed_over)
        found = [one for start in range(0, len(vectors), BATCH) for one in self._found(vectors[start : start + BATCH], count)]
        if len(self._passed_over) > known:
            what = f"{self.name}: {len(self._passed_over):,} points that were found hold no usable text: passed over"
            self.on_event(Note(what, "warning"))
        return found

    def seconds_each(self, questions: Sequence[str]) -> float:
        """What one question costs, in seconds: to embed it, and an exchange with the database, which is timed once, as the
        median of up to `TIMED` questions that are asked one by one."""
        if not questions:
            return 0.0
        if not self._exchange_seconds:
            vectors = self.embedder.encode(questions[:TIMED])
            self._exchange_seconds = median(self._timed(vectors[at : at + 1]) for at in range(len(vectors)))
        return self.embedder.seconds_each(questions) + self._exchange_seconds

    def _timed(self, vector: NDArray[np.float32]) -> float:
        started = time.perf_counter()
        self.store.nearest(vector, TIMED_COUNT)
        return time.perf_counter() - started

    def _found(self, vectors: NDArray[np.float32], count: int) -> list[list[Found]]:
        """Asks again for more where points had to be left out."""
        rows: list[list[Found]] = [[] for _ in vectors]
        short, asked = list(range(len(vectors))), count
        while short:
            answers = dict(zip(short, self.store.nearest(vectors[short], asked), strict=True))
            for at, hits in answers.items():
                rows[at] = self._passages(hits)[:count]
            short = [at for at, hits in answers.items() if len(rows[at]) < count and len(hits) >= asked]
            if asked >= MOST_ASKED:
                break
            asked = min(4 * asked, MOST_ASKED)
        return rows

    def _passages(self, hits: Sequence[tuple[Stored, float]]) -> list[Found]:
        """Each passage of a document once, with its best score."""
        different: dict[tuple[str, str], Found] = {}
        for stored, score in hits:
            if not usable(stored.text) or not math.isfinite(score):
                self._passed_over.add(stored.id)
                continue
            one = Found(chunk_of(stored, self.store.collection), score)
            best = different.get((stored.document, stored.text))
            if best is None or _order(one) < _order(best):
                different[stored.document, stored.text] = one
        return sorted(different.values(), key=_order)


def _order(one: Found) -> tuple[float, str, int]:
    return -one.score, one.chunk.document, one.chunk.position


def usable(text: str) -> bool:
    return bool(text.strip()) and len(text) <= MAX_CHARACTERS


def chunk_of(stored: Stored, collection: str) -> Chunk:
    """Where there is no title, the document's name stands for it, and where there is no document, the collection's."""
    known = stored.document if len(stored.document) <= MAX_NAME else ""
    title = " ".join(stored.title.split())[:MAX_NAME] or known.rsplit("/", 1)[-1].rsplit(".", 1)[0] or collection
    number = _number(stored.id)
    return Chunk(known or f"{collection}/{stored.id}", title, number, number, number, stored.text)


def _number(key: str) -> int:
    """The id itself where it is a number that every reader of JSON keeps exactly, else 52 bits of its hash."""
    if key.isascii() and key.isdecimal() and len(key) <= 15:
        return int(key)
    return int(hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:13], 16)


def open_store(store: VectorStore, embedder: Embedder, on_event: OnEvent = ignore) -> StoreRetriever:
    """The retriever over a database whose vectors are those of our embedding model.

    Raises AdvisorError where there is nothing in it, or where its vectors have another size or were made by another model:
    the median cosine of some stored vectors and our own of their texts is under 0.9. From 0.9 to 0.99 it warns.
    """
    points = store.count()
    sample = [(stored, vector) for stored, vector in store.sample() if usable(stored.text)]
    if not points or not sample:
        raise AdvisorError(
            "there is no passage with a vector in it", where=store.where, do="fill it, or name the collection that is filled."
        )
    likeness = _likeness(sample, store, embedder)
    compared = f"the median cosine of {len(sample)} stored vectors and our own of the same texts is {likeness:.3f}"
    if likeness < OTHER_MODEL:
        raise AdvisorError(
            f"the vectors there were made by another embedding model, or from other texts: {compared}",
            where=store.where,
            do=f"name the model that the collection was filled with in `embeddings: {{model_name_or_path: …}}` (now "
            f"{embedder.name}), and as the passage's text what was embedded.",
        )
    if likeness < SAME_MODEL:
        what = (
            f"{compared}: the model seems to be the same, and something was added to the texts when the collection was filled"
        )
        on_event(Note(f"{store.name}: {what}", "warning"))
    else:
        on_event(Note(f"{store.name}: {points:,} points in {store.collection}; {compared}"))
    return StoreRetriever(store, embedder, on_event)


def _likeness(sample: Sequence[tuple[Stored, NDArray[np.float32]]], store: VectorStore, embedder: Embedder) -> float:
    """The median cosine of stored vectors and our own: of the texts alone or with their titles, whichever is nearer."""
    import numpy as np

    sizes = sorted({len(vector) for _, vector in sample})
    if sizes != [embedder.dimension]:
        raise AdvisorError(
            f"the vectors there have {' or '.join(f'{one:,}' for one in sizes)} numbers, and those of the embedding model "
            f"{embedder.name} have {embedder.dimension:,}",
            where=store.where,
            do="name the model that the collection was filled with in `embeddings: {model_name_or_path: …}`.",
        )
    vectors = np.stack([vector for _, vector in sample]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    plain = [stored.text for stored, _ in sample]
    titled = [f"{stored.title}: {stored.text}" if stored.title else stored.text for stored, _ in sample]
    medians = [float(np.median(np.sum(vectors * embedder.encode(texts), axis=1))) for texts in (plain, titled)]
    return max(medians)
