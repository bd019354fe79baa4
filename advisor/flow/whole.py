"""The stages in order. `until` names the last one that is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from advisor.flow.advice import advice
from advisor.flow.baselines import baselines
from advisor.flow.intake import intake
from advisor.flow.reevaluation import reevaluation
from advisor.flow.run import open_run
from advisor.flow.session import Session
from advisor.flow.training import training
from advisor.flow.verdict import verdict
from advisor.report.build import build_report
from advisor.report.journey import Journey
from advisor.report.write import write_report
from evals.events import OnEvent
from evals.task.load import Task

STAGES = ("intake", "baselines", "advice", "training", "re-evaluation", "verdict")


def go(task: Task, runs_dir: Path, on_event: OnEvent, *, until: str = "verdict", train: bool | None = None) -> Journey:
    """Run the stages up to `until`. What is recorded already is not done again.

    `train`: None follows the recommendation; True trains whatever it says (the user asked for it by name).
    """
    last = STAGES.index(until)
    with open_run(task, runs_dir, on_event) as run:
        session = Session(task, run.on_event)
        if train:
            session.require_weights()  # now, not after the baselines were paid for
        checks = intake(task, run, session)
        journey = Journey(run.folder, task, checks=checks)
        if last >= STAGES.index("baselines"):
            arms, found = baselines(task, run, session)
            journey = replace(journey, arms=arms, race=found.race, retrievals=found.retrieved.retrievals)
        if last >= STAGES.index("advice"):
            recommendation = advice(task, run, session, arms, found)
            journey = replace(journey, recommendation=recommendation)
            trained = None
            wanted = recommendation.trains if train is None else train
            if wanted and last >= STAGES.index("training"):
                trained = training(task, run, session)
                journey = replace(journey, trained=trained)
            if last >= STAGES.index("re-evaluation"):
                result = reevaluation(task, run, session, arms, found, recommendation, trained, checks)
                decided = verdict(task, run, recommendation, result) if last >= STAGES.index("verdict") else None
                journey = replace(journey, reevaluated=result, verdict=decided)
        write_report(run.folder, build_report(journey))
        return journey
