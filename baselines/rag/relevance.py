"""Retrieval measured apart from answering: which chunks are relevant for a question, and how well a retriever ranks them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from statistics import median

from baselines.rag.chunks import Chunk
from baselines.rag.overlap import covers_half, folded, share_covered
from baselines.rag.retriever import Retriever
from evals.events import Note, OnEvent, ignore
from evals.metrics.text import fold, tokens
from evals.records import content_hash
from evals.statistics.paired import mean_interval
from evals.task.example import Example
from evals.task.reading.documents import Document

# A ranking is looked at so far down; recall is told at each of these ranks.
DEPTH = 20
RECALL_AT = (1, 3, 5, 10, DEPTH)
RANKED_AT = 10
# What a model is shown is about so much: the depth of context precision and context recall.
SHOWN = 5
RECALL = f"recall@{SHOWN}"
NDCG = f"ndcg@{RANKED_AT}"
CONTEXT_RECALL = f"context_recall@{SHOWN}"
# From this share of the questions on, chunks that are too short to hit are told of.
OUT_OF_REACH = 0.05

# Questions that are asked one at a time, for the seconds that one costs.
TIMED = 50
# Chunks whose folded text is remembered: they come again with the next question and the next retriever.
REMEMBERED = 50_000

# Answers that every document holds, in a few languages.
COMMONPLACE = frozenset(
    [
        "yes",
        "no",
        "true",
        "false",
        "none",
        "maybe",
        "unknown",
        "both",
        "neither",
        "ja",
        "nein",
        "oui",
        "non",
        "si",
        "sí",
        "да",
        "нет",
    ]
)
FEWEST_SIGNS, FEWEST_DIGITS = 3, 2
# What can be measured by, in words.
GOLD, ANSWER = "gold passage", "answer"

# Each timed visit puts another number of spaces behind its questions: to a tokeniser they are the same, and to whoever
# remembers what it was asked before (an embedder its vectors) they are new.
_VISITS = count(1)


class Truth:
    """What is relevant for each question, prepared once for all retrievers.

    A chunk hits a gold passage when it covers at least half of its characters in one run, white space folded; chunks that
    cover half only together do not hit (`context_recall` counts them). Where no gold passage is known, a chunk hits when its
    text (not its title) contains the normalised answer. Questions that neither can tell about are left out and counted in
    `unmeasured`, by reason: labels, JSON, yes and no, numbers of one digit, other answers of under three characters; and with
    `documents` given, answers that stand in none of them, since no retriever could find those.

    `questions`, `ids`, `groups` are those of the examples that can be measured, in their order; `number` below counts them.
    """

    def __init__(self, examples: Sequence[Example], *, output_type: str = "text", documents: Iterable[Document] = ()) -> None:
        golds = [tuple(filter(None, map(folded, example.gold_passages))) for example in examples]
        reasons = [
            "" if gold else _not_findable(example.target, output_type) for example, gold in zip(examples, golds, strict=True)
        ]
        sought = [at for at, gold in enumerate(golds) if not gold and not reasons[at]]
        absent = _absent({_phrase(examples[at].target) for at in sought}, documents) if sought else frozenset()
        for at in sought:
            if _phrase(examples[at].target) in absent:
                reasons[at] = "the answer stands in no document"
        kept = [at for at, reason in enumerate(reasons) if not reason]
        self.examples = tuple(examples[at] for at in kept)
        self.unmeasured: Mapping[str, int] = dict(Counter(filter(None, reasons)))
        self._golds = [golds[at] for at in kept]
        self._phrases = ["" if golds[at] else _phrase(examples[at].target) for at in kept]
        self._folded = lru_cache(REMEMBERED)(folded)
        self._normal = lru_cache(REMEMBERED)(_phrase)

    @property
    def questions(self) -> list[str]:
        return [example.text for example in self.examples]

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    @property
    def groups(self) -> list[str | None]:
        return [example.group for example in self.examples]

    @property
    def kind(self) -> str:
        """What chunks are judged by: gold passages, answers, or either."""
        kinds = dict.fromkeys(GOLD if gold else ANSWER for gold in self._golds)
        return " or ".join(sorted(kinds, reverse=True))

    def known(self, number: int) -> int:
        """How many things there are to be found: the gold passages, or the answer."""
        return len(self._golds[number]) or 1

    def found(self, number: int, chunk: Chunk) -> frozenset[int]:
        """Which of them this chunk hits."""
        if not self._golds[number]:
            return frozenset([0] if self._phrases[number] in self._normal(chunk.text) else [])
        text = self._folded(chunk.text)
        return frozenset(at for at, gold in enumerate(self._golds[number]) if covers_half(text, gold))

    def longer(self, characters: float) -> int:
        """Questions all of whose gold passages are longer than this."""
        return sum(bool(golds) and min(map(len, golds)) > characters for golds in self._golds)

    def hits(self, number: int, chunk: Chunk) -> bool:
        return bool(self.found(number, chunk))

    def covered(self, number: int, chunks: Sequence[Chunk]) -> float | None:
        """Share of the characters of its gold passages that these chunks cover together, the mean over the passages; None
        where there are none."""
        golds = self._golds[number]
        texts = [self._folded(chunk.text) for chunk in chunks]
        return sum(share_covered(texts, gold) for gold in golds) / len(golds) if golds else None


@dataclass(frozen=True)
class Retrieval:
    """What a retriever finds for n questions; `unmeasured` counts the others by reason, and `kind` says what hits were judged by.

    `figures` are means with their 95% intervals (value, low, high), clustered by the questions' groups: `recall@k`, the share
    of questions with a hit among the first k (also called success@k or hit rate: one hit is enough); `mrr@10`; `ndcg@10`;
    `context_precision@5`; and over gold passages `context_recall@5`, the share of their characters that the first 5 chunks
    cover together. `seconds` is the median for one question asked alone, and `ranks` the rank of the first hit by
    question id, 0 where the first 20 chunks have none. `settings` is a hash of the retriever's. `out_of_reach` counts questions
    half of whose gold passages, the shortest, is longer than the median chunk that was found: a matter of the cut, which no
    ranking can mend.
    """

    name: str
    settings: str
    kind: str
    n: int
    unmeasured: Mapping[str, int]
    figures: Mapping[str, tuple[float, float, float]]
    seconds: float
    ranks: Mapping[str, int]
    out_of_reach: int = 0

    def __post_init__(self) -> None:
        # From a record they come as lists.
        figures = {name: (float(value), float(low), float(high)) for name, (value, low, high) in self.figures.items()}
        object.__setattr__(self, "figures", figures)

    @property
    def recall(self) -> float:
        """recall@5; NaN where nothing could be measured."""
        return self.figures[RECALL][0] if self.n else math.nan

    @property
    def ranking(self) -> float:
        """What retrievers are compared by: nDCG@10, 0 where nothing could be measured."""
        return self.figures[NDCG][0] if self.n else 0.0

    @property
    def milliseconds(self) -> float:
        return 1000 * self.seconds

    @property
    def hits(self) -> list[float]:
        """1 or 0 for each question: a hit among the first 5, for paired comparisons on the same questions."""
        return [float(hit) for hit in self.found(SHOWN).values()]

    def found(self, depth: int) -> dict[str, bool]:
        """By question id: whether the first `depth` chunks (20 at most) hold a hit."""
        return {name: 0 < rank <= depth for name, rank in self.ranks.items()}

    def sentence(self) -> str:
        left_out = "; ".join(f"{reason}: {times}" for reason, times in self.unmeasured.items())
        if not self.n:
            return f"Retrieval by {self.name} cannot be measured apart from answering ({left_out or 'no questions'})."
        value, low, high = self.figures[RECALL]
        told = (
            f"Retrieval by {self.name}: {RECALL} is {value:.3f} (95% interval {low:.3f} to {high:.3f}, n = {self.n:,}, "
            f"judged by the {self.kind}), {NDCG} {self.ranking:.3f}, {self.milliseconds:.1f} ms a question."
        )
        if self.out_of_reach > OUT_OF_REACH * self.n:
            together = self.figures[CONTEXT_RECALL][0]
            told += (
                f" In {self.out_of_reach:,} of {self.n:,} questions half of the gold passage is longer than the typical chunk, which "
                f"can hardly hit; the first {SHOWN} together cover {together:.3f} of the passages."
            )
        return f"{told} {sum(self.unmeasured.values())} questions are left out ({left_out})." if left_out else told


def measured(
    retriever: Retriever, truth: Truth | Sequence[Example], on_event: OnEvent = ignore, *, name: str = "", timed: int = TIMED
) -> Retrieval:
    """Search for all questions, and judge what comes.

    Up to `timed` of the questions are asked once more beforehand, one at a time, with spaces behind them; with `timed=0` no
    time is measured.
    """
    truth = truth if isinstance(truth, Truth) else Truth(truth)
    name, settings = name or retriever.name, content_hash(retriever.settings)
    questions = truth.questions
    if not questions:
        return Retrieval(name, settings, truth.kind, 0, truth.unmeasured, {}, 0.0, {})
    seconds = _seconds(retriever, questions, timed)
    found = [[one.chunk for one in some[:DEPTH]] for some in retriever.search(questions, DEPTH)]
    rankings = [[truth.found(number, chunk) for chunk in chunks] for number, chunks in enumerate(found)]
    values = {
        **{f"recall@{k}": [float(0 < first_rank(one) <= k) for one in rankings] for k in RECALL_AT},
        f"mrr@{RANKED_AT}": [reciprocal_rank(one, RANKED_AT) for one in rankings],
        NDCG: [ndcg(one, truth.known(number), RANKED_AT) for number, one in enumerate(rankings)],
        f"context_precision@{SHOWN}": [context_precision([bool(hit) for hit in one[:SHOWN]]) for one in rankings],
    }
    figures = {metric: _figure(some, truth.groups) for metric, some in values.items()}
    shares = [(truth.covered(number, chunks[:SHOWN]), truth.groups[number]) for number, chunks in enumerate(found)]
    told = [(share, group) for share, group in shares if share is not None]
    if told:
        figures[CONTEXT_RECALL] = _figure([share for share, _ in told], [group for _, group in told])
    ranks = dict(zip(truth.ids, map(first_rank, rankings), strict=True))
    empty = sum(not chunks for chunks in found)
    if empty:
        on_event(Note(f"{name} finds nothing at all for {empty} of {len(found)} questions", "warning"))
    lengths = [len(chunk.text) for chunks in found for chunk in chunks]
    beyond = truth.longer(2 * median(lengths)) if lengths else 0
    return Retrieval(name, settings, truth.kind, len(questions), truth.unmeasured, figures, seconds, ranks, beyond)


def first_rank(ranking: Sequence[frozenset[int]]) -> int:
    """The rank of the first hit, from 1; 0 where there is none. A ranking is what each chunk hits, the best chunk first."""
    return next((rank for rank, hit in enumerate(ranking, 1) if hit), 0)


def reciprocal_rank(ranking: Sequence[frozenset[int]], depth: int) -> float:
    """1 / the rank of the first hit, 0 where there is none in the first `depth` (Voorhees 1999)."""
    rank = first_rank(ranking[:depth])
    return 1 / rank if rank else 0.0


def ndcg(ranking: Sequence[frozenset[int]], known: int, depth: int) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), in [0, 1], of `known` things to be found.

    Each is a gain of 1 at the rank of the first chunk that hits it, so that chunks which overlap do not count twice, discounted
    by log2(1 + rank). The ideal has a hit at each of the first min(known, depth) ranks; a chunk that holds several at once may
    exceed it, and counts as the ideal.
    """
    seen: set[int] = set()
    gain = 0.0
    for rank, hit in enumerate(ranking[:depth], 1):
        gain += len(hit - seen) / math.log2(1 + rank)
        seen |= hit
    return min(1.0, gain / sum(1 / math.log2(1 + rank) for rank in range(1, min(known, depth) + 1)))


def context_precision(hits: Sequence[bool]) -> float:
    """The mean of the precision at the ranks that hit, 0 where none does (ragas, Es et al. 2023, 2309.15217)."""
    precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit]
    return sum(precisions) / len(precisions) if precisions else 0.0


def _figure(values: Sequence[float], groups: Sequence[str | None]) -> tuple[float, float, float]:
    found = mean_interval(values, groups)
    return found.estimate, found.low, found.high


def _seconds(retriever: Retriever, questions: Sequence[str], timed: int) -> float:
    """The median time of up to `timed` questions, evenly chosen, each asked alone; the first is asked once before."""
    if timed < 1:
        return 0.0
    retriever.search([questions[0] + " " * next(_VISITS)], DEPTH)
    spaces = " " * next(_VISITS)
    step = max(1, math.ceil(len(questions) / timed))
    taken = []
    for question in questions[::step]:
        started = time.perf_counter()
        retriever.search([question + spaces], DEPTH)
        taken.append(time.perf_counter() - started)
    return median(taken)


def _phrase(text: str) -> str:
    """The normalised tokens between spaces: one phrase stands in another where its text does (`metrics.text.containment`)."""
    return f" {' '.join(tokens(text))} "


def _not_findable(target: str, output_type: str) -> str:
    """Why an answer cannot be looked for in a text; empty where it can."""
    plain = _phrase(target).strip()
    if output_type in {"label", "json"} or _is_json(target):
        return "JSON" if output_type != "label" else "a label"
    if not plain:
        return "an empty answer"
    if fold(plain) in COMMONPLACE:
        return "yes, no or the like"
    digits = plain.replace(" ", "")
    if digits.isdecimal():
        return "a number of one digit" if len(digits) < FEWEST_DIGITS else ""
    return "an answer of under three characters" if len(plain) < FEWEST_SIGNS else ""


def _is_json(target: str) -> bool:
    """Whether a text is a JSON object or list."""
    if not target.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(target), dict | list)
    except (ValueError, RecursionError):
        return False


def _absent(phrases: set[str], documents: Iterable[Document]) -> frozenset[str]:
    """The phrases that stand in none of the documents; none of them where there are no documents."""
    left, read = set(phrases), False
    for document in documents:
        if not left:
            break
        read = True
        text = _phrase(document.text)
        left = {phrase for phrase in left if phrase not in text}
    return frozenset(left) if read else frozenset()
