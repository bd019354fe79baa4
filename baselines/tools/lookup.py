"""The look-up over the documents that models may call, with whatever retriever the caller has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baselines.rag.retriever import Retriever


@dataclass(frozen=True)
class Lookup:
    """`find` gives the best passages for a query as text. `settings` say what it depends on: they key stored answers."""

    find: Callable[[str], str]
    settings: Mapping[str, Any] = field(default_factory=dict)


def lookup_by(retriever: Retriever, count: int = 1) -> Lookup:
    """The `count` best passages that a retriever finds, best first, a line each."""

    def find(query: str) -> str:
        (found,) = retriever.search([query], count)
        return "\n".join(one.chunk.passage for one in found)

    return Lookup(find, {"passages": count, "retriever": dict(retriever.settings)})
