"""RAG candidates: the question with the passages that retrieval finds for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from baselines.prompts.prompt import answer_format
from baselines.rag.chunks import CHUNK_WORDS, covers, split_documents
from baselines.rag.index import DenseIndex
from evals.candidate import Answer, AnswerFormat, Kind, PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Engine, Request
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

PASSAGES = (1, 3)


@dataclass(frozen=True)
class Rag:
    """Retrieves `count` passages and puts them before the question, the best one nearest to it."""

    name: str
    engine: Engine
    index: DenseIndex
    count: int
    prompt_format: PromptFormat
    answer_format: AnswerFormat
    documents_hash: str
    kind: Kind = "rag"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "prompt": asdict(self.prompt_format),
            "answer": asdict(self.answer_format),
            "passages": self.count,
            "chunk_words": CHUNK_WORDS,
            "documents": self.documents_hash,
            "embeddings": self.index.embedder.fingerprint,
        }

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        found = self.index.search([example.text for example in examples], self.count)
        return [
            Request(
                example.id,
                self.prompt_format.messages(example, context=[chunk.passage for chunk in reversed(chunks)]),
                self.answer_format.max_new_tokens,
            )
            for example, chunks in zip(examples, found, strict=True)
        ]

    def parse(self, text: str) -> str:
        return self.answer_format.parse(text)


def document_index(task: Task, embedder: Embedder) -> DenseIndex | None:
    """The task's documents, to be searched; None where there are none with text."""
    chunks = split_documents(task.documents)
    return DenseIndex(chunks, embedder) if chunks else None


def rag_arms(task: Task, engine: Engine, embedder: Embedder) -> list[Rag]:
    index = document_index(task, embedder)
    if index is None:
        return []
    answers = answer_format(task, engine)
    inline = PromptFormat(task.instruction, "inline")
    documents = content_hash(index.chunks)
    return [Rag(f"rag_{count}", engine, index, count, inline, answers, documents) for count in PASSAGES]


def retrieval_recall(arm: Rag, examples: Sequence[Example]) -> tuple[float, float] | None:
    """Share of questions of which a retrieved chunk covers a gold passage, and seconds a query; None without gold passages."""
    known = [example for example in examples if example.gold_passages]
    if not known:
        return None
    started = time.perf_counter()
    found = arm.index.search([example.text for example in known], arm.count)
    seconds = (time.perf_counter() - started) / len(known)
    hits = [
        any(covers(chunk, gold) for chunk in chunks for gold in example.gold_passages)
        for example, chunks in zip(known, found, strict=True)
    ]
    return sum(hits) / len(hits), seconds
