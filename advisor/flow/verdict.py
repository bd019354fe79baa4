"""Verdict: the team's policy on what was measured, and the report that tells it all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from advisor.decision.outcome import Reevaluation
from advisor.decision.recommend import Recommendation
from advisor.flow.run import Run
from advisor.gate.policy import RuleVerdict, Verdict, decide, not_applicable
from evals.errors import AdvisorError
from evals.records import read_json, write_json
from evals.task.load import Task


def verdict(task: Task, run: Run, recommendation: Recommendation, result: Reevaluation | None) -> Verdict:
    """Write `verdict.json`."""

    def make() -> tuple[Verdict, str, bool]:
        if result is None or result.general is None:
            decided = not_applicable(recommendation.action)
        else:
            tuned = next(one for one in result.test if one.candidate == result.chosen)
            decided = decide(
                task.spec.gate,
                result.claim,
                result.general.forgetting,
                tuned,
                task.spec.prices,
                benchmarks=result.general.measures.benchmarks,
                clean=result.claim_without_tainted,
                judge=result.judge,
            )
        write_json(run.path("verdict.json"), asdict(decided))
        return decided, decided.verdict, False

    return run.stage("verdict", "Apply the gate's policy", make)


def read_verdict(folder: Path) -> Verdict:
    """The verdict of a finished run. Raises AdvisorError where there is none yet."""
    path = folder / "verdict.json"
    if not path.is_file():
        raise AdvisorError("this run has no verdict yet", where=str(folder), do="finish it with `advisor run` first.")
    body = read_json(path)
    return Verdict(body["verdict"], tuple(RuleVerdict(**one) for one in body["rules"]), body["sentence"])
