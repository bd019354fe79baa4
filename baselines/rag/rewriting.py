"""Query rewriting: the model is asked for a search query first, which is searched for beside the question."""

from __future__ import annotations

from evals.candidate import first_line
from evals.engines.engine import Message
from evals.metrics.quoting import conversation
from evals.metrics.text import fold
from evals.task.example import Example

REWRITING = "Write a short search query, a few keywords, that finds the passage which answers this question.\n\n{question}\n\nSearch query:"
REWRITE_TOKENS = 32
# Characters of a query: what is longer is an answer or an essay.
MAX_QUERY = 200


def rewriting(example: Example) -> tuple[Message, ...]:
    """The chat that asks for a query. Of a longer conversation all turns are shown: the last one may lean on them."""
    return (Message("user", REWRITING.replace("{question}", conversation(example))),)


def query_in(said: str, question: str, *, cut: bool = False) -> str:
    """The query in what the model said: its first line, without quotes and label.

    Empty where there is nothing new to search for: no words, the question itself, or a line without end (`cut` says that the
    model was stopped), which small models write that go round in circles.
    """
    if cut and "\n" not in said.strip():
        return ""
    line = first_line(said)
    label, colon, rest = line.partition(":")
    if colon and fold(label) in {"search query", "query", "keywords"}:
        line = rest
    line = line.strip(" \t\"'`*“”‘’«»")
    return "" if len(line) > MAX_QUERY or fold(line) == fold(question) else line
