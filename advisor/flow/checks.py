"""What a careful data scientist would look at first: leakage, quality, label noise, personal data. Nothing is changed here."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from advisor.flow.mask import TrainingMask, training_mask
from advisor.flow.session import Session
from evals.engines.hf import HfEngine
from evals.engines.models import is_here
from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from evals.general.named import NamedTask, suite_of
from evals.general.suites import item_texts
from evals.task.checks.findings import LEVELS, SHOWN, Checks, Finding, Place, Pool
from evals.task.checks.label_noise import label_noise
from evals.task.checks.leaks import Text, leaks, similar
from evals.task.checks.personal_data import personal_data
from evals.task.checks.places import shortened
from evals.task.checks.quality import repeated_documents, row_checks
from evals.task.load import Task
from evals.task.reading.formats import Row
from evals.task.splits import NAMES, named_group


@dataclass(frozen=True)
class Checked:
    """What the checks found, and a few training rows as they would be trained on (None where the tokeniser is not here)."""

    checks: Checks
    mask: TrainingMask | None


def check_data(task: Task, session: Session, on_event: OnEvent, *, embed: bool = True, fetch: bool = False) -> Checked:
    """Every check on a task's rows. What needs a model that is not on this machine is left out, aloud.

    `embed`: whether to embed the rows too, for label noise and for likeness in meaning. `fetch`: whether to fetch the models
    that are not here: a run needs them next anyway.
    """
    mask: TrainingMask | None = None
    findings: list[Finding] = []
    not_checked: list[str] = []
    seconds: dict[str, float] = {}
    texts = texts_of(task)
    try:
        texts += general_texts(task)
    except AdvisorError as error:
        not_checked.append(f"leaks into the general benchmarks: {error.what}")

    def timed(name: str, found: list[Finding], started: float) -> None:
        findings.extend(found)
        seconds[name] = round(time.monotonic() - started, 3)

    started = time.monotonic()
    timed("leakage", leaks(texts, on_event, task.documents), started)
    started = time.monotonic()
    timed("personal data", personal_data(task.rows), started)
    started = time.monotonic()
    engine = _engine_here(task, session, fetch=fetch)
    if engine is None:
        not_checked.append(_why_no_lengths(task))
    rows = row_checks(
        task.rows,
        output_type=task.output_type,
        labels=task.labels,
        count_tokens=engine.count_tokens if engine else None,
        context_length=engine.context_length if engine else None,
    )
    timed("rows", [*rows, *repeated_documents(task.documents)], started)
    if engine is not None:
        started = time.monotonic()
        mask = training_mask(task, engine)
        timed("chat template", list(mask.findings), started)
    name = task.located(task.spec.embeddings.model_name_or_path)
    if not embed:
        not_checked.append("label noise and likeness in meaning (they need the rows embedded)")
    elif not fetch and not is_here(name):
        not_checked.append(
            f"label noise and likeness in meaning: the embedding model {name} is not on this machine yet (`advisor bench` fetches it)"
        )
    else:
        started = time.monotonic()
        asked = [example.text for split in NAMES for example in task.split(split)] if task.output_type == "label" else []
        compared = [one.place.text for one in texts]
        session.embedder.encode([*asked, *compared], "embedding the rows")
        seconds["embedding"] = round(time.monotonic() - started, 3)
        started = time.monotonic()
        timed(
            "likeness in meaning", similar(texts, session.embedder.encode, pieces=session.embedder, reported=findings), started
        )
        if task.output_type == "label":
            started = time.monotonic()
            labelled = [(split, row) for split in NAMES for row in task.rows[split]]
            vectors = session.embedder.encode([row.example.text for _, row in labelled])
            pools = [split for split, _ in labelled]
            timed("label noise", label_noise([row for _, row in labelled], vectors, task.spec.seed, pools), started)
    findings = [_brief(one) for one in findings]
    ordered = sorted(findings, key=lambda one: LEVELS.index(one.level))
    return Checked(Checks(tuple(ordered), tuple(not_checked), seconds), mask)


def _engine_here(task: Task, session: Session, *, fetch: bool) -> HfEngine | None:
    """The engine to count tokens with, where its tokeniser is on this machine."""
    model = task.spec.model
    if model.served or not (fetch or is_here(task.located(model.model_name_or_path))):
        return None
    return session.weights


def _why_no_lengths(task: Task) -> str:
    if task.spec.model.served:
        return "lengths in tokens and what is trained on: the model is served, its tokeniser is not here"
    name = task.spec.model.model_name_or_path
    return f"lengths in tokens and what is trained on: {name} is not on this machine yet (`advisor bench` fetches it)"


def _brief(finding: Finding) -> Finding:
    """With texts short enough to read: a record is not a copy of the documents."""
    places = tuple(replace(one, text=shortened(one.text, SHOWN)) for one in finding.places)
    return replace(finding, places=places)


def texts_of(task: Task) -> list[Text]:
    """What can leak into something else, and stands in the task's own files: the inputs of rows, of preferences and of replay."""
    texts = [Text(place_of(row, split), named_group(row.example)) for split in NAMES for row in task.rows[split]]
    texts += [Text(place_of(row, "preferences"), named_group(row.example)) for row in task.preferences]
    texts += [Text(place_of(row, "replay"), named_group(row.example)) for row in task.replay]
    return texts


def general_texts(task: Task) -> list[Text]:
    """The items of the general benchmarks that the run will ask. Raises AdvisorError where a benchmark's data cannot be had."""
    named = task.spec.general
    suites = (*named.suite, "standard") if named.confirm == "standard" and "standard" not in named.suite else named.suite
    found = []
    for one in suite_of(
        suites, beside=task.folder, limit=named.limit, seed=task.spec.seed, trust_task_code=named.trust_task_code
    ).tasks:
        if isinstance(one, NamedTask):
            found += [Text(Place("general", name, one.name, 0, text)) for name, text in one.asked().items()]
        else:
            found += [Text(Place("general", name, str(path), line, text)) for name, path, line, text in item_texts([one])]
    return found


def place_of(row: Row, split: str) -> Place:
    pools: dict[str, Pool] = {"train": "train", "dev": "dev", "test": "test", "preferences": "preferences", "replay": "replay"}
    text = "\n".join(message.content for message in row.example.messages if message.role != "system")
    return Place(pools[split], row.example.id, row.file, row.line, text)


def tell(checks: Checks, on_event: OnEvent) -> None:
    if not checks.findings:
        on_event(Note("the data were checked: no leak between the splits, no doubtful row or label, no personal data"))
    for level, sentence in checks.sentences():
        on_event(Note(sentence, "warning" if level in {"error", "warning"} else "info"))
