"""Re-evaluation: the locked test is opened, once, for one claim; and base against tuned on general benchmarks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advisor.decision.compare import Comparison, adjusted, compare, without
from advisor.decision.cost import cheapness
from advisor.decision.outcome import General, Reevaluation
from advisor.decision.raced import REFERENCE
from advisor.decision.recommend import Recommendation
from advisor.decision.repair import Repair
from advisor.decision.rules import ON_TUNED
from advisor.flow.advice import groups_of
from advisor.flow.baselines import Finalists
from advisor.flow.card_scores import keep_scores
from advisor.flow.forgetting import measured_forgetting
from advisor.flow.judged import judged_claim, judges
from advisor.flow.repair import confirm_suite, general_suite
from advisor.flow.run import EXAMPLES, Run
from advisor.flow.session import Session
from advisor.flow.tuned import asked_as_trained, recipe_for
from baselines.rag.candidate import under
from evals.candidate import Candidate
from evals.errors import AdvisorError
from evals.evaluate import evaluate
from evals.events import Note
from evals.records import write_json
from evals.scores import Scores
from evals.task.checks.findings import Checks
from evals.task.load import Task
from evals.task.splits import MIN_ROWS, row_hash
from trainer.job import TrainedAdapter

NOT_DEARER = 1.5
# After training, so many of each kind stand beside the claim on the locked test: more would only spread its error thinner.
BESIDE = 2


def reevaluation(
    task: Task,
    run: Run,
    session: Session,
    arms: tuple[Scores, ...],
    found: Finalists,
    recommendation: Recommendation,
    trained: TrainedAdapter | None,
    checks: Checks,
    mended: Repair | None = None,
) -> Reevaluation:
    """Write `scores/test/`, `general/` and `reevaluation.json`. Weights that repair has chosen stand in the place of the trained ones."""
    if trained is not None and mended is not None and mended.weights:
        trained = replace(trained, folder=run.path(mended.weights))

    def make() -> tuple[Reevaluation, str, bool]:
        candidates = found.named()
        names = _compared(arms, recommendation, trained is not None, task)
        if trained is not None:
            recipe = recipe_for(task, session.weights)
            candidates["tuned"] = asked_as_trained(task, session, recipe, trained.folder, "tuned", run.folder)
            pipeline = found.pipeline(arms)
            if recommendation.action == ON_TUNED and pipeline is not None:
                candidates[ON_TUNED] = under(pipeline, session.weights.with_adapter(trained.folder, "tuned"), ON_TUNED)
        looks = Ledger(task, run)
        weights = session.weights.with_adapter(trained.folder, "tuned").fingerprint if trained is not None else ""
        there = all((run.scores / "test" / f"{name}.json").is_file() for name in names)
        earlier, fresh = looks.count(weights), not there or looks.of_other_weights(weights)
        if fresh:
            looks.add(names, weights)
            run.on_event(Note(f"the locked test is opened for {names[0]} against {names[1]}"))
        scores = [_on_test(task, run, session, candidates[name]) for name in names]
        if trained is not None:
            keep_scores(run, trained.folder, scores)
        comparisons = adjusted([compare(scores[0], other, groups_of(task, "test")) for other in scores[1:]])
        general, reused = _general(task, run, session, trained, checks, mended) if trained is not None else (None, True)
        tainted, clean = _clean_claim(task, scores, checks)
        claim, judge = judged_claim(task, run.folder, comparisons[0], scores[0], scores[1], groups_of(task, "test"))
        comparisons[0] = claim
        record = Reevaluation(
            names[0], comparisons[0], tuple(comparisons[1:]), tuple(scores), general, earlier, tainted, clean, judge
        )
        _write(run, record)
        gain = comparisons[0]
        summary = f"{gain.a} {scores[0].mean:.3f} against {gain.b} {scores[1].mean:.3f} on {gain.n} locked test items"
        if general:
            lost = general.measures
            summary += f"; general {lost.base:.3f} to {lost.tuned:.3f}, no loss beyond {100 * lost.pooled.margin:g} points: "
            summary += lost.pooled.answer
        return record, summary, reused and not fresh

    return run.stage("re-evaluation", "Open the locked test, measure forgetting", make)


def _compared(arms: Sequence[Scores], recommendation: Recommendation, trained: bool, task: Task) -> list[str]:
    """The chosen candidate, its best cheaper rival by dev, and after training the best few real arms of every kind."""
    served = task.spec.model.served
    by_dev = sorted(arms, key=lambda arm: (-round(arm.mean, 9), *cheapness(arm, task.spec.prices, served=served)))
    if trained:
        real = [arm for arm in by_dev if arm.kind != "trivial"]
        kinds = {arm.kind: [one.candidate for one in real if one.kind == arm.kind][:BESIDE] for arm in real}
        beside = {REFERENCE, *(name for names in kinds.values() for name in names)}
        # Weights that were trained against the advice are asked as they were trained.
        first = recommendation.candidate if recommendation.trains else "tuned"
        # The claim is made against the second, which has unchanged weights.
        return list(dict.fromkeys([first, *(arm.candidate for arm in real if arm.candidate in beside), "tuned"]))
    chosen = next((arm for arm in arms if arm.candidate == recommendation.candidate), None)
    if chosen is None:
        raise AdvisorError(
            f"the recommendation is {recommendation.action}, and nothing is trained yet",
            where=task.name,
            do="train first (`advisor train`, or `advisor run` for the whole journey): the locked test is opened once.",
        )
    # Requests of one length differ in seconds by noise: half as much again is not dearer. Two retrievers are one way to answer.
    limit = NOT_DEARER * cheapness(chosen, task.spec.prices, served=served)[0]
    rivals = [arm for arm in by_dev if arm is not chosen and not (arm.kind == chosen.kind == "rag")]
    cheaper = [arm for arm in rivals if cheapness(arm, task.spec.prices, served=served)[0] <= limit]
    rival = (cheaper or rivals)[0]
    return [chosen.candidate, rival.candidate]


def _clean_claim(task: Task, scores: Sequence[Scores], checks: Checks) -> tuple[tuple[str, ...], Comparison | None]:
    """The test items that the checks call tainted, and the claim once more without them (not where a judge decides)."""
    tainted = checks.tainted("test")
    kept = [at for at, example in enumerate(task.test) if example.id not in tainted]
    if not tainted or len(kept) < MIN_ROWS or judges(task):
        return tuple(sorted(tainted)), None
    groups = groups_of(task, "test")
    names = None if groups is None else [groups[at] for at in kept]
    return tuple(sorted(tainted)), compare(without(scores[0], tainted), without(scores[1], tainted), names)


def _on_test(task: Task, run: Run, session: Session, candidate: Candidate) -> Scores:
    return evaluate(task, candidate, "test", run.scores, run.on_event, session.metrics)


def _general(
    task: Task, run: Run, session: Session, trained: TrainedAdapter, checks: Checks, mended: Repair | None
) -> tuple[General, bool]:
    """On the whole suite, or, where weights were chosen by a half of it, on items that chose nothing."""
    suite = general_suite(task) if mended is None else confirm_suite(task, mended)
    return measured_forgetting(task, run, session, suite, session.weights.with_adapter(trained.folder, "tuned"), checks)


def _write(run: Run, record: Reevaluation) -> None:
    general = record.general
    body = {
        "chosen": record.chosen,
        "claim": record.claim,
        "others": record.others,
        "earlier_looks": record.earlier_looks,
        "judge": record.judge,
        "tainted": record.tainted,
        "claim_without_tainted": record.claim_without_tainted,
        "test": {one.candidate: one.mean for one in record.test},
        "general": None
        if general is None
        else {
            "suite": general.measures.suite,
            "forgetting": general.forgetting,
            "tasks": {one.task: {"n": one.n, "base": one.base, "tuned": one.tuned} for one in general.measures.benchmarks},
        },
    }
    write_json(run.path("reevaluation.json"), body)


class Ledger:
    """Every look at a locked test, kept beside the task (a shipped example's: beside the runs), by the hashes of its rows.

    A row that was looked at stays looked at when others come or go: a look counts for every test that shares rows with it.
    """

    def __init__(self, task: Task, run: Run) -> None:
        self.rows = [row_hash(example)[:8] for example in task.test]
        self.run = run
        beside_runs = run.folder.parent
        home = task.folder if EXAMPLES not in task.folder.resolve().parents else beside_runs
        self.path = home / "ledger.jsonl" if os.access(home, os.W_OK) else beside_runs / "ledger.jsonl"

    def count(self, weights: str) -> int:
        """Looks at rows of this test by other runs, and by this one for other weights (repaired, or trained otherwise since)."""
        mine = set(self.rows)
        others = [one for one in self._lines() if one.get("run") != self.run.id or one.get("weights", weights) != weights]
        return sum(1 for one in others if mine & set(map(str, _list(one.get("rows")))))

    def of_other_weights(self, weights: str) -> bool:
        """Whether this run's last look was for other weights than these."""
        own = [one for one in self._lines() if one.get("run") == self.run.id]
        return bool(own) and own[-1].get("weights", weights) != weights

    def add(self, names: Sequence[str], weights: str) -> None:
        line = {"at": time.time(), "run": self.run.id, "candidates": list(names), "rows": self.rows, "weights": weights}
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, object]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return []
        lines = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return [one for one in lines if isinstance(one, dict)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
