"""Sentences of documents, and how well they match a question word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.metrics.text import tokens
from evals.task.reading.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADING = re.compile(r"#{1,6}\s+")
# A full stop ends a sentence only where a new one seems to begin; signs of scripts without spaces end one anywhere.
END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\W_a-z])|(?<=[。！？])")
MOST_WORDS = 60
# The constants of BM25 (Robertson and Zaragoza 2009): how soon a repeated word adds nothing, how much length counts.
SATURATION = 1.2
LENGTH = 0.75


@dataclass(frozen=True)
class Sentence:
    """`text` is literal but for white space; `title` is the document's first heading, or its first line."""

    title: str
    text: str

    @property
    def whole(self) -> str:
        return f"{self.title}: {self.text}"


def sentences(documents: Sequence[Document]) -> list[Sentence]:
    """All sentences but headings, each text once. What is longer than `MOST_WORDS` words is cut there."""
    found: dict[str, Sentence] = {}
    for document in documents:
        lines = [line.strip() for line in document.text.splitlines()]
        headings = [HEADING.sub("", line) for line in lines if HEADING.match(line)]
        title = " ".join(next(iter(headings or filter(None, lines)), "").split()[:20])
        body = "\n".join("" if HEADING.match(line) else line for line in lines)
        for paragraph in re.split(r"\n\s*\n", body):
            for sentence in END.split(" ".join(paragraph.split())):
                words = sentence.split()
                for start in range(0, len(words), MOST_WORDS):
                    text = " ".join(words[start : start + MOST_WORDS])
                    if re.search(r"\w", text):
                        found.setdefault(text, Sentence(title, text))
    return list(found.values())


class WordMatch:
    """BM25 of every sentence for a question: the words that both have, the rarer the more."""

    def __init__(self, texts: Sequence[str]) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import CountVectorizer

        self._reader = CountVectorizer(analyzer=tokens)
        counts: Any = self._reader.fit_transform(texts).astype(np.float64).tocoo()
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        holding = np.bincount(counts.col, minlength=counts.shape[1])
        rarity = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        norm = SATURATION * (1 - LENGTH + LENGTH * lengths / max(lengths.mean(), 1e-9))
        weights = rarity[counts.col] * counts.data * (SATURATION + 1) / (counts.data + norm[counts.row])
        # Words in rows: a question reads only those of its own.
        self._weights = csr_matrix((weights, (counts.col, counts.row)), shape=counts.shape[::-1])

    def scores(self, question: str) -> NDArray[np.float64]:
        """One score a sentence, 0 where no word is shared. A word counts once, however often the question says it."""
        asked = self._reader.transform([question])
        asked.data[:] = 1
        found: NDArray[np.float64] = (asked @ self._weights).toarray().ravel()
        return found
