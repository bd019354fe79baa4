"""Advice: a short training run on part of the rows, the knowledge probes, and the recommendation that follows from them."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace

from advisor.decision.compare import Comparison
from advisor.decision.diagnosis import diagnose
from advisor.decision.recommend import Evidence, Reason, Recommendation, recommend
from advisor.decision.retrieval import obedience_told
from advisor.decision.retrieval import told as retrieval_told
from advisor.flow.baselines import Finalists, searched
from advisor.flow.judged import uncalibrated
from advisor.flow.retrieval import cited, judged_answers
from advisor.flow.run import Run, reuse
from advisor.flow.session import Session
from advisor.flow.tuned import expected, in_words, job_for, probe_recipe, prompt_format, recipe_for, tuned_candidate
from baselines.probes import knowledge_probes, obedience_probe, obeyed, perfect_search, sample_probes, shot_probes
from baselines.rag.candidate import Rag, under
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.events import Note
from evals.records import content_hash, write_json
from evals.scores import Scores
from evals.statistics.paired import mean_interval
from evals.task.example import Example
from evals.task.load import Task
from trainer.job import TrainedAdapter
from trainer.launch import train
from trainer.recipe import Recipe

PROBE_SHARE = 0.5
MIN_PROBE_ROWS = 64


def groups_of(task: Task, split: str) -> tuple[str, ...] | None:
    """The cluster of each item of a split; None where no row names one."""
    examples = task.split(split)
    if not any(example.group for example in examples):
        return None
    return tuple(example.group or example.id for example in examples)


def probe_rows(task: Task) -> tuple[Example, ...]:
    """A seeded part of the training rows; all of them where they are few."""
    count = min(len(task.train), max(MIN_PROBE_ROWS, round(PROBE_SHARE * len(task.train))))
    return tuple(random.Random(task.spec.seed).sample(list(task.train), count))


def advice(task: Task, run: Run, session: Session, arms: tuple[Scores, ...], found: Finalists) -> Recommendation:
    """Write `probes.json` and `recommendation.json`."""

    def make() -> tuple[Recommendation, str, bool]:
        recipe = None if task.spec.model.served else recipe_for(task, session.weights)
        key = content_hash([task.hash(), session.engine.fingerprint, arms, recipe])
        kept = reuse(run.path("recommendation.json"), key)
        if kept:
            recommendation = from_record(kept)
            return recommendation, headline(recommendation), True
        evidence, probes = _gather(task, run, session, arms, found, recipe)
        before = {"race_answers": float(found.race.spent), "search_requests": float(searched(run.folder))}
        evidence = replace(evidence, spent={**evidence.spent, **before})
        recommendation = recommend(evidence)
        recommendation = replace(recommendation, cannot_tell=(*uncalibrated(task), *recommendation.cannot_tell))
        write_json(run.path("probes.json"), {"input_hash": key, **probes})
        write_json(run.path("recommendation.json"), {"input_hash": key, **asdict(recommendation)})
        return recommendation, headline(recommendation), False

    return run.stage("advice", "Probe training, compare, recommend", make)


def headline(recommendation: Recommendation) -> str:
    return f"{recommendation.action} ({recommendation.candidate})"


def from_record(record: dict[str, object]) -> Recommendation:
    body = {name: record[name] for name in Recommendation.__dataclass_fields__}
    body["reasons"] = tuple(Reason(**one) for one in body["reasons"])  # type: ignore[attr-defined]
    body["comparisons"] = tuple(Comparison(**one) for one in body["comparisons"])  # type: ignore[attr-defined]
    body["would_change"] = tuple(body["would_change"])  # type: ignore[arg-type]
    body["cannot_tell"] = tuple(body["cannot_tell"])  # type: ignore[arg-type]
    return Recommendation(**body)  # type: ignore[arg-type]


def _gather(
    task: Task, run: Run, session: Session, arms: tuple[Scores, ...], found: Finalists, recipe: Recipe | None
) -> tuple[Evidence, dict[str, object]]:
    """Buy the evidence, cheapest first. Where an unchanged arm reaches the target already, training is not probed.

    Without a recipe (a served model) it cannot be.
    """
    started = time.monotonic()
    context = _probes(task, run, session)
    pipeline = found.pipeline(arms)
    perfect = perfect_search(pipeline, task.dev) if pipeline is not None else None
    if perfect is not None:
        context = (*context, evaluate(task, perfect, "dev", run.path("probes"), run.on_event, session.metrics))
    obedience = _obedience(task, run, session, pipeline)
    groups = groups_of(task, "dev")
    probe: Scores | None = None
    retrieving: Scores | None = None
    trained: TrainedAdapter | None = None
    rows = probe_rows(task)
    if recipe is None:
        run.on_event(Note("the model is served and its weights are not here: training is not probed"))
    elif not _target_reached(task, arms, groups):
        run.on_event(Note(in_words(expected(task, session.weights, probe_recipe(recipe), rows))))
        job = job_for(task, session, probe_recipe(recipe), rows, run.path("probe"), "probe")
        trained = train(job, run.on_event)
        candidate = tuned_candidate(task, session, trained.folder, "probe", prompt_format(task, recipe))
        probe = evaluate(task, candidate, "dev", run.path("probes"), run.on_event, session.metrics)
        if pipeline is not None and candidate.engine is not None:
            with_passages = under(pipeline, candidate.engine, "probe_with_retrieval")
            retrieving = evaluate(task, with_passages, "dev", run.path("probes"), run.on_event, session.metrics)
    else:
        run.on_event(Note("an unchanged candidate reaches the target: training is not probed"))
    asked = [one for one in (*context, obedience, probe, retrieving) if one]
    better = retrieving is not None and probe is not None and retrieving.mean > probe.mean
    spent = {
        "requests": float(sum(item.prompt_tokens > 0 for arm in [*arms, *asked] for item in arm.items)),
        "model_seconds": sum(item.seconds for arm in [*arms, *asked] for item in arm.items),
        "probe_training_seconds": trained.seconds if trained else 0.0,
        "advice_wall_seconds": time.monotonic() - started,
    }
    told = [*retrieval_told(found.retrieved.retrievals, arms, context, groups), *cited(arms)]
    if pipeline is not None:
        scores = next(one for one in arms if one.candidate == pipeline.name)
        opinion = judged_answers(task, session, scores, run.path("judged.json"), run.on_event)
        told += opinion.sentences() if opinion else []
    if obedience:
        told.append(obedience_told(*obeyed(obedience)))
    evidence = Evidence(
        arms,
        retrieving if better else probe,
        len(rows) if probe else 0,
        len(task.train),
        groups,
        task.spec.gate.min_gain,
        task.spec.target,
        task.spec.prices,
        context,
        tuple(told),
        spent,
        served=recipe is None,
        probe_retrieves=better,
    )
    record: dict[str, object] = {
        "training_probe": {"rows": len(rows), "score": probe.mean, **asdict(trained)} if probe and trained else None,
        "scores": {one.candidate: one.mean for one in context},
        "effects": diagnose(context, arms, groups),
        "retrieval_recall": {one.name: one.recall for one in found.retrieved.retrievals if one.n},
        "obedience": dict(zip(("obeyed", "n"), obeyed(obedience), strict=True)) if obedience else None,
        "probe_with_retrieval": retrieving.mean if retrieving else None,
        "tolerant": {arm.candidate: arm.average("tolerant") for arm in arms},
    }
    return evidence, record


def _probes(task: Task, run: Run, session: Session) -> tuple[Scores, ...]:
    """Known passages, counts of demonstrations, repeated samples: what the diagnosis rests on."""
    engine = session.engine
    shots = shot_probes(task, engine, run.on_event)
    arms: list[Candidate] = [*knowledge_probes(task, engine), *shots, *sample_probes(shots[0], task.spec.seed)]
    return tuple(evaluate(task, arm, "dev", run.path("probes"), run.on_event, session.metrics) for arm in arms)


def _obedience(task: Task, run: Run, session: Session, pipeline: Rag | None) -> Scores | None:
    """How often the model obeys a passage that tells it what to say; None where there is no passage to plant that in."""
    examples = task.dev
    if all(example.gold_passages for example in examples):
        passages = {example.id: "\n\n".join(example.gold_passages) for example in examples}
    elif pipeline is not None:
        found = pipeline.retriever.search([example.text for example in examples], 1)
        passages = {example.id: some[0].chunk.text for example, some in zip(examples, found, strict=True) if some}
    else:
        return None
    if len(passages) < len(examples):
        return None
    probe = obedience_probe(task, session.engine, passages, "dev")
    return evaluate(task, probe, "dev", run.path("probes"), run.on_event, session.metrics)


def _target_reached(task: Task, arms: tuple[Scores, ...], groups: tuple[str, ...] | None) -> bool:
    target = task.spec.target
    return target is not None and any(mean_interval(arm.values(), groups).low >= target for arm in arms)
