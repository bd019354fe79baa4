"""RAG candidates: a question is asked with the passages that a retriever finds for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from baselines.prompts.prompt import most_tokens
from baselines.rag.chunks import Chunk
from baselines.rag.citations import citations, cited_part, supported, without_citations
from baselines.rag.fusion import CONSTANT, fused
from baselines.rag.passages import Passage, shown_passages
from baselines.rag.prompts import Demonstration, RagPrompt, demonstration
from baselines.rag.retriever import Found, Retriever
from baselines.rag.rewriting import REWRITE_TOKENS, REWRITING, query_in, rewriting
from evals.candidate import Answer, AnswerFormat, Exchange, Kind
from evals.engines.engine import Engine, Message, Request, Response
from evals.events import Note, OnEvent, ignore
from evals.task.example import Example

# Tokens for " [12]" and a space or two behind an answer.
CITATION_TOKENS = 8


@dataclass(frozen=True)
class Rag:
    """Retrieves `count` passages, and puts them before the question, the best one nearest to it.

    `around` gives a chunk with `reach` of its neighbours on both sides: what was found is widened so. `rewrite` asks the
    model for a search query first; its passages and those of the question itself are fused. A prompt that does not fit the
    context loses demonstrations, the least near first, then passages, the worst first, and that is said. `search_seconds` is
    what one search costs, where it was measured.
    """

    name: str
    engine: Engine
    retriever: Retriever
    count: int
    prompt: RagPrompt
    answer_format: AnswerFormat
    reach: int = 0
    around: Callable[[Chunk, int], Chunk] | None = None
    rewrite: bool = False
    search_seconds: float | None = None
    kind: Kind = "rag"
    on_event: OnEvent = ignore
    # Demonstrations by the place that they are shown in: their passages are looked for once.
    _shown: dict[tuple[str, int], Demonstration] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "prompt": self.prompt.settings,
            "answer": asdict(self.answer_format),
            "retriever": {"name": self.retriever.name, **self.retriever.settings},
            "passages": self.count,
            "reach": self._reach,
            "rewriting": [REWRITING, REWRITE_TOKENS] if self.rewrite else None,
        }

    def requests(self, examples: Sequence[Example]) -> list[Exchange]:
        visit = _Visit(self, len(examples))
        shots = self._shots(examples)
        if self.rewrite:
            return [self._rewriting(one, some, visit) for one, some in zip(examples, shots, strict=True)]
        found, seconds = self._search([[example.text] for example in examples])
        ready = self._ready(examples, [some[0] for some in found], shots)
        return [self._asking(one, visit, seconds) for one in ready]

    def parse(self, text: str) -> str:
        """The answer in a model's text, without its citations; JSON keeps what stands in it."""
        if not self.prompt.cites:
            return self.answer_format.parse(text)
        if self.answer_format.output_type == "json":
            body, end, behind = text.rpartition("}")
            return self.answer_format.parse(body + end + without_citations(behind) if end else text)
        return self.answer_format.parse(without_citations(text))

    @property
    def new_tokens(self) -> int:
        return self.answer_format.max_new_tokens + (CITATION_TOKENS if self.prompt.cites else 0)

    @property
    def _reach(self) -> int:
        return self.reach if self.around is not None else 0

    def _search(self, queries: Sequence[Sequence[str]]) -> tuple[list[list[list[Found]]], float]:
        """What is found for each query of each question, and seconds a question.

        A second arm finds the vectors of its questions remembered and its searches quick: what one search costs was measured
        apart (`search_seconds`), and this clock stands in only where it was not.
        """
        every = [query for some in queries for query in some]
        if not every:
            return [], 0.0
        started = time.perf_counter()
        found = iter(self.retriever.search(every, self.count))
        seconds = (time.perf_counter() - started) / len(queries)
        if self.search_seconds is not None:
            seconds = self.search_seconds * len(every) / len(queries)
        return [[next(found) for _ in some] for some in queries], seconds

    def _shots(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """The demonstrations of each example with a passage each; numbers go round, so that no number is what is learnt."""
        if self.prompt.shots is None:
            return [[] for _ in examples]
        chosen = self.prompt.shots(examples)
        wanted = {(shot.id, at % self.count + 1): shot for some in chosen for at, shot in enumerate(some)}
        new = [key for key in wanted if key not in self._shown]
        texts = list(dict.fromkeys(wanted[key].text for key in new))
        found = dict(zip(texts, self.retriever.search(texts, self.count), strict=True)) if texts else {}
        for key in new:
            self._shown[key] = demonstration(wanted[key], [one.chunk.passage for one in found[wanted[key].text]], key[1])
        return [[self._shown[shot.id, at % self.count + 1] for at, shot in enumerate(some)] for some in chosen]

    def _rewriting(self, example: Example, shots: list[Demonstration], visit: _Visit) -> Exchange:
        (response,) = yield [Request(example.id, rewriting(example), REWRITE_TOKENS)]
        query = query_in(response.text, example.text, cut=response.truncated)
        ((found,), seconds) = self._search([[query, example.text] if query else [example.text]])
        # Both count alike; the question by itself keeps its scores.
        best = fused(found, [1 / len(found)] * len(found), CONSTANT)[: self.count] if query else found[0]
        (ready,) = self._ready([example], [best], [shots])
        return (yield from self._asking(ready, visit, seconds, query))

    def _ready(
        self, examples: Sequence[Example], found: Sequence[Sequence[Found]], shots: Sequence[Sequence[Demonstration]]
    ) -> list[_Ready]:
        """What is asked about each example: as much as its prompt has room for."""
        ready = [
            _Ready(example, shown_passages(some, self.around, self._reach), list(own))
            for example, some, own in zip(examples, found, shots, strict=True)
        ]
        room = self.engine.context_length - self.new_tokens
        bounds = most_tokens(self.engine, [one.messages(self.prompt) for one in ready])
        doubtful = [one for one, bound in zip(ready, bounds, strict=True) if bound > room]
        while doubtful:
            tokens = self.engine.count_prompts([one.messages(self.prompt) for one in doubtful])
            # Of those that are too long, those that had something to lose.
            doubtful = [one for one, count in zip(doubtful, tokens, strict=True) if count > room and one.lose()]
        return ready

    def _asking(self, ready: _Ready, visit: _Visit, seconds: float, query: str = "") -> Exchange:
        visit.fitted(ready)
        messages = ready.messages(self.prompt)
        (response,) = yield [Request(ready.example.id, messages, self.new_tokens)]
        return self._answer(ready, response, seconds, query)

    def _answer(self, ready: _Ready, response: Response, seconds: float, query: str) -> Answer:
        text = "" if response.skipped else self.parse(response.text)
        told = {
            "passages": ready.told(),
            **({"query": query} if query else {}),
            **(self._checked(text, response.text, ready) if self.prompt.cites and not response.skipped else {}),
        }
        said = "" if response.text == text else response.text
        return Answer(text, seconds, said=said, trace=[told], skipped=response.skipped)

    def _checked(self, answer: str, said: str, ready: _Ready) -> dict[str, Any]:
        """What the answer cites, of that what is no passage, and whether its words stand in a passage that it cites."""
        if self.answer_format.output_type == "json":
            said = said.rpartition("}")[2]
        elif not self.answer_format.after:
            said = cited_part(said)
        cited = citations(said)
        shown = [one.text for one in ready.in_order]
        return {
            "cited": cited,
            "unknown_citations": [one for one in cited if not 0 < one <= len(shown)],
            "supported": supported(answer, cited, shown),
        }


@dataclass
class _Ready:
    """One example with what is shown before it: passages, the best first, and demonstrations, the nearest last."""

    example: Example
    passages: list[Passage]
    shots: list[Demonstration]
    lost_passages: int = 0
    lost_shots: int = 0

    @property
    def in_order(self) -> list[Passage]:
        """As they are shown: the best one nearest to the question."""
        return self.passages[::-1]

    def messages(self, prompt: RagPrompt) -> tuple[Message, ...]:
        return prompt.messages(self.example, [one.text for one in self.in_order], self.shots)

    def lose(self) -> bool:
        """One thing less; False where there is nothing left to lose."""
        if self.shots:
            del self.shots[0]
            self.lost_shots += 1
        elif self.passages:
            del self.passages[-1]
            self.lost_passages += 1
        else:
            return False
        return True

    def told(self) -> list[dict[str, Any]]:
        """For the record, the best passage first; `number` is its place in the prompt, from 1, which citations name."""
        return [{"number": len(self.passages) - rank, **one.told()} for rank, one in enumerate(self.passages)]


class _Visit:
    """What the exchanges of one batch share: what there is to say when all of them have their passages."""

    def __init__(self, rag: Rag, exchanges: int) -> None:
        self.rag = rag
        self.waiting = self.exchanges = exchanges
        self.lost_shots: list[int] = []
        self.lost_passages: list[int] = []

    def fitted(self, ready: _Ready) -> None:
        self.waiting -= 1
        self.lost_shots += [ready.lost_shots] if ready.lost_shots else []
        self.lost_passages += [ready.lost_passages] if ready.lost_passages else []
        if self.waiting or not (self.lost_shots or self.lost_passages):
            return
        told = [
            f"{len(lost)} of {self.exchanges} prompts lost {what} ({sum(lost)} in all)"
            for lost, what in ((self.lost_passages, "passages"), (self.lost_shots, "demonstrations"))
            if lost
        ]
        room = f"the context of {self.rag.engine.context_length:,} tokens with {self.rag.new_tokens:,} for the answer"
        self.rag.on_event(Note(f"{self.rag.name}: {' and '.join(told)}, since they do not fit {room}", "warning"))


def under(rag: Rag, engine: Engine, name: str) -> Rag:
    """The same pipeline with other weights, those of a tuned model."""
    return replace(rag, engine=engine, name=name, kind="tuned")
