"""Exhaustive measurement of one task of the advisor's benchmark: every arm, probe and training on the whole population.

What was measured is kept below the benchmark's folder, arm by arm, so that it goes on where it stopped, and a change of the
decision asks no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from advisor.decision.evidence import Evidence, Purchase, Trained, TrainingPlan
from advisor.decision.learning_curve import next_training
from advisor.flow.advice import groups_of
from advisor.flow.baselines import asking_arms, unasking_arms
from advisor.flow.learning_curve import bought, plan_of
from advisor.flow.retrieval import retrieved
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.tuned import recipe_for
from baselines.probes import knowledge_probes, perfect_search, sample_probes, shot_probes
from baselines.prompts.arms import SAMPLES, combined
from baselines.prompts.constrained import constraint_of
from baselines.prompts.prompt import Prompt
from baselines.rag.candidate import Rag
from baselines.tools.lookup import lookup_by
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.events import CandidateScored, Event, Note
from evals.records import read_json, read_jsonl, write_json
from evals.scores import Score, Scores
from evals.task.load import Task, load_task

# Dear arms that were never best on any of these tasks' benchmarks.
LEFT_OUT = ("_16", "_32", "self_consistency")
MOST_PASSAGES = 3


@dataclass(frozen=True)
class Measured:
    """All that can be known of a task with this model: the truth that the advisor is held to. `twins` are prompts with
    demonstrations once more with the form enforced, by the prompt that they are twins of; `groups` names each item's cluster
    (None: every item is its own)."""

    task: str
    metric: str
    arms: tuple[Scores, ...]
    probes: tuple[Scores, ...]
    trained: tuple[Trained, ...]
    plan: TrainingPlan
    recall: dict[str, float]
    twins: dict[str, str]
    groups: tuple[str, ...] | None = None

    def training(self, wanted: Purchase) -> Trained:
        """Raises LookupError where it was not measured: the advice then rests on what nobody knows here."""
        for one in self.trained:
            if (one.rows, one.seed, one.full) == (wanted.rows, wanted.seed, wanted.full):
                return one
        raise LookupError(f"{self.task}: a training on {wanted.rows} rows (seed {wanted.seed}) is wanted and was not measured")


TWIN = "_constrained"


def twins_of(names: Sequence[str]) -> dict[str, str]:
    """Plain zero-shot with its form enforced is an arm like others; of prompts with demonstrations only the best gets one."""
    pairs = {name: name.removesuffix(TWIN) for name in names if name.endswith(TWIN)}
    return {base: name for name, base in pairs.items() if base in names and base != "zero_shot"}


def wanted(arm: Candidate) -> bool:
    if isinstance(arm, Rag):
        return arm.count <= MOST_PASSAGES and not arm.reach
    return not any(one in arm.name for one in LEFT_OUT)


def expected(ways: int, items: int, plan: TrainingPlan, *, curve: bool) -> str:
    """What measuring will take, before it begins: a way is asked in some seconds to minutes on two cores."""
    trainings = [plan.full_seconds, *([seconds for _, seconds in plan.subsets] if curve else [])]
    return (
        f"{ways} ways to ask and at most 12 probes, {items} items each; {len(trainings)} trainings of "
        f"{sum(trainings) / 60:.0f} minutes in all, by the trainer's estimate"
    )


def answers_left_out(rows: int) -> int:
    """Answers an item that a run would ask for and that are not measured here: prompts with 16 and 32 demonstrations, chosen in three
    ways, and the draws of self-consistency. Pipelines that are left out and enforced forms come on top."""
    return 3 * sum(count <= rows for count in (16, 32)) + SAMPLES


def begins_with_a_curve(plan: TrainingPlan) -> bool:
    """Whether the advisor would buy points of the learning curve before the full training."""
    first = next_training(Evidence((), plan.rows, plan=plan), 0.0, None)
    return first is not None and not first.full


class Measurement:
    def __init__(self, name: str, folder: Path, home: Path, console: Console) -> None:
        self.name, self.home, self.console = name, home, console
        self.task: Task = load_task(folder)
        self.session = Session(self.task, self.told)
        self.run = Run(home, self.told)

    def told(self, event: Event) -> None:
        if isinstance(event, CandidateScored) and not event.reused:
            text = f"{self.name} {event.candidate}: {event.mean:.3f} ({event.seconds:.0f} s)"
            self.console.print(text, markup=False, highlight=False)
        elif isinstance(event, Note):
            self.console.print(f"{self.name}: {event.text}", markup=False, highlight=False)

    def scored(self, candidate: Candidate, folder: str) -> Scores:
        return evaluate(self.task, candidate, "dev", self.home / folder, self.told, self.session.metrics)

    def measure(self, *, curve: bool) -> Measured:
        task, session = self.task, self.session
        found = retrieved(task, session, self.home, self.told)
        lookup = lookup_by(found.best[0].retriever) if found.best else None
        constraint = constraint_of(task, session.engine, self.told)
        asking = [one for one in asking_arms(task, session, constraint, lookup, self.home, self.told) if wanted(one)]
        # Of the best way to search only: the others are twice the hours.
        first = f"rag_{found.best[0].name}_" if found.best else ""
        pipelines = [one for one in found.arms if wanted(one) and one.name.startswith(first)]
        plan = plan_of(task, session, recipe_for(task, session.weights))
        curve = curve or begins_with_a_curve(plan)
        self.told(Note(expected(len(asking) + len(pipelines), len(task.dev), plan, curve=curve)))
        arms = [self.scored(one, "scores") for one in (*unasking_arms(task, session), *asking, *pipelines)]
        means = {one.candidate: one.mean for one in arms}
        twins = combined([one for one in asking if isinstance(one, Prompt)], constraint)
        arms += [self.scored(one, "scores") for one in twins if one.name.removesuffix(TWIN) in means]
        best = max(pipelines, key=lambda one: means[one.name], default=None)
        probes = [self.scored(one, "probes") for one in self._probes(best, asking, means)]
        trained = [bought(task, self.run, session, Purchase("training", "", plan.rows, full=True), best)]
        if curve:
            sizes = [rows for rows, _ in plan.subsets]
            points = [(rows, 0) for rows in sizes] + [(sizes[-2], 1)]
            trained += [bought(task, self.run, session, Purchase("training", "", *one), best) for one in points]
        recall = {one.name: one.recall for one in found.retrievals if one.n}
        measured = Measured(
            self.name,
            task.metric,
            tuple(arms),
            tuple(probes),
            tuple(trained),
            plan,
            recall,
            twins_of([one.candidate for one in arms]),
            groups_of(task, "dev"),
        )
        self.keep(measured)
        return measured

    def _probes(self, best: Rag | None, asking: Sequence[Candidate], means: dict[str, float]) -> list[Candidate]:
        """Draws are asked for where the task has a target that they could matter for, as the advice does."""
        task, engine = self.task, self.session.engine
        perfect = perfect_search(best, task.dev) if best else None
        probes: list[Candidate] = [*knowledge_probes(task, engine), *shot_probes(task, engine, self.told)]
        probes += [perfect] if perfect else []
        if task.spec.target is not None:
            prompts = [one for one in asking if isinstance(one, Prompt)]
            probes += sample_probes(max(prompts, key=lambda one: means[one.name]), task.spec.seed)
        return probes

    def keep(self, found: Measured) -> None:
        body = {
            "task": found.task,
            "metric": found.metric,
            "arms": [[one.candidate, one.kind] for one in found.arms],
            "probes": [[one.candidate, one.kind] for one in found.probes],
            "trained": [
                {
                    "rows": one.rows,
                    "seed": one.seed,
                    "full": one.full,
                    "seconds": one.seconds,
                    "scores": one.scores.candidate,
                    "retrieving": one.retrieving.candidate if one.retrieving else None,
                }
                for one in found.trained
            ],
            "plan": asdict(found.plan),
            "recall": found.recall,
            "groups": found.groups,
        }
        write_json(self.home / "measured.json", body)


def read_measured(home: Path) -> Measured | None:
    """What `Measurement.measure` has kept; None where it has not come to its end."""
    path = home / "measured.json"
    if not path.is_file():
        return None
    body = read_json(path)
    if "groups" not in body:
        # Measured before groups were kept: they are read from the task, once.
        body["groups"] = groups_of(load_task(home / "task"), "dev")
        write_json(path, body)

    def scores(folder: str, name: str, kind: str) -> Scores:
        rows = read_jsonl(home / folder / "dev" / f"{name}.jsonl")
        return Scores(name, kind, "dev", body["metric"], tuple(Score(**row) for row in rows))

    plan = body["plan"]
    return Measured(
        body["task"],
        body["metric"],
        tuple(scores("scores", *one) for one in body["arms"]),
        tuple(scores("probes", *one) for one in body["probes"]),
        tuple(
            Trained(
                one["rows"],
                one["seed"],
                one["full"],
                scores("probes", one["scores"], "tuned"),
                scores("probes", one["retrieving"], "tuned") if one["retrieving"] else None,
                one["seconds"],
            )
            for one in body["trained"]
        ),
        TrainingPlan(plan["rows"], plan["full_seconds"], tuple((rows, seconds) for rows, seconds in plan["subsets"])),
        body["recall"],
        twins_of([name for name, _ in body["arms"]]),
        tuple(body["groups"]) if body["groups"] else None,
    )
