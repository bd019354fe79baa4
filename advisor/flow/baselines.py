"""Baselines: every arm with unchanged weights, scored on dev by the one `evaluate()`."""

from __future__ import annotations

from advisor.flow.run import Run
from advisor.flow.session import Session
from baselines.classic.classifier import classic_arms
from baselines.prompts.prompt import prompt_arms
from baselines.rag.candidate import rag_arms
from baselines.trivial import trivial_arms
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.scores import Scores
from evals.task.load import Task


def unchanged_arms(task: Task, session: Session) -> list[Candidate]:
    """All candidates that leave the weights alone, cheapest kind first."""
    engine, embedder = session.engine, session.embedder
    return [
        *trivial_arms(task),
        *classic_arms(task, embedder),
        *prompt_arms(task, engine, embedder, engine.context_length),
        *rag_arms(task, engine, embedder),
    ]


def baselines(task: Task, run: Run, session: Session) -> tuple[Scores, ...]:
    def make() -> tuple[tuple[Scores, ...], str, bool]:
        before = _records(run)
        arms = unchanged_arms(task, session)
        scores = tuple(evaluate(task, arm, "dev", run.scores, run.on_event, session.metrics) for arm in arms)
        best = max((one for one in scores if one.kind != "trivial"), key=lambda one: one.mean)
        summary = f"{len(scores)} candidates on {len(task.dev)} dev items; best {best.candidate} {best.mean:.3f} {task.metric}"
        return scores, summary, before == _records(run) and bool(before)

    return run.stage("baselines", "Measure what unchanged weights can do", make)


def _records(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run.scores / "dev").glob("*.jsonl")}
