"""One `evaluate()` for every candidate: asks it, scores it, and keeps each answer as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evals.candidate import Candidate
from evals.engines.engine import Request
from evals.errors import AdvisorError
from evals.events import CandidateScored, Note, OnEvent, Ticker
from evals.exchange import exchanged
from evals.metrics.consistency import variants
from evals.metrics.metric import Metric
from evals.records import content_hash, jsonable, read_json, read_jsonl, write_json, write_jsonl
from evals.scores import Score, Scores, consistency_options, scored, task_metrics, unscored
from evals.task.load import Task


def _read(path: Path) -> dict[str, Score]:
    """Kept scores by id."""
    try:
        return {row["id"]: Score(**row) for row in read_jsonl(path)}
    except (KeyError, TypeError) as error:
        raise AdvisorError("this record is damaged", where=str(path), do="delete it and run again.") from error


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds one JSON line to the file, at once. Only its own failures are called a full disk."""
    with path.open("ab", buffering=0) as file:

        def append(row: Any) -> None:
            line = (json.dumps(jsonable(row), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError as error:
                raise AdvisorError(
                    f"answers could not be kept: {error.strerror or error}",
                    where=str(path),
                    do="free some disk space, then run the same command again: it goes on where it stopped.",
                ) from error

        yield append


def evaluate(
    task: Task, candidate: Candidate, split: str, folder: Path, on_event: OnEvent, metrics: Sequence[Metric] | None = None
) -> Scores:
    """Scores of `candidate` on a split of the task, from `folder/<split>/<candidate>.jsonl` where they are there already.

    `metrics` are the task's, as `build_metrics` makes them; left out, they are built here, which those can be that need
    no model. Each answer is appended to a partial file as it comes, so that an interrupted evaluation goes on where it
    stopped; they are scored when all are there. A record belongs to the hash of the candidate's settings, the engine's
    weights, the rows and the metrics.
    """
    metrics = task_metrics(task, on_event) if metrics is None else metrics
    examples = task.split(split)
    engine = candidate.engine
    steadiness = consistency_options(task)
    key = content_hash(
        [
            candidate.name,
            candidate.settings,
            engine.fingerprint if engine else "",
            examples,
            [[metric.name, metric.settings] for metric in metrics],
            steadiness.model_dump() if steadiness else None,
            task.output_type,
            task.labels,
        ]
    )
    path = folder / split / f"{candidate.name}.jsonl"
    meta = path.with_suffix(".json")
    started = time.monotonic()

    def record(items: dict[str, Score], *, reused: bool) -> Scores:
        scores = Scores(candidate.name, candidate.kind, split, task.metric, tuple(items[one.id] for one in examples))
        seconds = time.monotonic() - started
        on_event(CandidateScored(candidate.name, split, task.metric, scores.mean, len(examples), seconds, reused))
        return scores

    if meta.is_file() and path.is_file() and read_json(meta).get("input_hash") == key:
        items = _read(path)
        if set(items) == {one.id for one in examples}:
            return record(items, reused=True)

    partial = path.with_suffix(f".{key[:12]}.partial")
    items = _read(partial) if partial.is_file() else {}
    more = variants(examples, steadiness) if steadiness else []
    sampled = {one.example.id: one for one in more if one.kind == "sample"}
    every = [*examples, *(one.example for one in more)]
    todo = [one for one in every if one.id not in items]
    ticker = Ticker(on_event, f"{candidate.name} on {split}", len(every), "items", done=len(items))

    def drawn(name: str, number: int, request: Request) -> Request:
        one = sampled.get(name)
        if one is None:
            return request
        # The requests of one round differ, and so must their seeds.
        return replace(request, temperature=one.temperature, seed=((one.seed or 0) + number) % 2**31)

    # Written anew first: a crash may have left half a line at its end.
    write_jsonl(partial, items.values())
    with _appending(partial) as append:
        steps = [(example.id, step) for example, step in zip(todo, candidate.requests(todo), strict=True)]
        for found in exchanged(engine, steps, candidate.parse, drawn):
            items[found.id] = unscored(found)
            append(asdict(items[found.id]))
            ticker.advance()
    items = {one.id: one for one in scored(task, metrics, examples, items)}
    for metric in metrics:
        for sentence in getattr(metric, "warnings", ()):
            on_event(Note(sentence, "warning"))
    write_jsonl(path, [items[one.id] for one in examples])
    write_json(
        meta,
        {"candidate": candidate.name, "kind": candidate.kind, "split": split, "metric": task.metric, "input_hash": key},
    )
    partial.unlink(missing_ok=True)
    return record(items, reused=False)
