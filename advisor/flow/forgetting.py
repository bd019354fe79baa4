"""What a training cost in general: tuned against base on the same items of a suite, and how far it moved where nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from advisor.decision.forgetting import forgetting
from advisor.decision.outcome import General
from advisor.flow.run import Run, reuse
from advisor.flow.session import Session
from advisor.flow.tuned import prompt_format, recipe_for
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, did_you_mean
from evals.events import Note, waiting
from evals.general.divergence import Divergence, general_divergence, general_texts, prompt_divergence
from evals.general.lm_eval import measure
from evals.general.named import NamedTask
from evals.general.suites import Suite, rows_of, text_of
from evals.records import content_hash, write_json
from evals.statistics.margin import chance_of_passing, loss_found
from evals.task.checks.findings import Checks
from evals.task.load import Task

RECORD = "forgetting.json"
DIVERGENCE = "divergence.json"


def measured_forgetting(
    task: Task, run: Run, session: Session, suite: Suite, tuned: HfEngine, checks: Checks
) -> tuple[General, bool]:
    """Write `general/`: both models' items, `divergence.json` and `forgetting.json`. Returns also whether all but the last was there.

    `tuned` are trained (or repaired) weights of the session's model. The base is asked first: it is kept for other runs too.
    """
    margin, told, folder = task.spec.gate.max_forgetting, run.on_event, run.path("general")
    require_benchmarks(task, suite)
    key = content_hash([session.weights.fingerprint, tuned.fingerprint, suite.name, [one.digest for one in suite.tasks]])
    if reuse(folder / RECORD, key) is None:
        told(Note(what_shows(suite, margin)))
    base, base_there = measure(session.weights, suite, folder, "base", told)
    scores, tuned_there = measure(tuned, suite, folder, "tuned", told)
    learnt = checks.tainted_general()
    if left_out := len(learnt & {one.id for one in base.items}):
        told(Note(f"{left_out} general items stand in the training rows: they say nothing of forgetting and are left out"))
    divergences, read_there = _divergences(task, session, tuned, folder)
    found = forgetting(base, scores, suite, margin, excluded=learnt, asked=_asked(suite), divergences=divergences)
    write_json(folder / RECORD, {"input_hash": key, **asdict(found)})
    return General(base, scores, found), base_there and tuned_there and read_there


def require_benchmarks(task: Task, suite: Suite) -> None:
    """Raises AdvisorError where the gate names a benchmark that the suite does not measure."""
    known = [one.name for one in suite.tasks]
    for name in task.spec.gate.benchmarks:
        if name not in known:
            raise AdvisorError(
                f"gate.benchmarks names {name}, which the suite {suite.name} does not measure{did_you_mean(name, known)}",
                where=str(task.folder / "task.yaml"),
                do=f"name some of: {', '.join(known)}.",
            )


def what_shows(suite: Suite, margin: float) -> str:
    """What the suite can show, to be said before it is run."""
    n = sum(one.items for one in suite.tasks if one.pooled)
    if not n:
        return f"suite {suite.name}: none of its benchmarks is pooled, so that nothing decides about forgetting"
    chance, loss = chance_of_passing(n, margin), loss_found(n, margin)
    return (
        f"suite {suite.name}: {n} pooled items at a margin of {100 * margin:g} points: a model without true loss passes in "
        f"{100 * chance:.0f}%, and a true loss of {100 * loss:.0f} points is called broken in 80%"
    )


def _asked(suite: Suite) -> Mapping[str, str]:
    """What each item asks."""
    found: dict[str, str] = {}
    for task in suite.tasks:
        if isinstance(task, NamedTask):
            found |= task.asked()
            continue
        found |= {str(row["id"]): text_of(row) for row in rows_of(task)}
    return found


def _divergences(task: Task, session: Session, tuned: HfEngine, folder: Path) -> tuple[tuple[Divergence, ...], bool]:
    """On general text and on the prompts of dev, as the tuned model is asked; kept with the weights that they are of."""
    fmt = prompt_format(task, recipe_for(task, session.weights))
    prompts = [fmt.messages(example) for example in task.dev]
    path, base = folder / DIVERGENCE, session.weights
    key = content_hash([base.fingerprint, tuned.fingerprint, general_texts(), prompts])
    if kept := reuse(path, key):
        return tuple(Divergence(**one) for one in kept["divergences"]), True
    with waiting(session.on_event, f"how far {tuned.name} is from its base"):
        found = (general_divergence(base, tuned), prompt_divergence(base, tuned, prompts))
    divergences = tuple(one for one in found if one is not None)
    write_json(path, {"input_hash": key, "divergences": divergences})
    return divergences, False
