"""What retrieval is tried with: every way to cut documents and to find passages, measured before any model is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from baselines.prompts.prompt import answer_format
from baselines.prompts.shots import chosen_by
from baselines.rag.candidate import Rag
from baselines.rag.chunks import Chunk, Chunking
from baselines.rag.dense import Dense
from baselines.rag.fusion import Hybrid, Reranked, fitted
from baselines.rag.index import Index, open_index
from baselines.rag.keywords import Keywords
from baselines.rag.prompts import RagPrompt
from baselines.rag.qdrant import open_qdrant
from baselines.rag.relevance import Retrieval, Truth, measured
from baselines.rag.retriever import Retriever
from evals.engines.embed import Embedder
from evals.engines.engine import Engine
from evals.engines.rerank import Reranker
from evals.events import OnEvent
from evals.records import content_hash
from evals.task.load import Task
from evals.task.spec import QdrantSpec

# In tokens of the embedding model: a few sentences, paragraphs of one section, and windows that overlap.
CHUNKINGS = (Chunking("sentences", 96), Chunking("structure", 192), Chunking("tokens", 192, 32))
# Passages that a model is shown; more only of the best way, since they cost the most.
FEW, MANY = (1, 3), (5, 10)
SHOTS = 4
# Training questions by which the parts of a fusion are weighed.
WEIGHED_ON = 200


@dataclass(frozen=True)
class Way:
    """One way to find passages. Of a database that is not ours there is no index, and chunks have no neighbours."""

    retriever: Retriever
    chunking: str
    index: Index | None = None
    # What one search costs, where it was measured.
    seconds: float | None = None

    @property
    def name(self) -> str:
        return f"{self.retriever.name}_{self.chunking}"

    @property
    def around(self) -> Callable[[Chunk, int], Chunk] | None:
        return self.index.around if self.index is not None else None


def index_folder(home: Path, task: Task, chunking: Chunking, embedder: Embedder) -> Path:
    """Where the index of a task's documents lies: the same for all runs, so that documents that change are brought up to date."""
    key = content_hash([str(task.folder.resolve()), task.spec.data.documents, chunking.settings, embedder.fingerprint])
    return home / f"{task.name}-{chunking.name}-{key[:12]}"


def ways(task: Task, embedder: Embedder, reranker: Reranker | None, home: Path, on_event: OnEvent) -> Iterator[Way]:
    """All ways to find passages in each way to cut the documents: by words, by meaning, by both, and both reordered.

    A cut that comes to the same chunks as an earlier one is left out.
    """
    seen = set()
    for chunking in CHUNKINGS:
        index = open_index(index_folder(home, task, chunking, embedder), task.documents, chunking, embedder, on_event)
        cut = index.manifest.files["chunks.jsonl"]
        if cut in seen or not len(index.chunks):
            continue
        seen.add(cut)
        words, meaning = Keywords(index, on_event), Dense(index, on_event)
        hybrid = weighed([words, meaning], Truth(task.train[:WEIGHED_ON], output_type=task.output_type))
        found: list[Retriever] = [words, meaning]
        # All the weight on one part is that part once more.
        if sum(weight > 0 for weight in hybrid.weights) > 1:
            found.append(hybrid)
        if reranker is not None:
            found.append(Reranked(hybrid, reranker))
        yield from (Way(one, chunking.name, index) for one in found)


def database(spec: QdrantSpec, embedder: Embedder, reranker: Reranker | None, on_event: OnEvent) -> list[Way]:
    """The same of a vector database that is there already, with its own chunks."""
    found = open_qdrant(spec, embedder, on_event)
    some: list[Retriever] = [found, *([Reranked(found, reranker)] if reranker else [])]
    # It becomes part of names of files.
    collection = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.collection)[:40]
    return [Way(one, collection) for one in some]


def weighed(parts: Sequence[Retriever], truth: Truth) -> Hybrid:
    """The parts, weighed by what finds the passages of these questions."""
    return fitted(parts, truth.questions, truth.hits)


def best_ways(found: Sequence[tuple[Way, Retrieval]]) -> list[Way]:
    """Of each way to cut the documents the retriever with the best ranking on the questions asked, the best first.

    Larger chunks hit more easily and cost more to read, so that only answers can tell which cut is best.
    """
    best: dict[str, Way] = {}
    for way, measured_ in sorted(found, key=lambda one: -one[1].ranking):
        best.setdefault(way.chunking, replace(way, seconds=measured_.seconds))
    return list(best.values())


def rag_arms(
    task: Task, engine: Engine, embedder: Embedder, some: Sequence[Way], on_event: OnEvent, *, rewrite: bool = False
) -> list[Rag]:
    """The pipelines that race: numbers of passages, prompts, demonstrations and neighbours, on the best ways first."""
    answers = answer_format(task, engine)
    shots, shot_settings = chosen_by("nearest", task, SHOTS, embedder, content_hash(task.train))
    plain, grounded = RagPrompt("plain", task.instruction), RagPrompt("grounded", task.instruction)
    shown = replace(plain, shots=shots, shot_settings=shot_settings)
    # Nobody cites who was not shown how: without demonstrations the demo model never did.
    cited = replace(shown, variant="cited")
    arms = []
    for number, way in enumerate(some):

        def arm(label: str, prompt: RagPrompt, count: int, reach: int = 0, *, rewritten: bool = False, way: Way = way) -> None:
            name = f"rag_{way.name}_{label}_{count}"
            asked = Rag(name, engine, way.retriever, count, prompt, answers, reach, way.around, rewritten, on_event=on_event)
            arms.append(replace(asked, search_seconds=way.seconds))

        for count in FEW if number else (*FEW, *MANY):
            arm("plain", plain, count)
        arm("grounded", grounded, 3)
        arm("shots", shown, 1)
        arm("shots", shown, 3)
        if number == 0:
            # In JSON a number in brackets would be in the way of the form.
            if task.output_type != "json":
                arm("cited", cited, 3)
            if way.around is not None:
                arm("widened", plain, 1, 1)
            if rewrite:
                arm("rewritten", plain, 3, rewritten=True)
    return arms


def measured_ways(some: Sequence[Way], task: Task, on_event: OnEvent) -> list[Retrieval]:
    """What each finds for the questions of dev."""
    truth = Truth(task.dev, output_type=task.output_type, documents=task.documents)
    return [measured(way.retriever, truth, on_event, name=way.name) for way in some]
