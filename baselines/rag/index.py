"""Dense retrieval: unit vectors of the chunks in a flat FAISS index, so that search is exact cosine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from baselines.rag.chunks import Chunk
from evals.engines.embed import Embedder


class DenseIndex:
    def __init__(self, chunks: Sequence[Chunk], embedder: Embedder) -> None:
        self.chunks = tuple(chunks)
        self.embedder = embedder

    @cached_property
    def _index(self) -> Any:
        import faiss

        vectors = self.embedder.encode([chunk.passage for chunk in self.chunks], "embedding the documents")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index

    def search(self, questions: Sequence[str], count: int) -> list[list[Chunk]]:
        """The `count` nearest chunks of each question, best first."""
        vectors = self.embedder.encode(questions, "embedding the questions")
        _, found = self._index.search(vectors, min(count, len(self.chunks)))
        return [[self.chunks[index] for index in row if index >= 0] for row in found]
