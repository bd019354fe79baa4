"""The stages in order. `until` names the last one that is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from advisor.flow.advice import advice
from advisor.flow.baselines import baselines
from advisor.flow.forgetting import require_benchmarks
from advisor.flow.intake import intake
from advisor.flow.reevaluation import reevaluation
from advisor.flow.remedy import remedy
from advisor.flow.repair import general_suite, repair
from advisor.flow.run import open_run
from advisor.flow.session import Session
from advisor.flow.training import training
from advisor.flow.tuned import require_trainable
from advisor.flow.verdict import verdict
from advisor.report.build import build_report
from advisor.report.journey import Journey
from advisor.report.write import write_report
from evals.events import OnEvent
from evals.task.load import Task

STAGES = ("intake", "baselines", "advice", "training", "repair", "re-evaluation", "verdict")


def go(
    task: Task,
    runs_dir: Path,
    on_event: OnEvent,
    *,
    until: str = "verdict",
    train: bool | None = None,
    remedied: bool = False,
) -> Journey:
    """Run the stages up to `until`. What is recorded already is not done again.

    `train`: None follows the recommendation; True trains whatever it says (the user asked for it by name). `remedied`: before repair
    the next training is run that may forget less.
    """
    last = STAGES.index(until)
    with open_run(task, runs_dir, on_event) as run:
        session = Session(task, run.on_event)
        if task.spec.gate.benchmarks:
            require_benchmarks(task, general_suite(task))
        if train:
            session.require_weights()  # now, not after the baselines were paid for
        if not task.spec.model.served and not (run.folder / "training" / "training.json").is_file():
            require_trainable(task, session.weights)
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
                trained = training(task, run, session, arms, found, recommendation)
                journey = replace(journey, trained=trained)
            mended = None
            if trained is not None and last >= STAGES.index("repair"):
                if remedied:
                    remedy(task, run, session)
                mended = repair(task, run, session, arms, found, recommendation, trained, checks)
                journey = replace(journey, repair=mended)
            if last >= STAGES.index("re-evaluation"):
                result = reevaluation(task, run, session, arms, found, recommendation, trained, checks, mended)
                decided = verdict(task, run, recommendation, result) if last >= STAGES.index("verdict") else None
                journey = replace(journey, reevaluated=result, verdict=decided)
        write_report(run.folder, build_report(journey))
        return journey
