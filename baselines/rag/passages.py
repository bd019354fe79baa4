"""What is found -> what is shown: chunks with their neighbours, those that overlap joined, the same text once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from baselines.rag.chunks import Chunk
from baselines.rag.retriever import Found
from evals.metrics.text import fold


@dataclass(frozen=True)
class Passage:
    """A part of a document as a model reads it, with the score of the best chunk that was found in it."""

    chunk: Chunk
    score: float

    @property
    def text(self) -> str:
        return self.chunk.passage

    def told(self) -> dict[str, Any]:
        """For the record: where it stands."""
        place = {name: getattr(self.chunk, name) for name in ("document", "position", "start", "end")}
        return {**place, "score": round(float(self.score), 6)}


def shown_passages(found: Sequence[Found], around: Callable[[Chunk, int], Chunk] | None, reach: int) -> list[Passage]:
    """The passages, the best first. Chunks of one document that overlap are one passage, at the rank of its best one."""
    passages: list[Passage] = []
    for one in found:
        chunk = around(one.chunk, reach) if around is not None and reach > 0 else one.chunk
        passages = _with(passages, Passage(chunk, one.score))
    once: dict[str, Passage] = {}
    for passage in passages:
        once.setdefault(fold(passage.text), passage)
    return list(once.values())


def _with(passages: Sequence[Passage], new: Passage) -> list[Passage]:
    """One more passage, the worst so far. Joined with those that it overlaps it has the place, score and title of the best."""
    touching = [at for at, other in enumerate(passages) if _overlap(other.chunk, new.chunk)]
    if not touching:
        return [*passages, new]
    first = passages[touching[0]]
    chunk = new.chunk
    for at in touching:
        chunk = _joined(chunk, passages[at].chunk)
    best = Passage(replace(chunk, title=first.chunk.title), first.score)
    return [best if at == touching[0] else one for at, one in enumerate(passages) if at not in touching[1:]]


def _overlap(left: Chunk, right: Chunk) -> bool:
    """Whether two chunks share characters of one document, and say so truly: the text of each is its part, literally."""
    if left.document != right.document or not all(0 < len(one.text) == one.end - one.start for one in (left, right)):
        return False
    left, right = sorted((left, right), key=lambda one: one.start)
    shared = min(left.end, right.end) - right.start
    return shared > 0 and left.text[right.start - left.start :][:shared] == right.text[:shared]


def _joined(one: Chunk, other: Chunk) -> Chunk:
    """Two chunks that overlap as one; its position is that of the first."""
    left, right = sorted((one, other), key=lambda chunk: chunk.start)
    if right.end <= left.end:
        return left
    return replace(left, end=right.end, text=left.text + right.text[left.end - right.start :])
