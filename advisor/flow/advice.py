"""Advice: the evidence that the decision asks for is bought, cheapest first, and the recommendation follows from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from advisor.decision.advise import gathered
from advisor.decision.compare import Comparison
from advisor.decision.diagnosis import diagnose
from advisor.decision.evidence import Evidence, Purchase, Trained
from advisor.decision.recommend import Recommendation, Variation, recommend
from advisor.decision.retrieval import obedience_told
from advisor.decision.retrieval import told as retrieval_told
from advisor.decision.rules import Reason
from advisor.decision.weighed import weigh
from advisor.flow.baselines import Finalists, searched
from advisor.flow.judged import uncalibrated
from advisor.flow.learning_curve import bought, keep_forecast, plan_of
from advisor.flow.retrieval import cited, judged_answers
from advisor.flow.run import Run, reuse
from advisor.flow.session import Session
from advisor.flow.tuned import recipe_for
from baselines.probes import knowledge_probes, obedience_probe, obeyed, perfect_search, sample_probes, shot_probes
from baselines.prompts.prompt import Prompt
from baselines.rag.candidate import Rag
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.events import Note
from evals.metrics.options import LIKENESS, Judge
from evals.records import content_hash, write_json
from evals.scores import Scores
from evals.task.load import Task
from trainer.recipe import Recipe


def groups_of(task: Task, split: str) -> tuple[str, ...] | None:
    """The cluster of each item of a split; None where no row names one."""
    examples = task.split(split)
    if not any(example.group for example in examples):
        return None
    return tuple(example.group or example.id for example in examples)


def advice(task: Task, run: Run, session: Session, arms: tuple[Scores, ...], found: Finalists) -> Recommendation:
    """Write `probes.json` and `recommendation.json`."""

    def make() -> tuple[Recommendation, str, bool]:
        recipe = None if task.spec.model.served else recipe_for(task, session.weights)
        key = content_hash([task.hash(), session.engine.fingerprint, arms, recipe])
        kept = reuse(run.path("recommendation.json"), key)
        if kept:
            recommendation = from_record(kept)
            return recommendation, headline(recommendation), True
        desk = _Desk(task, run, session, arms, found)
        evidence = gathered(desk.first(recipe), desk.buy)
        evidence = desk.told(evidence)
        recommendation = recommend(evidence)
        recommendation = replace(recommendation, cannot_tell=(*uncalibrated(task), *recommendation.cannot_tell))
        write_json(run.path("probes.json"), {"input_hash": key, **desk.record(evidence)})
        write_json(run.path("recommendation.json"), {"input_hash": key, **asdict(recommendation)})
        return recommendation, headline(recommendation), False

    return run.stage("advice", "Buy the evidence that decides, recommend", make)


def headline(recommendation: Recommendation) -> str:
    return f"{recommendation.action} ({recommendation.candidate})" + ("" if recommendation.sure else ", not sure")


def from_record(record: Mapping[str, Any]) -> Recommendation:
    body = {name: record[name] for name in Recommendation.__dataclass_fields__ if name in record}
    body["reasons"] = tuple(Reason(**one) for one in body["reasons"])
    body["comparisons"] = tuple(Comparison(**one) for one in body["comparisons"])
    body["sensitivity"] = tuple(Variation(**one) for one in body.get("sensitivity", ()))
    for name in ("would_change", "cannot_tell", "settle"):
        body[name] = tuple(body.get(name, ()))
    return Recommendation(**body)


@dataclass
class _Desk:
    """Where evidence is bought for one run: it measures what is asked for, and keeps count of what that took."""

    task: Task
    run: Run
    session: Session
    arms: tuple[Scores, ...]
    found: Finalists
    obedience: Scores | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def pipeline(self) -> Rag | None:
        return self.found.pipeline(self.arms)

    def first(self, recipe: Recipe | None) -> Evidence:
        """What is known before anything is bought."""
        task, run = self.task, self.run
        if recipe is None:
            run.on_event(Note("the model is served and its weights are not here: training is not probed"))
        return Evidence(
            arms=self.arms,
            train_rows=len(task.train),
            groups=groups_of(task, "dev"),
            min_gain=task.spec.gate.min_gain,
            target=task.spec.target,
            prices=task.spec.prices,
            traffic=task.spec.traffic,
            plan=plan_of(task, self.session, recipe) if recipe else None,
            served=recipe is None,
            verifiable=task.metric_options[0].name not in LIKENESS,
            preferences=len(task.liked_or_not),
            left=self.found.race.left,
        )

    def buy(self, wanted: Purchase, evidence: Evidence) -> Evidence:
        if wanted.what == "training":
            self.run.on_event(Note(f"training on {wanted.rows} rows: {wanted.because}"))
            trained = bought(self.task, self.run, self.session, wanted, self.pipeline)
            evidence = replace(evidence, trained=(*evidence.trained, trained))
            if not trained.full and (forecast := weigh(evidence).forecast):
                keep_forecast(self.run, forecast)
                self.run.on_event(Note(forecast.sentence()))
            return evidence
        return replace(evidence, probes=(*evidence.probes, *self._probed(wanted)))

    def _probed(self, wanted: Purchase) -> list[Scores]:
        task, engine, pipeline = self.task, self.session.engine, self.pipeline
        if wanted.what == "obedience":
            self.obedience = self._obedience()
            return []
        probes: list[Candidate] = []
        if wanted.what == "knowledge":
            probes += knowledge_probes(task, engine)
        elif wanted.what == "shots":
            probes += shot_probes(task, engine, self.run.on_event)
        elif wanted.what == "samples":
            probes += sample_probes(self._best_prompt(), task.spec.seed)
        elif pipeline is not None and (perfect := perfect_search(pipeline, task.dev)) is not None:
            probes.append(perfect)
        return [self._scored(one) for one in probes]

    def _scored(self, candidate: Candidate) -> Scores:
        return evaluate(self.task, candidate, "dev", self.run.path("probes"), self.run.on_event, self.session.metrics)

    def _best_prompt(self) -> Prompt:
        """The prompt with the best score, which samples are drawn from; zero-shot always is among them."""
        prompts = {name: one for name, one in self.found.named().items() if isinstance(one, Prompt)}
        best = max((one for one in self.arms if one.candidate in prompts), key=lambda one: one.mean)
        return prompts[best.candidate]

    def _obedience(self) -> Scores | None:
        """How often the model obeys a passage that tells it what to say; None where there is no passage to plant that in."""
        examples, pipeline = self.task.dev, self.pipeline
        if all(example.gold_passages for example in examples):
            passages = {example.id: "\n\n".join(example.gold_passages) for example in examples}
        elif pipeline is not None:
            found = pipeline.retriever.search([example.text for example in examples], 1)
            passages = {example.id: some[0].chunk.text for example, some in zip(examples, found, strict=True) if some}
        else:
            return None
        if len(passages) < len(examples):
            return None
        return self._scored(obedience_probe(self.task, self.session.engine, passages, "dev"))

    def told(self, evidence: Evidence) -> Evidence:
        """The evidence with what retrieval finds, in sentences, and with what all of it took."""
        found, pipeline = self.found, self.pipeline
        told = [*retrieval_told(found.retrieved.retrievals, self.arms, evidence.probes, evidence.groups), *cited(self.arms)]
        if pipeline is not None and any(isinstance(one, Judge) for one in self.task.metric_options):
            scores = next(one for one in self.arms if one.candidate == pipeline.name)
            path = self.run.path("judged.json")
            opinion = judged_answers(self.task, self.session, scores, path, self.run.on_event)
            told += opinion.sentences() if opinion else []
        if self.obedience:
            told.append(obedience_told(*obeyed(self.obedience)))
        return replace(evidence, retrieval=tuple(told), spent=self._spent(evidence))

    def _spent(self, evidence: Evidence) -> dict[str, float]:
        """Requests and seconds of the answers that lie there; those of the race on part of the items stand apart."""
        trained = [one for each in evidence.trained for one in (each.scores, each.retrieving) if one]
        asked = [*self.arms, *evidence.probes, *trained, *([self.obedience] if self.obedience else [])]
        return {
            "requests": float(sum(item.prompt_tokens > 0 for arm in asked for item in arm.items)),
            "model_seconds": sum(item.seconds for arm in asked for item in arm.items),
            "probe_training_seconds": sum(one.seconds for one in evidence.trained),
            "advice_wall_seconds": time.monotonic() - self.started,
            "race_answers": float(self.found.race.spent),
            "search_requests": float(searched(self.run.folder)),
        }

    def record(self, evidence: Evidence) -> dict[str, Any]:
        """`probes.json`: every score that the recommendation rests on beside those of the arms, and the effects."""
        diagnosis = diagnose(evidence.probes, evidence.arms, evidence.groups, evidence.min_gain)
        return {
            "bought": evidence.bought,
            "trained": [_told_of(one) for one in evidence.trained],
            "scores": {one.candidate: one.mean for one in evidence.probes},
            "diagnosis": diagnosis,
            "retrieval_recall": {one.name: one.recall for one in self.found.retrieved.retrievals if one.n},
            "obedience": dict(zip(("obeyed", "n"), obeyed(self.obedience), strict=True)) if self.obedience else None,
            "tolerant": {arm.candidate: arm.average("tolerant") for arm in self.arms},
        }


def _told_of(one: Trained) -> dict[str, Any]:
    return {
        "rows": one.rows,
        "seed": one.seed,
        "full": one.full,
        "score": one.scores.mean,
        "with_retrieval": one.retrieving.mean if one.retrieving else None,
        "seconds": one.seconds,
    }
