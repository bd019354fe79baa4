"""Re-evaluation: the locked test is opened, once, for one claim; and base against tuned on general benchmarks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from advisor.decision.compare import Comparison, adjusted, compare, without
from advisor.decision.cost import cheapness
from advisor.decision.outcome import General, Reevaluation
from advisor.decision.recommend import ON_TUNED, Recommendation
from advisor.flow.advice import groups_of
from advisor.flow.baselines import Finalists
from advisor.flow.judged import judged_claim, judges
from advisor.flow.race import REFERENCE
from advisor.flow.run import EXAMPLES, Run
from advisor.flow.session import Session
from advisor.flow.tuned import prompt_format, recipe_for, tuned_candidate
from baselines.rag.candidate import under
from evals.candidate import Candidate
from evals.errors import AdvisorError
from evals.evaluate import evaluate
from evals.events import Note
from evals.general.lm_eval import measure
from evals.general.suites import quick_suite
from evals.records import write_json
from evals.scores import Scores
from evals.statistics.margin import chance_of_passing, non_inferiority
from evals.task.checks.findings import Checks
from evals.task.load import Task
from evals.task.splits import MIN_ROWS, row_hash
from trainer.job import TrainedAdapter

SUITE = "quick"
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
) -> Reevaluation:
    """Write `scores/test/`, `general/` and `reevaluation.json`."""

    def make() -> tuple[Reevaluation, str, bool]:
        candidates = found.named()
        names = _compared(arms, recommendation, trained is not None, task)
        if trained is not None:
            fmt = prompt_format(task, recipe_for(task, session.weights))
            candidates["tuned"] = tuned_candidate(task, session, trained.folder, "tuned", fmt)
            pipeline = found.pipeline(arms)
            if recommendation.action == ON_TUNED and pipeline is not None:
                candidates[ON_TUNED] = under(pipeline, session.weights.with_adapter(trained.folder, "tuned"), ON_TUNED)
        looks = Ledger(task, run)
        earlier, fresh = looks.count(), not all((run.scores / "test" / f"{name}.json").is_file() for name in names)
        if fresh:
            looks.add(names)
            run.on_event(Note(f"the locked test is opened for {names[0]} against {names[1]}"))
        scores = [_on_test(task, run, session, candidates[name]) for name in names]
        comparisons = adjusted([compare(scores[0], other, groups_of(task, "test")) for other in scores[1:]])
        general, reused = _general(task, run, session, trained, checks) if trained is not None else (None, True)
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
            summary += f"; general {general.base.mean:.3f} to {general.tuned.mean:.3f}"
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


def _general(task: Task, run: Run, session: Session, trained: TrainedAdapter, checks: Checks) -> tuple[General, bool]:
    tasks = quick_suite()
    margin = task.spec.gate.max_forgetting
    n = sum(one.items for one in tasks)
    chance = chance_of_passing(n, margin)
    run.on_event(
        Note(
            f"{n} general items at a margin of {100 * margin:.0f} points: a model without true loss passes in {100 * chance:.0f}%"
        )
    )
    folder = run.path("general")
    base, base_reused = measure(session.weights, SUITE, tasks, folder, "base", run.on_event)
    engine = session.weights.with_adapter(trained.folder, "tuned")
    tuned, tuned_reused = measure(engine, SUITE, tasks, folder, "tuned", run.on_event)
    learnt = checks.tainted_general()
    if learnt:
        run.on_event(
            Note(f"{len(learnt)} general items stand in the training rows: they say nothing of forgetting and are left out")
        )
        base, tuned = base.without(learnt), tuned.without(learnt)
    forgetting = non_inferiority([one.score for one in tuned.items], [one.score for one in base.items], margin)
    return General(base, tuned, forgetting), base_reused and tuned_reused


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
            "suite": general.base.suite,
            "forgetting": general.forgetting,
            "tasks": {
                name: {
                    "n": len(items),
                    "base": sum(one.score for one in items) / len(items),
                    "tuned": sum(one.score for one in general.tuned.by_task()[name]) / len(items),
                }
                for name, items in general.base.by_task().items()
            },
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

    def count(self) -> int:
        """Looks of other runs at rows of this test."""
        mine = set(self.rows)
        return sum(1 for one in self._lines() if one.get("run") != self.run.id and mine & set(map(str, _list(one.get("rows")))))

    def add(self, names: Sequence[str]) -> None:
        line = {"at": time.time(), "run": self.run.id, "candidates": list(names), "rows": self.rows}
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
