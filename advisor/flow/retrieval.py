"""Retrieval: the documents are indexed, every way to search them is measured on dev, and the pipelines that race are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from advisor.flow.run import reuse
from advisor.flow.session import Session
from baselines.rag.candidate import Rag
from baselines.rag.citations import citation_report
from baselines.rag.judged import Judged, judged
from baselines.rag.relevance import Retrieval
from baselines.rag.search import Way, best_ways, database, measured_ways, rag_arms, ways
from evals.engines.machine import cache_folder
from evals.engines.rerank import Reranker, find_reranker
from evals.events import Note, OnEvent
from evals.metrics.options import Judge
from evals.records import content_hash, write_json
from evals.scores import Score, Scores
from evals.task.load import Task


@dataclass(frozen=True)
class Retrieved:
    """Every way to search, measured on dev; the best of each way to cut the documents, the best first; and the pipelines."""

    retrievals: tuple[Retrieval, ...] = ()
    best: tuple[Way, ...] = ()
    arms: tuple[Rag, ...] = ()


def retrieved(task: Task, session: Session, folder: Path, on_event: OnEvent) -> Retrieved:
    """Write `retrieval.json`. Nothing where the task has no documents.

    The model is not asked here. Ways are ranked by the passages that they find for dev questions; where no passage is known
    and no answer can be looked for in the documents, in the order in which they are tried.
    """
    rag = task.spec.rag
    if not (task.documents or rag.qdrant):
        return Retrieved()
    reranker = _reranker(task, session, on_event)
    # Indexes belong to documents, not to runs.
    every = [*ways(task, session.embedder, reranker, cache_folder() / "indexes", on_event)]
    if rag.qdrant:
        every += database(rag.qdrant, session.embedder, reranker, on_event)
    if not every:
        on_event(Note("the documents hold no text to search: nothing is retrieved", "warning"))
        return Retrieved()
    found = _measured(task, every, folder / "retrieval.json", on_event)
    best = best_ways(list(zip(every, found, strict=True)))
    arms = rag_arms(task, session.engine, session.embedder, best, on_event, rewrite=rag.rewrite)
    return Retrieved(tuple(found), tuple(best), tuple(arms))


def _reranker(task: Task, session: Session, on_event: OnEvent) -> Reranker | None:
    name = task.spec.rag.reranker
    return find_reranker(task.located(name), on_event) if name else None


def _measured(task: Task, every: Sequence[Way], path: Path, on_event: OnEvent) -> list[Retrieval]:
    key = content_hash([task.hash(), [[one.name, one.retriever.settings] for one in every]])
    kept = reuse(path, key)
    if kept:
        return [Retrieval(**one) for one in kept["retrievals"]]
    found = measured_ways(every, task, on_event)
    write_json(path, {"input_hash": key, "retrievals": [asdict(one) for one in found]})
    best = max(found, key=lambda one: one.ranking)
    on_event(Note(best.sentence()))
    return found


def judged_answers(task: Task, session: Session, scores: Scores, path: Path, on_event: OnEvent) -> Judged | None:
    """What the task's judge says of a pipeline's answers and passages, kept in `path`; None where no judge is configured.

    Passages are read where they stand in the task's documents; those of a database that is not ours cannot be.
    """
    options = next((one for one in task.metric_options if isinstance(one, Judge)), None)
    if options is None or not task.documents:
        return None
    engine = session.engine_of(options.model)
    key = content_hash([task.hash(), options.model_dump(mode="json"), engine.fingerprint, scores])
    kept = reuse(path, key)
    if kept:
        return Judged(**kept["judged"])
    places = {one.id: at for at, one in enumerate(task.documents)}

    def passages(item: Score) -> list[str]:
        shown = [one for step in item.trace for one in step.get("passages", ()) if one["document"] in places]
        return [task.documents[places[one["document"]]].text[one["start"] : one["end"]] for one in shown]

    found = judged(engine, options, task.split(scores.split), scores, passages, on_event, seed=task.spec.seed)
    write_json(path, {"input_hash": key, "judged": asdict(found)})
    return found


def cited(arms: Sequence[Scores]) -> tuple[str, ...]:
    """How the best pipeline that was asked for citations cites, in a sentence."""
    reports = [(one, citation_report(one)) for one in arms if one.kind == "rag"]
    some = [(one, report) for one, report in reports if report]
    if not some:
        return ()
    best, report = max(some, key=lambda pair: pair[0].mean)
    return (
        f"Citations: {best.candidate} cites in {report['cited']:.0%} of {report['answers']:.0f} answers; of these "
        f"{report['valid']:.0%} name only passages that were shown, and in {report['supported']:.0%} the answer's words stand "
        "in a passage that is cited.",
    )
