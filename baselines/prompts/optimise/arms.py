"""The arms of the searches that a task file asks for: each method once, its outcome kept, an arm where it helped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.prompts.optimise.gepa import gepa
from baselines.prompts.optimise.mipro import mipro, require_dspy
from baselines.prompts.optimise.proposals import answer_form
from baselines.prompts.optimise.propose import propose
from baselines.prompts.optimise.rows import parted
from baselines.prompts.optimise.search import Meter, Optimised, Search, Spent, Tried
from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import PromptFormat
from evals.engines.engine import Engine
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Progress, Ticker
from evals.metrics.metric import Metric
from evals.records import content_hash, read_json, write_json
from evals.task.example import Example
from evals.task.load import Task

METHODS: dict[str, Callable[[Search], Optimised]] = {"propose": propose, "gepa": gepa, "mipro": mipro}
# Of what a search does with the same inputs: raised where it changes.
VERSION = 1


def optimised_arms(
    task: Task,
    engine: Engine,
    proposer: Engine,
    metrics: Sequence[Metric],
    folder: Path,
    on_event: OnEvent,
    described: str = "",
) -> list[Prompt]:
    """One arm, `optimised_<method>`, for each method of `optimise:` whose wording scored above the incumbents'.

    Only training rows are used. Each method has the whole budget of requests; its outcome is in `folder/<method>.json`,
    and is taken from there where the inputs are the same. `described` is an instruction written by rule, an incumbent
    beside the user's own. Raises AdvisorError where a method's library is missing or fails.
    """
    wanted = task.spec.optimise
    if not wanted.requests or not wanted.methods:
        return []
    methods = tuple(dict.fromkeys(wanted.methods))
    if "mipro" in methods:
        # Before anything is spent.
        require_dspy()
    learn, hold = parted(task.train, wanted.requests, task.spec.seed, f"{task.instruction}\n{described}")
    if not hold:
        on_event(Note(f"no search for a better prompt: {len(task.train)} training rows are too few to choose by"))
        return []
    search = Search(
        engine,
        proposer,
        metrics[0],
        answer_format(task, engine),
        task.instruction,
        answer_form(task),
        learn,
        hold,
        Meter(wanted.requests),
        task.spec.seed,
        described,
    )
    arms = []
    for method in methods:
        outcome, reused = _outcome(method, search, folder / f"{method}.json", on_event)
        on_event(Note(said(outcome, reused=reused)))
        if outcome.improved:
            arms.append(_arm(search, outcome, on_event))
    return arms


def said(outcome: Optimised, *, reused: bool = False) -> str:
    """What was spent and what came out, for people."""
    spent = outcome.spent
    begun = f"{outcome.method}: {spent.requests} requests ({spent.answers} answers, {spent.proposals} proposals)"
    begun += " in an earlier search" if reused else ""
    if not outcome.items:
        return f"{begun}: too few to compare anything"
    with_shots = f" with {len(outcome.shots)} demonstrations" if outcome.shots else ""
    if outcome.improved:
        return (
            f"{begun}: the instruction{with_shots} scores {outcome.score:.3f} against {outcome.incumbent_score:.3f} "
            f"on the {outcome.items} training rows that chose it; dev tells what it is worth"
        )
    tried = sum(not one.refused for one in outcome.history)
    refused = len(outcome.history) - tried
    left_out = f", {refused} proposals were refused unasked" if refused else ""
    return (
        f"{begun}: no proposal helped, the instruction stays as it is "
        f"({outcome.incumbent_score:.3f} on {outcome.items} training rows{left_out})"
    )


def _outcome(method: str, search: Search, path: Path, on_event: OnEvent) -> tuple[Optimised, bool]:
    """From the record where it was made from the same inputs, else by a search of its own; and which it was."""
    key = _key(method, search)
    rows = {row.id: row for row in (*search.learn, *search.hold)}
    kept = _kept(path, key, rows)
    if kept is not None:
        return kept, True
    budget = search.meter.budget
    ticker = Ticker(on_event, f"searching for a better prompt ({method})", budget, "requests")
    # Each method begins with nothing asked, or the order of the methods would change what they find.
    found = METHODS[method](replace(search, meter=Meter(budget, ticker)))
    # A search may end before its budget does; a total of 0 would mean that it is not known.
    done = max(1, found.spent.requests)
    on_event(Progress(ticker.task, done, done, "requests"))
    write_json(path, {"input_hash": key, **_record(found)})
    return found, False


def _key(method: str, search: Search) -> str:
    """Of everything that the search depends on."""
    return content_hash(
        [
            VERSION,
            method,
            search.engine.fingerprint,
            search.proposer.fingerprint,
            search.metric.name,
            search.metric.settings,
            search.answers,
            search.instruction,
            search.described,
            search.form,
            search.learn,
            search.hold,
            search.meter.budget,
            search.seed,
        ]
    )


def _record(found: Optimised) -> dict[str, Any]:
    """As JSON; of a demonstration its row and its answer, which may be the model's own."""
    return {
        "method": found.method,
        "instruction": found.instruction,
        "shots": [{"id": one.id, "target": one.target} for one in found.shots],
        "spent": found.spent,
        "history": found.history,
        "improved": found.improved,
        "score": found.score,
        "incumbent_score": found.incumbent_score,
        "items": found.items,
    }


def _kept(path: Path, key: str, rows: Mapping[str, Example]) -> Optimised | None:
    """The outcome on disk, where it is whole and made from the same inputs."""
    if not path.is_file():
        return None
    try:
        body = read_json(path)
        if body.get("input_hash") != key:
            return None
        return Optimised(
            body["method"],
            body["instruction"],
            tuple(replace(rows[one["id"]], target=one["target"]) for one in body["shots"]),
            Spent(**body["spent"]),
            tuple(Tried(**one) for one in body["history"]),
            body["improved"],
            body["score"],
            body["incumbent_score"],
            body["items"],
        )
    except (AdvisorError, KeyError, TypeError):
        return None


def _arm(search: Search, found: Optimised, on_event: OnEvent) -> Prompt:
    shots = found.shots
    return Prompt(
        f"optimised_{found.method}",
        search.engine,
        PromptFormat(found.instruction),
        search.answers,
        "optimised",
        (lambda examples: [shots] * len(examples)) if shots else None,
        {"choose": "optimised", "shots": content_hash(shots), "count": len(shots)} if shots else None,
        on_event=on_event,
    )
