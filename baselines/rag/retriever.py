"""What every way to find passages has in common: keywords, vectors, a fusion of both, a reranker, a vector database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from baselines.rag.chunks import Chunk


@dataclass(frozen=True)
class Found:
    """A chunk and its score: higher is better, and only comparable within one retriever's answer to one question."""

    chunk: Chunk
    score: float


class Retriever(Protocol):
    """Finds passages. `settings` is everything that its answers depend on, as JSON: it keys stored scores."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        """At most `count` different chunks for each question, the best first; equals in the order of the documents."""
        ...
