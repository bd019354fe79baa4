"""Questions over documents without a language model: the sentence that matches the question best is the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from baselines.classic import sentences as reading
from baselines.classic.folds import clusters, sample
from baselines.classic.sentences import Sentence, WordMatch, sentences
from evals.candidate import Answer, Kind
from evals.engines.embed import Embedder
from evals.engines.engine import Request
from evals.metrics.text import containment, token_f1
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The share of meaning (cosine of the embeddings) in a sentence's rank; the rest is the match of words.
SHARES = (0.5, 0.25, 0.75, 0.0, 1.0)
CHOSEN_ON = 64
# Up to so many sentences all are embedded; of more only the `SHORTLIST` that match a question's words best.
ALL = 2000
SHORTLIST = 50


class BestPassage:
    """Ranks sentences by words and by meaning; how much each counts is what answers the training questions best.

    Seconds are those of a question: sentences are embedded once, as an index is built, and not counted.
    """

    name = "best_passage"
    kind: Kind = "no_llm"
    engine = None

    def __init__(self, task: Task, embedder: Embedder) -> None:
        self.task = task
        self.embedder = embedder

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "embeddings": self.embedder.fingerprint,
            "documents": self.task.documents_hash,
            "train": content_hash(self.task.train),
            "shares": SHARES,
            "chosen_on": CHOSEN_ON,
            "all": ALL,
            "shortlist": SHORTLIST,
            "words": reading.MOST_WORDS,
            "bm25": [reading.SATURATION, reading.LENGTH],
        }

    @cached_property
    def sentences(self) -> list[Sentence]:
        return sentences(self.task.documents)

    @cached_property
    def _match(self) -> WordMatch:
        return WordMatch([one.whole for one in self.sentences])

    @cached_property
    def share(self) -> float:
        """Of `SHARES`, the one whose answers to training questions are best (ties: the first)."""
        rows = [self.task.train[at] for at in sample(clusters(self.task.train), CHOSEN_ON)]
        ranked = [self._ranked(row.text)[:2] for row in rows]
        scores = []
        for share in SHARES:
            answers = [
                self._best(places, matches, share, row.text) for row, (places, matches) in zip(rows, ranked, strict=True)
            ]
            # Whether the answer stands in it, and how much else does.
            found = [containment(one, row.target) + token_f1(one, row.target) for one, row in zip(answers, rows, strict=True)]
            scores.append(sum(found))
        return SHARES[max(range(len(SHARES)), key=lambda at: (scores[at], -at))]

    def _ranked(self, question: str) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        """The sentences to look at, and how well their words match, from 0 to 1; and the seconds that it took."""
        import numpy as np

        match = self._match
        started = time.perf_counter()
        scores = match.scores(question)
        count = len(scores) if len(scores) <= ALL else SHORTLIST
        places = np.argsort(-scores, kind="stable")[:count]
        found = scores[places] / max(float(scores.max()), 1e-9)
        return places, found, time.perf_counter() - started

    def _best(self, places: NDArray[np.int64], matches: NDArray[np.float64], share: float, question: str) -> str:
        cosines = self._vectors(places) @ self.embedder.encode([question])[0]
        best = int((share * cosines + (1 - share) * matches).argmax())
        return self.sentences[int(places[best])].text

    def _vectors(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.embedder.encode([self.sentences[at].whole for at in places], "embedding the sentences")

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        if not examples:
            return []
        questions = [example.text for example in examples]
        share = self.share
        embedding = self.embedder.seconds_each(questions) if share else 0.0
        self.embedder.encode(questions, "embedding the questions")
        answers: list[Request | Answer] = []
        for question in questions:
            places, matches, seconds = self._ranked(question)
            self._vectors(places)
            started = time.perf_counter()
            best = self._best(places, matches, share, question)
            answers.append(Answer(best, embedding + seconds + time.perf_counter() - started))
        return answers

    def parse(self, text: str) -> str:
        return text
