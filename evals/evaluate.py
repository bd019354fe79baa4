"""One `evaluate()` for every candidate: asks it, scores it, and keeps each answer as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evals.candidate import Answer, Candidate
from evals.engines.engine import Request, Response
from evals.errors import AdvisorError
from evals.events import CandidateScored, OnEvent, Ticker
from evals.metrics import score, tolerant_score
from evals.records import content_hash, jsonable, read_json, read_jsonl, write_json, write_jsonl
from evals.task.example import Example
from evals.task.load import Task


@dataclass(frozen=True)
class Score:
    """One example's result. `metrics` holds the task's other metrics and `tolerant`, the tolerant reading of the first.

    `skipped` is a reason where there is no answer; such an item scores 0 and is counted apart.
    """

    id: str
    score: float
    output: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    skipped: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Per-example results of one candidate on one split, in the split's order."""

    candidate: str
    kind: str
    split: str
    metric: str
    items: tuple[Score, ...]

    @property
    def mean(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)

    def values(self) -> list[float]:
        return [item.score for item in self.items]

    def average(self, name: str) -> float:
        """Mean of a secondary metric, or of `prompt_tokens`, `output_tokens`, `seconds`."""
        if name in {"prompt_tokens", "output_tokens", "seconds", "score"}:
            return sum(float(getattr(item, name)) for item in self.items) / len(self.items)
        return sum(item.metrics[name] for item in self.items) / len(self.items)

    @property
    def skipped(self) -> int:
        return sum(bool(item.skipped) for item in self.items)


def score_answer(task: Task, example: Example, text: str, response: Response | Answer) -> Score:
    """`text` is the answer as the candidate parsed it; `response` gives seconds, and tokens where a model was asked."""
    skipped = response.skipped if isinstance(response, Response) else ""
    values = {name: 0.0 if skipped else score(name, text, example.target) for name in task.metrics}
    tolerant = 0.0 if skipped else tolerant_score(task.output_type, task.metric, text, example.target, task.labels)
    rest = {name: value for name, value in values.items() if name != task.metric}
    return Score(
        example.id,
        values[task.metric],
        text,
        getattr(response, "prompt_tokens", 0),
        getattr(response, "output_tokens", 0),
        round(response.seconds, 6),
        skipped,
        {**rest, "tolerant": tolerant},
    )


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


def evaluate(task: Task, candidate: Candidate, split: str, folder: Path, on_event: OnEvent) -> Scores:
    """Scores of `candidate` on a split of the task, from `folder/<split>/<candidate>.jsonl` where they are there already.

    Each answer is appended to a partial file as it comes, so that an interrupted evaluation goes on where it stopped.
    A record belongs to the hash of the candidate's settings, the engine's weights, the rows and the metrics.
    """
    examples = task.split(split)
    engine = candidate.engine
    key = content_hash(
        [
            candidate.name,
            candidate.settings,
            engine.fingerprint if engine else "",
            examples,
            task.metrics,
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
    todo = [one for one in examples if one.id not in items]
    by_id = {one.id: one for one in todo}
    ticker = Ticker(on_event, f"{candidate.name} on {split}", len(examples), "items", done=len(items))
    asked: list[Request] = []
    # Written anew first: a crash may have left half a line at its end.
    write_jsonl(partial, items.values())
    with _appending(partial) as append:

        def keep(one: Score) -> None:
            items[one.id] = one
            append(asdict(one))
            ticker.advance()

        for example, request in zip(todo, candidate.requests(todo), strict=True):
            if isinstance(request, Answer):
                keep(score_answer(task, example, request.text, request))
            else:
                asked.append(request)
        if asked:
            if engine is None:
                raise AdvisorError("a candidate asks a model but has no engine", where=candidate.name)
            for response in engine.generate(asked):
                keep(score_answer(task, by_id[response.id], candidate.parse(response.text), response))
    missing = [one.id for one in examples if one.id not in items]
    if missing:
        raise AdvisorError(
            f"the engine left {len(missing)} of {len(examples)} items without an answer, the first is {missing[0]}",
            where=candidate.name,
            do="run the same command again: it asks only for these.",
        )
    write_jsonl(path, [items[one.id] for one in examples])
    write_json(
        meta,
        {"candidate": candidate.name, "kind": candidate.kind, "split": split, "metric": task.metric, "input_hash": key},
    )
    partial.unlink(missing_ok=True)
    return record(items, reused=False)
