"""The look-up over the documents that models may call, with whatever retriever the caller has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baselines.rag.chunks import CHUNK_WORDS
from baselines.rag.index import DenseIndex
from evals.records import content_hash


@dataclass(frozen=True)
class Lookup:
    """`find` gives the best passages for a query as text. `settings` say what it depends on: they key stored answers."""

    find: Callable[[str], str]
    settings: Mapping[str, Any] = field(default_factory=dict)


def dense_lookup(index: DenseIndex, count: int = 1) -> Lookup:
    """The `count` nearest passages of an index, best first, a line each."""

    def find(query: str) -> str:
        (chunks,) = index.search([query], count)
        return "\n".join(chunk.passage for chunk in chunks)

    settings = {
        "passages": count,
        "chunk_words": CHUNK_WORDS,
        "chunks": content_hash(index.chunks),
        "embeddings": index.embedder.fingerprint,
    }
    return Lookup(find, settings)
