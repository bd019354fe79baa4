"""What a run has come to: the whole of what a report tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advisor.decision.outcome import Reevaluation
from advisor.decision.raced import Race
from advisor.decision.recommend import Recommendation
from advisor.decision.repair import Repair
from advisor.gate.policy import Verdict
from baselines.rag.relevance import Retrieval
from evals.scores import Scores
from evals.task.checks.findings import Checks
from evals.task.load import Task
from trainer.job import TrainedAdapter


@dataclass(frozen=True)
class Journey:
    """A field is None (or empty) where its stage was not wanted or did not apply."""

    folder: Path
    task: Task
    arms: tuple[Scores, ...] = ()
    recommendation: Recommendation | None = None
    trained: TrainedAdapter | None = None
    reevaluated: Reevaluation | None = None
    verdict: Verdict | None = None
    checks: Checks | None = None
    race: Race | None = None
    repair: Repair | None = None
    retrievals: tuple[Retrieval, ...] = ()

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code if self.verdict else 0
