"""A journey -> the report as data (`report.json`), from which every other form is drawn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from advisor.decision.compare import without
from advisor.decision.cost import cost_per_1k
from advisor.report.forgetting import forgetting_record
from advisor.report.journey import Journey
from advisor.report.money import build_money
from baselines.rag.relevance import Retrieval
from evals.records import content_hash, read_json
from evals.scores import Scores
from evals.statistics.paired import mean_interval
from evals.task.checks.findings import counts
from evals.task.load import Task
from trainer.job import flattering
from trainer.recipe import Recipe

SHOWN_EXAMPLES = 3
SHOWN_CHARACTERS = 400


def build_report(journey: Journey) -> dict[str, Any]:
    task = journey.task
    result = journey.reevaluated
    return {
        "run": journey.folder.name,
        "task": {
            "name": task.name,
            "model": task.spec.model.model_name_or_path,
            "output_type": task.output_type,
            "metrics": task.metrics,
            "rows": {name: len(task.split(name)) for name in ("train", "dev", "test")},
            "documents": len(task.documents),
            "target": task.spec.target,
            "gate": task.spec.gate.model_dump(),
            "hash": task.hash(),
            "test_hash": content_hash(task.test)[:16],
            "seed": task.spec.seed,
        },
        "data": _data(journey),
        "dev": [_row(one, task, "dev", journey.checks.tainted("dev") if journey.checks else ()) for one in journey.arms],
        "race": asdict(journey.race) if journey.race and journey.race.left else None,
        "retrieval": [_retrieval(one) for one in journey.retrievals],
        "recommendation": asdict(journey.recommendation) if journey.recommendation else None,
        "training": _training(journey),
        "repair": asdict(journey.repair) if journey.repair else None,
        "test": [_row(one, task, "test", result.tainted) for one in result.test] if result else [],
        "claim": asdict(result.claim) if result else None,
        "judge": asdict(result.judge) if result and result.judge else None,
        "tainted": len(result.tainted) if result else 0,
        "claim_without_tainted": asdict(result.claim_without_tainted) if result and result.claim_without_tainted else None,
        "other_comparisons": [asdict(one) for one in result.others] if result else [],
        "earlier_looks": result.earlier_looks if result else 0,
        "general": forgetting_record(result.general.measures) if result and result.general else None,
        "money": build_money(journey),
        "examples": _examples(journey),
        "verdict": asdict(journey.verdict) if journey.verdict else None,
    }


def _training(journey: Journey) -> dict[str, Any] | None:
    trained = journey.trained
    if trained is None:
        return None
    recipe = Recipe.of(read_json(journey.folder / "training" / "recipe.json"))
    chosen = flattering(recipe, trained.chosen_of)
    return {**asdict(trained), "folder": trained.folder.name, "method": recipe.title, "chosen_on_dev": chosen}


def _data(journey: Journey) -> dict[str, Any] | None:
    """What the checks of the data found: how many of each kind, and the first of them in words."""
    checks = journey.checks
    if checks is None:
        return None
    lines = [{"level": level, "sentence": sentence} for level, sentence in checks.sentences()]
    return {"counts": counts(checks), "lines": lines, "seconds": checks.seconds}


def _row(scores: Scores, task: Task, split: str, tainted: Collection[str] = ()) -> dict[str, Any]:
    groups = None
    if any(example.group for example in task.split(split)):
        groups = [example.group or example.id for example in task.split(split)]
    interval = mean_interval(scores.values(), groups)
    return {
        "candidate": scores.candidate,
        "kind": scores.kind,
        "score": scores.mean,
        "score_without_tainted": without(scores, tainted).mean if 0 < len(tainted) < len(scores.items) else None,
        "low": interval.low,
        "high": interval.high,
        "n": len(scores.items),
        "skipped": scores.skipped,
        "other_metrics": {name: scores.average(name) for name in (*task.metrics[1:], "tolerant")},
        "cost_per_1k": asdict(cost_per_1k(scores, task.spec.prices)),
    }


def _retrieval(one: Retrieval) -> dict[str, Any]:
    """What one way to search finds, without what it found for each question."""
    return {
        "way": one.name,
        "n": one.n,
        "kind": one.kind,
        "unmeasured": dict(one.unmeasured),
        "milliseconds": one.milliseconds,
        "figures": {name: {"value": value, "low": low, "high": high} for name, (value, low, high) in one.figures.items()},
    }


def _examples(journey: Journey) -> list[dict[str, str]]:
    """Test items on which the chosen candidate and its rival differ most, the first few: a reader judges for herself."""
    result = journey.reevaluated
    if result is None:
        return []
    by_id = {example.id: example for example in journey.task.test}
    pairs = sorted(
        zip(result.test[0].items, result.test[1].items, strict=True),
        key=lambda pair: -abs(pair[0].score - pair[1].score),
    )
    won = [pair for pair in pairs if pair[0].score > pair[1].score][: SHOWN_EXAMPLES - 1]
    lost = [pair for pair in pairs if pair[0].score < pair[1].score][: SHOWN_EXAMPLES - len(won)]
    return [
        {
            "id": one.id,
            "input": by_id[one.id].text[:SHOWN_CHARACTERS],
            "target": by_id[one.id].target[:SHOWN_CHARACTERS],
            result.test[0].candidate: one.output[:SHOWN_CHARACTERS],
            result.test[1].candidate: other.output[:SHOWN_CHARACTERS],
        }
        for one, other in [*won, *lost]
    ]
