"""Repair: where trained weights forget too much, or may, the weights between them and the base are searched before the test is opened.

What is chosen is chosen on dev and on one half of the general suite. The locked test and the other half (or `standard`) are for the
chosen weights alone, so that the final claim stays one claim on items that chose nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from advisor.decision.compare import compare
from advisor.decision.recommend import Recommendation
from advisor.decision.repair import MOST, Choice, Offer, Repair, Tried, choose, kept, next_arm, told
from advisor.decision.rules import ON_TUNED
from advisor.flow.advice import groups_of
from advisor.flow.baselines import Finalists
from advisor.flow.forgetting import measured_forgetting
from advisor.flow.run import Run, reuse
from advisor.flow.session import Session
from advisor.flow.training_rows import foreseen_rows
from advisor.flow.tuned import asked_as_trained, expected, prompt_format, recipe_for
from baselines.rag.candidate import under
from evals.candidate import Candidate
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, UsageError
from evals.evaluate import evaluate
from evals.events import Note, OnEvent, Ticker
from evals.general.divergence import asked_divergence
from evals.general.halves import half, half_of
from evals.general.lm_eval import GeneralItem, GeneralScores, measure
from evals.general.named import suite_of
from evals.general.suites import Suite, rows_of, text_of
from evals.records import content_hash, read_json, write_json
from evals.scores import Scores
from evals.statistics.margin import NonInferiority, chance_of_passing, non_inferiority
from evals.task.checks.findings import Checks
from evals.task.load import Task
from trainer.adapters import list_adapters
from trainer.card import add_score, read_card
from trainer.job import TrainedAdapter
from trainer.regmean import regmean, texts_in_general, texts_of_task, write_regmean
from trainer.remedies import remedies
from trainer.repair import Arm, Source, differ_in_seed, early, line, source, write_arm
from trainer.replay import Replay, base_replies, drawn, prompts

RECORD = "repair.json"
REMEDIES = "remedies"
# A half of which even a model without loss would pass less often than so cannot tell arms apart.
LEAST_CHANCE = 0.5
PROMPTS = 200
# So many arms more are measured at most for each other training, mean or step.
MORE = 4


@dataclass(frozen=True)
class Bench:
    """All that it takes to measure arms: the task's dev rows and their `rival` (the best unchanged weights), the half of the suite with
    the base's answers, and the prompts for KL. What is measured is kept in `folder`, by the weights that it was measured of.

    `candidate` asks a folder's weights as the tuned model is asked; `left_out` are general items that stand in the training rows.
    `answered` are answers to the whole suite that are there already, by the arm that gave them.
    """

    task: Task
    session: Session
    folder: Path
    suite: Suite
    base: GeneralScores
    rival: Scores
    candidate: Callable[[Path, str], Candidate]
    left_out: frozenset[str]
    margin: float
    answered: Mapping[str, GeneralScores] = field(default_factory=dict)

    @property
    def on_event(self) -> OnEvent:
        return self.session.on_event

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """What items of the half that chooses ask; of a suite whose items are not here, general questions of our own."""
        found = [text for task in self.suite.tasks for row in rows_of(task) if (text := text_of(row))]
        return tuple(sorted(found or prompts(), key=content_hash)[:PROMPTS])

    def kl(self, arm: Arm) -> float:
        """KL(base || arm) on the prompts, put as chats, in nats a token: two passes over a few thousand tokens."""
        path = self.folder / "kl.json"
        record = read_json(path) if path.is_file() else {}
        known = record.get("kl", {})
        key = content_hash([_key(arm), self.session.weights.fingerprint, "asked", self.prompts])
        if key not in known:
            with self.weights(arm) as folder:
                known[key] = asked_divergence(self.session.weights, self._engine(folder), self.prompts)
            write_json(path, {"kl": known})
        return float(known[key])

    def measured(self, arm: Tried, of: Arm) -> Tried:
        """The arm with its gain on dev and its loss on the half."""
        with self.weights(of) as folder:
            scores = evaluate(
                self.task, self.candidate(folder, of.name), "dev", self.folder, self.on_event, self.session.metrics
            )
            general = self.answered.get(of.name)
            if general is None:
                general, _ = measure(self._engine(folder), self.suite, self.folder / "general", of.name, self.on_event)
        gain = compare(scores, self.rival, groups_of(self.task, "dev"))
        found = replace(arm, gain=gain, forgetting=self.forgetting(general))
        self.on_event(Note(told(found)))
        return found

    def counts(self, item: GeneralItem) -> bool:
        """Whether an arm's answer to this item says anything of it."""
        return item.task in self.suite.pooled and item.id not in self.left_out and half_of(item.id) == "a"

    def forgetting(self, tuned: GeneralScores) -> NonInferiority:
        before = {(one.task, one.id): one.score for one in self.base.items}
        both = [(one.score, before[one.task, one.id]) for one in tuned.items if self.counts(one)]
        return non_inferiority([one for one, _ in both], [one for _, one in both], self.margin)

    def _engine(self, folder: Path) -> HfEngine:
        # One name for all arms: the model holds one of their adapters at a time.
        return self.session.weights.with_adapter(folder, "arm")

    @contextmanager
    def weights(self, arm: Arm) -> Iterator[Path]:
        home = self.folder / ".arms"
        if arm.general:
            self._write_regmean(arm, home)
        with weights_as_folder(arm, home, self.session.weights.handle.folder) as folder:
            yield folder

    def _write_regmean(self, arm: Arm, home: Path) -> None:
        """Of one source all weights at once: to read the texts is most of the work, and adapters are small."""
        made = [one for one in regmean(arm.kind, arm.sources[0]) if not _is_whole(_home_of(one, home))]
        if arm.name not in {one.name for one in made}:
            return
        base, tuned = self.session.weights, self._engine(arm.sources[0].folder)
        recipe, tokenizer = recipe_for(self.task, base), tuned.handle.tokenizer
        rows = foreseen_rows(self.task, recipe, self.task.train)
        texts = (
            texts_of_task(tokenizer, prompt_format(self.task, recipe), rows),
            texts_in_general(tokenizer, self.replies),
        )
        for one in made:
            shutil.rmtree(_home_of(one, home), ignore_errors=True)
        ticker = Ticker(self.on_event, "what layers are given, for RegMean", sum(map(len, texts)), "texts")
        write_regmean(made, base, tuned, texts, [_home_of(one, home) for one in made], ticker.advance)

    @cached_property
    def replies(self) -> tuple[Replay, ...]:
        """The task's own replay rows where it has any, else our questions with the base's replies."""
        seed, rows = self.task.spec.seed, [row.example for row in self.task.replay]
        if rows:
            return drawn(rows, min(len(rows), len(prompts())), seed)
        path = self.folder / "replies.json"
        key = content_hash([self.session.weights.fingerprint, seed, prompts()])
        if kept_ones := reuse(path, key):
            return tuple(Replay.of(one) for one in kept_ones["replies"])
        replies = base_replies(self.session.weights, len(prompts()), seed, self.on_event)
        write_json(path, {"input_hash": key, "replies": replies})
        return replies


@contextmanager
def weights_as_folder(arm: Arm, home: Path, base: Path) -> Iterator[Path]:
    """The folder of an arm's weights, made in `home`. Whole models are made again when they are asked again: several would fill a disk."""
    if arm.is_source:
        yield arm.sources[0].folder
        return
    folder = _home_of(arm, home)
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        write_arm(arm, base, folder)
    try:
        yield folder
    finally:
        if arm.sources[0].whole:
            shutil.rmtree(folder, ignore_errors=True)


def _home_of(arm: Arm, home: Path) -> Path:
    return home / f"{arm.name}-{_key(arm)[:8]}"


def _key(arm: Arm) -> str:
    """Names an arm's weights before they are made."""
    return content_hash([[[one.card.digest, one.step] for one in arm.sources], arm.scale, arm.general])


def _is_whole(folder: Path) -> bool:
    try:
        read_card(folder)
    except (AdvisorError, OSError):
        return False
    return True


def search(bench: Bench, arms: Sequence[Arm], most: int = MOST) -> tuple[Tried, ...]:
    """All arms with their KL, and those measured that `next_arm` asks for; the first of `arms` (the trained weights) always.

    An arm that cannot be made (adapters that cannot be summed) is left out with a note.
    """
    by_name = {one.name: one for one in arms}
    found: dict[str, Tried] = {}
    ticker = Ticker(bench.on_event, "KL between base and arms", len(arms), "arms")
    for arm in arms:
        try:
            found[arm.name] = Tried(arm.name, arm.kind, arm.scale, bench.kl(arm), general=arm.general)
        except UsageError as error:
            bench.on_event(Note(f"{arm.name} is left out: {error.what}", "warning"))
        ticker.advance()
    most = min(most, len(found))
    measuring = Ticker(bench.on_event, "arms measured on dev and on half of the suite", most, "arms")
    name: str | None = arms[0].name
    while name is not None:
        found[name] = bench.measured(found[name], by_name[name])
        measuring.advance()
        name = next_arm([*found.values()], most)
    return tuple(found.values())


def repair(
    task: Task,
    run: Run,
    session: Session,
    arms: tuple[Scores, ...],
    found: Finalists,
    recommendation: Recommendation,
    trained: TrainedAdapter,
    checks: Checks,
) -> Repair:
    """Write `repair.json`, and `repair/adapter` (or `model`) where weights were made that are used in the place of the trained ones."""

    def make() -> tuple[Repair, str, bool]:
        context = _Stage(task, run, session, arms, found, recommendation, trained, checks)
        kept_record = _read(run, context.input_hash)
        if kept_record is not None:
            return kept_record, kept_record.sentence, True
        record = context.repaired()
        write_json(run.path(RECORD), {"input_hash": context.input_hash, "repair": record})
        return record, record.sentence, False

    return run.stage("repair", "Measure forgetting, and mend it without training", make)


@dataclass(frozen=True)
class _Stage:
    """One run's repair: what it has, and what it decides in turn."""

    task: Task
    run: Run
    session: Session
    scores: tuple[Scores, ...]
    found: Finalists
    recommendation: Recommendation
    trained: TrainedAdapter
    checks: Checks

    @cached_property
    def suite(self) -> Suite:
        return general_suite(self.task)

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The run's own training first, then those of remedies, then others beside the run that differ in their seed only."""
        own = source("tuned", self.trained.folder)
        more = remedied(self.run.folder)
        known = {own.card.digest, *(one.card.digest for one in more)}
        seeds = [
            Source(one.name, one.folder, one.card)
            for one in list_adapters(self.run.folder.parent)
            if one.card and one.card.how == "training" and differ_in_seed(own.card, one.card) and one.card.digest not in known
        ]
        return (own, *more, *seeds)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        return arms_of(self.sources[0], remedied(self.run.folder), self.sources)

    @cached_property
    def input_hash(self) -> str:
        return content_hash(
            {
                "arms": [[arm.name, _key(arm)] for arm in self.arms],
                "suite": [[one.name, one.digest] for one in self.suite.tasks],
                "confirm": self.task.spec.general.confirm,
                "left_out": sorted(self.checks.tainted_general()),
                "margin": self.task.spec.gate.max_forgetting,
                "way": [self.recommendation.action, self.rival.candidate],
            }
        )

    @cached_property
    def rival(self) -> Scores:
        real = [one for one in self.scores if one.kind != "trivial"]
        return max(real or self.scores, key=lambda one: one.mean)

    def candidate(self, weights: Path, name: str) -> Candidate:
        """As the tuned model will be asked."""
        pipeline = self.found.pipeline(self.scores)
        if self.recommendation.action == ON_TUNED and pipeline is not None:
            return under(pipeline, self.session.weights.with_adapter(weights, "arm"), name)
        recipe = recipe_for(self.task, self.session.weights)
        made: Any = asked_as_trained(self.task, self.session, recipe, weights, "arm", self.run.folder)
        named: Candidate = replace(made, name=name)
        return named

    def repaired(self) -> Repair:
        margin, left_out = self.task.spec.gate.max_forgetting, frozenset(self.checks.tainted_general())
        engine = self.session.weights.with_adapter(self.trained.folder, "tuned")
        general, _ = measured_forgetting(self.task, self.run, self.session, self.suite, engine, self.checks)
        whole = general.forgetting
        record = Repair(
            self.suite.name, whole, f"no loss beyond {100 * margin:g} points: {whole.answer}", self.sources[0].card.digest
        )
        if not record.needed:
            return replace(record, sentence=f"{record.sentence}; nothing is to be mended")
        bench = Bench(
            self.task,
            self.session,
            self.run.path("repair"),
            half(self.suite.decisive, "a"),
            general.base,
            self.rival,
            self.candidate,
            left_out,
            margin,
            {self.arms[0].name: general.tuned},
        )
        n = len([one for one in general.base.items if bench.counts(one)])
        chance = chance_of_passing(max(1, n), margin)
        if chance < LEAST_CHANCE:
            why = f"half of the suite ({n} items) would call a model without loss safe in {100 * chance:.0f}% only"
            return replace(record, sentence=f"{record.sentence}; {why}: it cannot tell arms apart, and none was tried")
        return self._searched(record, bench)

    def _searched(self, record: Repair, bench: Bench) -> Repair:
        lines = len({tuple(each.name for each in one.sources) for one in self.arms})
        tried = search(bench, self.arms, MOST + MORE * (lines - 1))
        choice = choose(tried)
        by_name = {one.name: one for one in tried}
        record = replace(
            record, arms=tried, choice=choice, notes=self._notes(), sentence=f"{record.sentence}; {choice.sentence}"
        )
        if not choice.chosen:
            self._clear()
            self._forget_earlier()
            return replace(record, offers=self.offers())
        won, gain = kept(tried[0], by_name[choice.chosen])
        confirm = self.task.spec.general.confirm
        return replace(
            record,
            weights=self._put(bench, choice, by_name[choice.chosen]),
            # Half of `standard` has chosen where that is the suite itself: the other half is what is left.
            confirm="standard"
            if confirm == "standard" and "standard" not in self.task.spec.general.suite
            else f"{self.suite.name}-b",
            won_back=won,
            kept=gain,
        )

    def _put(self, bench: Bench, choice: Choice, chosen: Tried) -> str:
        """The folder, in the run's, of the chosen weights, with what they scored on dev on their card; empty for the trained ones."""
        arm = next(one for one in self.arms if one.name == choice.chosen)
        self._forget_earlier()
        if arm.is_source:
            self._clear()
            home = arm.sources[0].folder
            return "" if home == self.trained.folder else str(home.relative_to(self.run.folder))
        with bench.weights(arm) as folder:
            out = self.run.path("repair") / ("model" if arm.sources[0].whole else "adapter")
            folder.rename(out)
        self._clear()
        gain = chosen.gain
        if gain is not None:
            add_score(out, "dev", gain.metric, gain.difference + self.rival.mean, gain.n)
        return str(out.relative_to(self.run.folder))

    def _forget_earlier(self) -> None:
        """What an earlier search has chosen, of other trainings; and the verdict, which was on other weights."""
        self.run.path("verdict.json").unlink(missing_ok=True)
        for name in ("adapter", "model"):
            shutil.rmtree(self.run.path("repair") / name, ignore_errors=True)

    def _clear(self) -> None:
        shutil.rmtree(self.run.path("repair") / ".arms", ignore_errors=True)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.sources[0].whole:
            notes.append("Weights scaled towards the base are its average with the trained ones: one family, measured once.")
        if not any(one.step for arm in self.arms for one in arm.sources):
            notes.append(
                "No weights of an earlier step are left to be tried: checkpoints are pruned, and deleted when a training has ended. "
                "`train: {save_total_limit: 4}`, set before the training, keeps the weights of as many, which are then arms too."
            )
        return tuple(notes)

    def offers(self) -> tuple[Offer, ...]:
        """What to train otherwise, with what it would take on this machine."""
        recipe = recipe_for(self.task, self.session.weights)
        rows = foreseen_rows(self.task, recipe, self.task.train)
        done = finished_remedies(self.run.folder)
        found = []
        for one in remedies(recipe):
            other = replace(recipe, **one.overrides)
            cost = expected(self.task, self.session.weights, other, rows)
            money = cost.money(self.task.spec.prices.gpu_hour)
            found.append(Offer(one.name, dict(one.overrides), one.why, cost.seconds, money, one.name in done))
        return tuple(found)


def arms_of(own: Source, more: Sequence[Source], every: Sequence[Source]) -> tuple[Arm, ...]:
    """The trained weights, their scales and their RegMeans with the base, earlier steps as they are, each remedy's training with the
    same, and, where there are trainings that differ in their seed only, their mean and its scales."""
    found = [*line("tuned", [own]), *regmean("tuned", own)]
    found += [arm for one in early(own) for arm in line(f"step_{one.step}", [one], [1.0])]
    found += [arm for one in more for arm in (*line(one.name, [one]), *regmean(one.name, one))]
    seeds = [own, *(one for one in every if differ_in_seed(own.card, one.card))]
    if len(seeds) > 1:
        found += line("soup", seeds)
    return tuple(found)


def finished_remedies(run: Path) -> tuple[str, ...]:
    return tuple(one.parent.name for one in sorted(run.glob(f"{REMEDIES}/*/training.json")))


def remedied(run: Path) -> tuple[Source, ...]:
    """The finished trainings of remedies in a run's folder."""
    folders = [run / REMEDIES / name for name in finished_remedies(run)]
    weights = [folder / name for folder in folders for name in ("adapter", "model") if (folder / name).is_dir()]
    return tuple(source(f"remedy_{one.parent.name}", one) for one in weights)


def read_repair(run: Path) -> Repair | None:
    """What repair has found in a run; None where it was not there, or where the record is damaged."""
    try:
        return TypeAdapter(Repair).validate_python(read_json(run / RECORD)["repair"])
    except (OSError, AdvisorError, KeyError, TypeError, ValidationError):
        return None


def _read(run: Run, input_hash: str) -> Repair | None:
    """The record of the same inputs, as long as the weights that it names are there and whole."""
    record = read_repair(run.folder) if reuse(run.path(RECORD), input_hash) else None
    if record is None or (record.weights and not _is_whole(run.path(record.weights))):
        return None
    return record


def weights_of(run: Path, trained: Path) -> Path:
    """The weights that a run answers for: the repaired ones where repair has chosen any for these trained ones, else these."""
    record = read_repair(run)
    if record is None or not record.weights or not _is_whole(run / record.weights):
        return trained
    return run / record.weights if record.trained == read_card(trained, deep=False).digest else trained


def general_suite(task: Task) -> Suite:
    """What the task file names under `general:`."""
    named = task.spec.general
    return suite_of(
        named.suite, beside=task.folder, limit=named.limit, seed=task.spec.seed, trust_task_code=named.trust_task_code
    )


def confirm_suite(task: Task, record: Repair | None) -> Suite:
    """The suite on which forgetting is told in the end: the whole of it where nothing was chosen by it, else items that chose nothing."""
    if record is None or not record.confirm:
        return general_suite(task)
    return suite_of("standard") if record.confirm == "standard" else half(general_suite(task), "b")
