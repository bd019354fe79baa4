"""Forgetting over time: the steps of one training, models that were tuned again and again, and a chain of tasks, all on dev.

The locked test stays shut: to look at every step there would be to choose by it. What is measured is kept by the weights that it is of,
under `continual/` in the folder of the first run, so that a call that was interrupted goes on, and a second one measures nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from advisor.decision.continual import BASE, Chain, Course, Training, elsewhere, points, transfers
from advisor.flow.advice import groups_of
from advisor.flow.export import as_trained, trained_weights
from advisor.flow.forgetting import what_shows
from advisor.flow.intake import what_dev_can_tell
from advisor.flow.repair import general_suite, weights_as_folder
from advisor.flow.run import EXAMPLES, Run, find_run, open_run, reuse, task_of
from advisor.flow.session import Session
from advisor.flow.tuned import asked_by, prompt_format, recipe_for
from advisor.report.continual import continual_report
from advisor.report.quoted import plain
from evals.engines.adapter_card import CARD
from evals.engines.hf import HfEngine
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError, UsageError, did_you_mean
from evals.evaluate import evaluate
from evals.events import Note, OnEvent, Ticker, waiting
from evals.general.divergence import Divergence, general_divergence, general_texts, prompt_divergence
from evals.general.lm_eval import GeneralScores, measure
from evals.general.suites import Suite
from evals.records import content_hash, read_json, write_json, write_text
from evals.scores import Scores
from evals.task.checks.findings import from_record
from evals.task.load import Task
from trainer.adapters import WEIGHTS, list_adapters
from trainer.card import Card, model_name, read_card
from trainer.recipe import Recipe
from trainer.repair import Arm, Source, early, source

FOLDER = "continual"
# Counts up when what a record says changes.
VERSION = 1
Record = Course | Chain


@dataclass(frozen=True)
class Weights:
    """A row: weights and the session of the base that they lie on. `step` is of a kept step of a training whose end is `folder`, 0 the end.

    `began` names the earlier row whose weights the training began with; empty: the base of the first.
    """

    name: str
    folder: Path
    card: Card
    session: Session
    step: int = 0
    began: str = ""

    @property
    def key(self) -> str:
        """Names the weights by their files."""
        return content_hash([self.card.digest, self.step])

    @property
    def kept_as(self) -> str:
        return self.name if self.step else f"{self.name}-{self.key[:6]}"

    @contextmanager
    def engine(self, home: Path) -> Iterator[HfEngine]:
        # One name for all: the model holds one of their adapters at a time.
        base = self.session.weights
        if not self.step:
            yield base.with_adapter(self.folder, "tuned")
            return
        arm = Arm(self.name, "early", (Source(self.name, self._step_folder, self.card, self.step),))
        with weights_as_folder(arm, home, base.handle.folder) as folder:
            yield base.with_adapter(folder, "tuned")

    @property
    def _step_folder(self) -> Path:
        own = Source(self.name, self.folder, self.card)
        return next(one.folder for one in early(own) if one.step == self.step)


@dataclass(frozen=True)
class Column:
    """A task on whose dev items all weights are asked, by its own prompt, metric and recipe. `folder` is its run's."""

    task: Task
    session: Session
    recipe: Recipe
    folder: Path


@dataclass(frozen=True)
class Answers:
    """What one of the weights has answered: its dev scores a column, the general suite, and how far it is from the base."""

    dev: tuple[Scores, ...]
    general: GeneralScores
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True)
class Done:
    """A record with the files that it is kept in: `<name>.json` and `<name>.md`."""

    path: Path
    record: Record

    @property
    def report(self) -> Path:
        return self.path.with_suffix(".md")


def continual(names: Sequence[str], runs_dir: Path, on_event: OnEvent, *, checkpoints: bool = False) -> Done:
    """Write `continual/<name>.json` and `.md` in the folder of the first of `names`, which is a RUN.

    `checkpoints`: the kept steps of its training. Else the rest are weights: runs (those that they answer for) or folders. Where all are
    runs, of more than one task, they are a chain: each is asked on each task's dev. Otherwise all are asked on the first run's.

    Raises UsageError for lists that say nothing, AdvisorError where weights are missing, unknown, damaged or of another base.
    """
    if checkpoints == (len(names) > 1):
        raise UsageError(
            "--checkpoints is of one RUN" if checkpoints else "one RUN alone has nothing to be held against",
            do="name one RUN with --checkpoints, or a RUN and the weights (runs, adapter folders) to be asked beside it.",
        )
    folder = find_run(names[0], runs_dir)
    task = task_of(folder)
    with open_run(task, folder.parent, on_event) as run:
        root = Session(task, run.on_event)
        root.require_weights()
        if checkpoints:
            return _Steps(run, root, (), runs_dir).done()
        others = [_place(name, runs_dir) for name in names[1:]]
        if len({*map(_real, (folder, *others))}) < len(names):
            raise UsageError("the same run or folder is named twice", where=", ".join(names), do="name each once.")
        kind = _Chain if _is_chain([folder, *others]) else _Models
        return kind(run, root, tuple(others), runs_dir).done()


def _real(folder: Path) -> Path:
    return folder.resolve()


def _is_chain(folders: Sequence[Path]) -> bool:
    """Whether all are runs, and of more than one task by name."""
    if not all(_is_run(one) for one in folders):
        return False
    return len({read_json(one / "task.json")["name"] for one in folders}) > 1


def _is_run(folder: Path) -> bool:
    return (folder / "task.json").is_file()


def _place(name: str, runs_dir: Path) -> Path:
    """The folder of a run, or of weights. Raises AdvisorError where there is neither."""
    for folder in (Path(name), runs_dir / name):
        if (folder / CARD).is_file() or (folder / WEIGHTS).is_file():
            return folder
    try:
        return find_run(name, runs_dir)
    except AdvisorError as error:
        path = Path(name)
        is_task = path.is_file() or (path / "task.yaml").is_file() or (EXAMPLES / name / "task.yaml").is_file()
        if is_task:
            raise
        known = [*(one.name for one in list_adapters(runs_dir)), *(one.parent.name for one in runs_dir.glob("*/task.json"))]
        raise AdvisorError(
            f"there are no trained weights and no run of this name{did_you_mean(name, known)}",
            where=name,
            do="name a run, or a folder with an adapter (or a whole model) and its card; `advisor adapters` lists them.",
        ) from error


@dataclass(frozen=True)
class _Stage:
    """One call: `run` keeps the records, `root` is its session, whose base is row 0."""

    run: Run
    root: Session
    others: tuple[Path, ...]
    runs_dir: Path

    kind = ""
    title = ""

    @property
    def task(self) -> Task:
        return self.root.task

    @property
    def home(self) -> Path:
        return self.run.path(FOLDER)

    @cached_property
    def suite(self) -> Suite:
        return general_suite(self.task)

    @property
    def margin(self) -> float:
        return self.task.spec.gate.max_forgetting

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        """The rows after the base."""
        raise NotImplementedError

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.task, self.root, recipe_for(self.task, self.root.weights), self.run.folder),)

    @property
    def runs(self) -> tuple[tuple[Path, Task], ...]:
        """Runs whose training rows are known: general items that stand in them are left out."""
        return ((self.run.folder, self.task),)

    @cached_property
    def left_out(self) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for folder, task in self.runs:
            if kept := reuse(folder / "checks.json", task.hash()):
                found |= from_record(kept).tainted_general()
        return found

    def record(self, base: Answers, rows: Sequence[Answers]) -> Record:
        raise NotImplementedError

    @property
    def input_hash(self) -> str:
        return content_hash(
            {
                "version": VERSION,
                "base": self.root.weights.fingerprint,
                "weights": [[one.name, one.key, one.began] for one in self.weights],
                "columns": [[one.task.hash(), one.recipe] for one in self.columns],
                "suite": [[one.name, one.digest] for one in self.suite.tasks],
                "left_out": sorted(self.left_out),
                "margin": self.margin,
            }
        )

    @property
    def path(self) -> Path:
        """A list has a file of its own, by the names in it."""
        return self.home / f"{self.kind}-{content_hash([one.name for one in self.weights])[:8]}.json"

    def done(self) -> Done:
        def make() -> tuple[Done, str, bool]:
            key = self.input_hash
            kept = self._kept(key)
            record = self._measured() if kept is None else kept
            if kept is None:
                body = {"input_hash": key, "kind": self.kind, "run": self.run.id, "found": _with_answers(record)}
                write_json(self.path, body)
            found = Done(self.path, record)
            write_text(found.report, continual_report(record))
            return found, record.sentences()[0], kept is not None

        return self.run.stage("continual", self.title, make)

    def _kept(self, input_hash: str) -> Record | None:
        """The record of the same inputs; what is damaged is as good as absent."""
        shape: Any = Chain if self.kind == "chain" else Course
        try:
            kept = reuse(self.path, input_hash)
            record: Record | None = TypeAdapter(shape).validate_python(kept["found"]) if kept else None
        except (KeyError, ValidationError):
            return None
        return record

    def _measured(self) -> Record:
        say = self.run.on_event
        say(Note("dev and the general suite are asked, never the locked test: to look at every row there would choose by it"))
        for column in self.columns:
            say(Note(f"{column.task.name}: {what_dev_can_tell(column.task)}"))
        say(Note(what_shows(self.suite, self.margin)))
        if self.left_out:
            say(
                Note(
                    f"{len(self.left_out)} general items stand in training rows: they say nothing of forgetting and are left out"
                )
            )
        ticker = Ticker(say, "weights measured", len(self.weights) + 1, "rows")
        base = self._base()
        ticker.advance()
        rows = []
        for one in self.weights:
            rows.append(self._answers(one))
            ticker.advance()
        shutil.rmtree(self.home / ".arms", ignore_errors=True)
        return self.record(base, rows)

    def _base(self) -> Answers:
        engine = self.root.weights
        general, _ = measure(engine, self.suite, self.run.path("general"), BASE, self.run.on_event)
        return Answers(self._dev(engine, BASE, BASE), general, ())

    def _answers(self, one: Weights) -> Answers:
        # The run's own trained weights may lie measured where its re-evaluation leaves them.
        own = not one.step and one.folder.parent == self.run.path("training")
        folder, label = (self.run.path("general"), "tuned") if own else (self.home / "general", one.kept_as)
        with one.engine(self.home / ".arms") as engine:
            general, _ = measure(engine, self.suite, folder, label, self.run.on_event)
            found = Answers(self._dev(engine, one.name, one.kept_as), general, self._divergences(engine, one.name))
        if one.session is not self.root:
            # A base of its own: no two of them need be in memory beside the first.
            one.session.close()
        return found

    def _dev(self, engine: HfEngine, name: str, kept_as: str) -> tuple[Scores, ...]:
        found = []
        for column in self.columns:
            candidate = asked_by(column.task, column.session, column.recipe, engine, kept_as, column.folder)
            scores = evaluate(
                column.task,
                candidate,
                "dev",
                self.home / "scores" / column.folder.name,
                self.run.on_event,
                column.session.metrics,
            )
            found.append(replace(scores, candidate=name))
        return tuple(found)

    def _divergences(self, engine: HfEngine, name: str) -> tuple[Divergence, ...]:
        """On general text, and on dev's prompts of the only task; kept by the weights."""
        path, base = self.home / "divergence.json", self.root.weights
        prompts = []
        if len(self.columns) == 1:
            fmt = prompt_format(self.task, self.columns[0].recipe)
            prompts = [fmt.messages(example) for example in self.task.dev]
        key = content_hash([base.fingerprint, engine.fingerprint, general_texts(), prompts])
        record = read_json(path) if path.is_file() else {}
        known = record.get("divergences", {})
        if key not in known:
            with waiting(self.run.on_event, f"how far {name} is from the base"):
                some = (general_divergence(base, engine), prompt_divergence(base, engine, prompts))
            known[key] = [asdict(one) for one in some if one is not None]
            write_json(path, {"divergences": known})
        return tuple(Divergence(**one) for one in known[key])

    def weights_at(self, folder: Path, earlier: Sequence[Weights]) -> Weights:
        """The weights of a run, or of a folder, on the base of the first run or on what one of the `earlier` rows has left."""
        run = folder if _is_run(folder) else None
        home = trained_weights(folder) if run else folder
        card = read_card(home)
        base = self.root.weights.handle
        if card.base.fingerprint == base.fingerprint:
            return Weights(_label(folder, earlier), home, card, self.root)
        if run:
            # Its own base may be what an earlier one has made: a whole model, or its adapter merged (`advisor export --merge`).
            session = Session(task_of(run), self.run.on_event)
            model = session.weights.handle.folder
            began = next((one for one in earlier if _is_made_of(model, one)), None)
            if began is not None and weights_fingerprint(model) == card.base.fingerprint:
                return Weights(_label(folder, earlier), home, card, session, began=began.name)
        raise AdvisorError(
            f"these weights are of another base: of {card.base.name} ({card.base.fingerprint[:12]}), and here it is "
            f"{model_name(base.folder)} ({base.fingerprint[:12]}), or the result of a run named before them",
            where=str(home),
            do="name weights of this base; a run that began with another run's result (a whole model, or `advisor export --merge`) comes "
            "after that run.",
        )


def _is_made_of(model: Path, one: Weights) -> bool:
    """Whether a model's folder holds these weights: the whole model that they are, or the base with their adapter merged into it."""
    if one.card.kind == "model" and weights_fingerprint(model) == weights_fingerprint(one.folder):
        return True
    if not (model / CARD).is_file():
        return False
    card = read_card(model, deep=False)
    return card.how == "merge" and one.card.digest in [parent.digest for parent in card.parents]


def _label(folder: Path, earlier: Sequence[Weights]) -> str:
    """The run's id, or the folder's name, never this machine's path."""
    home = folder.resolve()
    name = plain(home.parent.parent.name if home.parent.name in ("training", "repair") and not _is_run(home) else home.name)
    taken = sum(1 for one in earlier if one.name == name or one.name.startswith(f"{name} ("))
    return f"{name} ({taken + 1})" if taken else name


def _with_answers(record: Record) -> dict[str, Any]:
    """For the file: each row's answer beside the numbers that it follows from."""
    body = asdict(record)
    if isinstance(record, Chain):
        rows = [*zip(body["general"], record.general, strict=True)]
    else:
        both = zip(body["points"], record.points, strict=True)
        rows = [(told["general"], one.general) for told, one in both if one.general]
    for told, one in rows:
        told["answer"] = one.answer
    return body


class _Steps(_Stage):
    kind, title = "checkpoints", "Measure the kept steps of the training on dev and on general benchmarks"

    @property
    def path(self) -> Path:
        return self.home / f"{self.kind}.json"

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        own = source("end", as_trained(self.run.folder))
        kept = early(own)
        if not kept:
            raise AdvisorError(
                "no weights of earlier steps are kept of this training",
                where=str(self.run.path("training/checkpoints")),
                do="set `train: {save_total_limit: 4}` (and `save_steps`) in the task file before the training: that is a run of its own "
                "and trains anew, since a finished training is reused as it is.",
            )
        steps = [Weights(f"step_{one.step}", own.folder, own.card, self.root, one.step) for one in kept]
        return (*steps, Weights("end", own.folder, own.card, self.root))

    def record(self, base: Answers, rows: Sequence[Answers]) -> Course:
        steps = [*(one.step for one in self.weights[:-1]), self.weights[-1].card.steps]
        return _course(self, base, rows, steps)


class _Models(_Stage):
    kind, title = "models", "Measure tuned models on dev and on general benchmarks, in their order"

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        """The run's own come first, where it has trained any and they are not named."""
        found: list[Weights] = []
        own = [self.run.folder] if (self.run.folder / "training" / "training.json").is_file() else []
        own = [one for one in own if _real(trained_weights(one)) not in map(_real, self.others)]
        for folder in (*own, *self.others):
            found.append(self.weights_at(folder, found))
        return tuple(found)

    def record(self, base: Answers, rows: Sequence[Answers]) -> Course:
        return _course(self, base, rows, [one.card.steps for one in self.weights])


def _course(stage: _Stage, base: Answers, rows: Sequence[Answers], steps: Sequence[int]) -> Course:
    general, score, excluded = elsewhere(base.general, [one.general for one in rows], stage.suite, stage.margin, stage.left_out)
    names = [(one.name, step) for one, step in zip(stage.weights, steps, strict=True)]
    return Course(
        stage.kind,
        stage.task.name,
        stage.task.metric,
        stage.suite.name,
        stage.margin,
        score,
        excluded,
        points(
            names,
            [one.dev[0] for one in (base, *rows)],
            general,
            [one.divergences for one in rows],
            groups_of(stage.task, "dev"),
        ),
    )


class _Chain(_Stage):
    kind, title = "chain", "Measure every training of the chain on every task's dev and on general benchmarks"

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The trainings', in their order."""
        return (self.task, *(task_of(one) for one in self.others))

    @property
    def runs(self) -> tuple[tuple[Path, Task], ...]:
        return tuple(zip((self.run.folder, *self.others), self.tasks, strict=True))

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        found: list[Weights] = []
        for folder in (self.run.folder, *self.others):
            found.append(self.weights_at(folder, found))
        return tuple(found)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """One a task, as its last run has it."""
        found: dict[str, Column] = {}
        for folder, task in self.runs:
            session = self.root if task is self.task else Session(task, self.run.on_event)
            found[task.name] = Column(task, session, recipe_for(task, self.root.weights), folder)
        return tuple(found.values())

    def record(self, base: Answers, rows: Sequence[Answers]) -> Chain:
        names = [one.task.name for one in self.columns]
        general, score, excluded = elsewhere(
            base.general, [one.general for one in rows], self.suite, self.margin, self.left_out
        )
        return Chain(
            tuple(names),
            tuple(one.task.metric for one in self.columns),
            tuple(Training(one.name, task.name, one.began) for one, task in zip(self.weights, self.tasks, strict=True)),
            transfers(
                [one.dev for one in (base, *rows)],
                [names.index(task.name) for task in self.tasks],
                names,
                [groups_of(one.task, "dev") for one in self.columns],
            ),
            self.suite.name,
            self.margin,
            score,
            excluded,
            general,
            tuple(one.divergences for one in rows),
            self._shared(),
        )

    def _shared(self) -> tuple[str, ...]:
        """Dev rows of a column that stand, input and output alike, in the training rows of a run of another task or state."""
        found = []
        for column in self.columns:
            dev = {(one.text, one.target) for one in column.task.dev}
            for folder, task in self.runs:
                both = len(dev & {(one.text, one.target) for one in task.train}) if folder != column.folder else 0
                if both:
                    found.append(
                        f"{both} dev items of {column.task.name} stand in the training rows of {folder.name}: they flatter it."
                    )
        return tuple(found)
