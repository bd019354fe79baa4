"""Baselines: every way to answer with unchanged weights, raced on dev; those that come through are scored on all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.decision.raced import Race
from advisor.flow.race import race
from advisor.flow.retrieval import Retrieved, retrieved
from advisor.flow.run import Run
from advisor.flow.session import Session
from baselines.classic.arms import classic_arms
from baselines.prompts.arms import combined, prompt_arms
from baselines.prompts.constrained import constraint_of
from baselines.prompts.instruction import described
from baselines.prompts.optimise.arms import optimised_arms
from baselines.prompts.prompt import Prompt
from baselines.rag.candidate import Rag
from baselines.tools.arms import tool_arms
from baselines.tools.demonstrations import bootstrapped
from baselines.tools.lookup import Lookup, lookup_by
from baselines.trivial import trivial_arms
from evals.candidate import Candidate
from evals.engines.engine import Constraint
from evals.evaluate import evaluate
from evals.events import Note, OnEvent
from evals.records import read_json
from evals.scores import Scores
from evals.task.load import Task

# Pipelines of retrieval that come through their race.
PIPELINES = 2


def unasking_arms(task: Task, session: Session) -> list[Candidate]:
    """Candidates that ask no model: they cost next to nothing, and are scored on everything."""
    return [*trivial_arms(task), *classic_arms(task, session.embedder)]


def asking_arms(
    task: Task, session: Session, constraint: Constraint | None, lookup: Lookup | None, folder: Path, on_event: OnEvent
) -> list[Candidate]:
    """Candidates that ask the model as it is, without retrieval. What the search for instructions finds is kept in `folder`."""
    engine, embedder = session.engine, session.embedder
    tools = tool_arms(task, engine, lookup, on_event)
    return [
        *prompt_arms(task, engine, embedder, constraint, on_event),
        *optimised_arms(task, engine, session.proposer, session.metrics, folder / "optimised", on_event, described(task)),
        *(bootstrapped(one, task, session.metrics, on_event) for one in tools),
    ]


@dataclass(frozen=True)
class Finalists:
    """What is scored on every item: those that ask no model, those that came through the race; and of the best prompt with
    demonstrations its twin among `constrained`, which enforces the form of answers."""

    arms: tuple[Candidate, ...]
    constrained: tuple[Prompt, ...]
    race: Race
    retrieved: Retrieved

    def named(self) -> dict[str, Candidate]:
        return {arm.name: arm for arm in (*self.arms, *self.constrained)}

    def pipeline(self, scores: Sequence[Scores]) -> Rag | None:
        """The pipeline of retrieval with the best of these scores; None where there is none."""
        named = {arm.name: arm for arm in self.retrieved.arms}
        some = [one for one in scores if one.candidate in named]
        return named[max(some, key=lambda one: one.mean).candidate] if some else None


def baselines(task: Task, run: Run, session: Session) -> tuple[tuple[Scores, ...], Finalists]:
    """Write `race.json` and `scores/dev/`."""

    def make() -> tuple[tuple[tuple[Scores, ...], Finalists], str, bool]:
        before = _records(run)
        found = finalists(task, run.folder, session, run.on_event)

        def scored(arm: Candidate) -> Scores:
            return evaluate(task, arm, "dev", run.scores, run.on_event, session.metrics)

        scores = [scored(arm) for arm in found.arms]
        twins = {f"{one.candidate}_constrained": one.mean for one in scores}
        best_twin = max(found.constrained, key=lambda one: twins.get(one.name, -1.0), default=None)
        if best_twin is not None:
            scores.append(scored(best_twin))
        best = max((one for one in scores if one.kind != "trivial"), key=lambda one: one.mean)
        summary = f"{len(scores)} candidates on {len(task.dev)} dev items; best {best.candidate} {best.mean:.3f} {task.metric}"
        return (tuple(scores), found), summary, before == _records(run) and bool(before)

    return run.stage("baselines", "Measure what unchanged weights can do", make)


def finalists(task: Task, folder: Path, session: Session, on_event: OnEvent) -> Finalists:
    constraint = constraint_of(task, session.engine, on_event)
    found = retrieved(task, session, folder, on_event)
    lookup = lookup_by(found.best[0].retriever) if found.best else None
    asking = asking_arms(task, session, constraint, lookup, folder, on_event)
    raced = race(task, asking, session, folder / "race.json", on_event)
    if found.arms:
        # A race of their own: what a question costs with passages is another order, and one of each must come through.
        pipelines = race(task, found.arms, session, folder / "race_rag.json", on_event, come_through=PIPELINES)
        raced = raced.joined(pipelines)
    if raced.left:
        on_event(Note(raced.sentence()))
    through = [arm for arm in (*asking, *found.arms) if arm.name in raced.through]
    twins = combined([arm for arm in through if isinstance(arm, Prompt)], constraint)
    return Finalists((*unasking_arms(task, session), *through), tuple(twins), raced, found)


def searched(folder: Path) -> int:
    """Requests that the searches for instructions have spent."""
    spent = [read_json(path)["spent"] for path in sorted((folder / "optimised").glob("*.json"))]
    return sum(one["answers"] + one["proposals"] for one in spent)


def _records(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run.scores / "dev").glob("*.jsonl")}
