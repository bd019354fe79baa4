"""Several rankings made one: reciprocal ranks added up by weight; and the head of a ranking put in order by a cross-encoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from typing import Any

from baselines.rag.chunks import Chunk
from baselines.rag.retriever import Found, Retriever
from evals.engines.rerank import Reranker

# How far down each ranking counts.
DEPTH = 100
# Cormack's 60 was chosen for dozens of systems. Of two, it lets a chunk that is 60th in both beat one that is first in either.
# On COVID-QA (1,380 questions, equal weights; BM25 alone has recall@5 of 0.723, vectors 0.507): 0.733 with 5, 0.672 with 60.
CONSTANT = 5.0
CONSTANTS = (2.0, CONSTANT, 20.0, 60.0)
# Questions by which weights are chosen: of 20, one fit in 20 lost more than 2 points of recall@5; more than 200 change nothing.
FEWEST, MOST = 50, 200
# Chunks of a ranking that its reciprocal rank looks at.
LOOKED_AT = 10

Relevant = Callable[[int, Chunk], bool]


@dataclass(frozen=True)
class Hybrid:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009), weighted.

    A chunk's score is the sum over the parts of weight / (constant + rank), with ranks from 1 over the first 100 of each part; a
    part that does not find it adds nothing. Only ranks count, so that scores of different kinds need no common scale. A part
    of weight 0 is not asked.
    """

    parts: Sequence[Retriever]
    weights: Sequence[float]
    constant: float = CONSTANT
    name: str = "hybrid"

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.parts) or min(self.weights, default=-1) < 0 or not any(self.weights):
            raise ValueError(f"{len(self.parts)} parts cannot have the weights {list(self.weights)}")

    @property
    def settings(self) -> Mapping[str, Any]:
        parts = [dict(part.settings) for part in self.parts]
        return {"retriever": self.name, "parts": parts, "weights": [*self.weights], "constant": self.constant, "depth": DEPTH}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        weighed = [(part, weight) for part, weight in zip(self.parts, self.weights, strict=True) if weight]
        rankings = [part.search(questions, max(count, DEPTH)) for part, _ in weighed]
        weights = [weight for _, weight in weighed]
        return [fused(each, weights, self.constant)[:count] for each in zip(*rankings, strict=True)]


def fused(rankings: Sequence[Sequence[Found]], weights: Sequence[float], constant: float) -> list[Found]:
    """All chunks of the rankings by weighted reciprocal rank, equals by document and place."""
    scores: defaultdict[tuple[str, int, int], float] = defaultdict(float)
    chunks: dict[tuple[str, int, int], Chunk] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, found in enumerate(ranking, start=1):
            place = (found.chunk.document, found.chunk.start, found.chunk.end)
            scores[place] += weight / (constant + rank)
            chunks.setdefault(place, found.chunk)
    return [Found(chunks[place], scores[place]) for place in sorted(scores, key=lambda one: (-scores[one], one))]


def fitted(parts: Sequence[Retriever], questions: Sequence[str], relevant: Relevant) -> Hybrid:
    """The fusion whose weights and constant rank the known passages of training questions highest.

    `relevant(number, chunk)` says whether a chunk answers the question of that number. Of a grid the highest mean reciprocal rank
    at 10 is taken, where it beats equal weights by more than the standard error of the paired difference; otherwise, and with
    fewer than 50 questions, the weights are equal. At most the first 200 questions count.

    On COVID-QA, fitted on 200 questions of one half of the articles and measured on the other (10 splits, both ways), recall@5 was
    1.3 to 2.2 points above the better part's.
    """
    equal = Hybrid(parts, [1 / len(parts)] * len(parts))
    asked = questions[:MOST]
    if len(asked) < FEWEST:
        return equal
    rankings = list(zip(*(part.search(asked, DEPTH) for part in parts), strict=True))
    judge = _remembered(relevant)
    reference = _reciprocal_ranks(rankings, equal, judge)
    best, most = equal, reference
    for weights, constant in product(_grid(len(parts)), CONSTANTS):
        one = Hybrid(parts, weights, constant)
        ranks = _reciprocal_ranks(rankings, one, judge)
        # Among equals, the nearest to equal weights comes first in the grid.
        if sum(ranks) > sum(most) + 1e-9:
            best, most = one, ranks
    return best if _clearly_higher(most, reference) else equal


def _grid(parts: int) -> list[list[float]]:
    """Weights that sum to 1, in tenths for two parts and in fifths for more, the most equal ones first."""
    steps = 10 if parts <= 2 else 5
    every = [each for each in product(range(steps + 1), repeat=parts) if sum(each) == steps]
    return [[one / steps for one in each] for each in sorted(every, key=lambda each: sum(one * one for one in each))]


def _remembered(relevant: Relevant) -> Relevant:
    """The same question and chunk return at every point of the grid, and comparing texts is slow."""
    known: dict[tuple[int, str, int, int], bool] = {}

    def judge(number: int, chunk: Chunk) -> bool:
        key = (number, chunk.document, chunk.start, chunk.end)
        if key not in known:
            known[key] = relevant(number, chunk)
        return known[key]

    return judge


def _reciprocal_ranks(rankings: Sequence[Sequence[Sequence[Found]]], hybrid: Hybrid, relevant: Relevant) -> list[float]:
    """1 / rank of each question's first relevant chunk; 0 where it is not among the first ten."""

    def ranks(number: int, each: Sequence[Sequence[Found]]) -> Iterator[float]:
        for rank, found in enumerate(fused(each, hybrid.weights, hybrid.constant)[:LOOKED_AT], start=1):
            if relevant(number, found.chunk):
                yield 1 / rank

    return [next(ranks(number, each), 0.0) for number, each in enumerate(rankings)]


def _clearly_higher(some: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether the mean of the paired differences is above its standard error."""
    gains = [one - other for one, other in zip(some, reference, strict=True)]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return mean > sqrt(variance / len(gains))


@dataclass(frozen=True)
class Reranked:
    """The first `depth` of a retriever's ranking in the order of a cross-encoder, which reads question and passage together
    (Nogueira and Cho 2019, 1901.04085). What comes after them keeps its place; equals keep the order that they had."""

    base: Retriever
    reranker: Reranker
    depth: int = 20

    @property
    def name(self) -> str:
        return f"{self.base.name}_reranked"

    @property
    def settings(self) -> Mapping[str, Any]:
        reranker = self.reranker.fingerprint
        return {"retriever": "reranked", "base": dict(self.base.settings), "reranker": reranker, "depth": self.depth}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        rankings = self.base.search(questions, max(count, self.depth))
        heads = [ranking[: self.depth] for ranking in rankings]
        pairs = [(question, found.chunk.passage) for question, head in zip(questions, heads, strict=True) for found in head]
        scores = iter(self.reranker.score(pairs).tolist())
        reordered = []
        for ranking, head in zip(rankings, heads, strict=True):
            best = sorted((Found(found.chunk, next(scores)) for found in head), key=lambda found: -found.score)
            # Below the last that was read, so that scores fall along the whole list.
            rest = [Found(found.chunk, best[-1].score - place) for place, found in enumerate(ranking[self.depth :], start=1)]
            reordered.append([*best, *rest][:count])
        return reordered
