"""Forgetting over time on a model of two layers: the steps of a real training, named weights, a chain with a planted matrix, the errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advisor.cli.main import main
from advisor.decision.continual import Chain, Course
from advisor.flow import continual as flow
from advisor.flow import repair
from advisor.flow.continual import Done, continual
from advisor.flow.intake import read_task
from advisor.flow.run import run_folder
from advisor.flow.whole import go
from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import Event, Note, Progress, StageFinished, ignore
from evals.general.suites import Suite, quick_suite
from evals.scores import Score, Scores
from evals.task.example import Example
from tests.advisor.test_flow_forgetting import first_items
from tests.advisor.test_journey import FAST, PRICES, Seen, noise
from tests.conftest import colour_rows
from tests.random_adapter import fp32, random_adapter
from tests.trainer import forked
from trainer import launch
from trainer.job import TrainingJob
from trainer.merge import merge
from trainer.recipe import Recipe

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    forked.start_server()
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": forked.Worker}))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Suite:
    suite = first_items(quick_suite(), facts=12, instructions=4)
    for where in (flow, repair):
        monkeypatch.setattr(where, "general_suite", lambda task: suite)
    return suite


@pytest.fixture
def silent_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on nothing may be asked of any model."""

    def hush() -> None:
        for name in ("generate", "compared"):
            monkeypatch.setattr(HfEngine, name, lambda *_: pytest.fail("the model was asked again"))
        monkeypatch.setattr(ModelHandle, "forward", lambda *_: pytest.fail("the model was asked again"))

    return hush


def adapter(model: Path, home: Path, seed: int, size: float = 0.05, **recipe: Any) -> Path:
    """Random weights with a card and `training.json`, as a training leaves them in `home`."""
    row = Example("train-0", (Message("user", "red 0"),), "r")
    settings = Recipe(**{"lora_r": 4, "seed": seed, **recipe})
    job = TrainingJob(model, settings, PromptFormat("Name it.", "inline"), (row,), (), home, "float32", home.name)
    return random_adapter(job, seed, size)


@pytest.fixture
def run_of(make_task: Make, tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """The folder of a run of a task of this name, with trained weights where a seed for them is given."""

    def make(name: str, seed: int | None = None, model: Path = tiny_model, **more: Any) -> Path:
        spec = {"model": {"model_name_or_path": str(model), "dtype": "float32"}, "name": name, **more}
        task = read_task(str(make_task(tmp_path / "tasks" / str(len([*tmp_path.glob("tasks/*")])), **spec)))
        go(task, tmp_path / "runs", ignore, until="intake")
        run = run_folder(task, tmp_path / "runs")
        if seed is not None:
            adapter(model, run / "training", seed)
        return run

    return make


def test_the_steps_of_a_training_are_measured_on_dev_and_in_general_once(
    make_task: Make, tmp_path: Path, silent_model: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    # Three steps, of which the weights of two are kept beside the end's.
    spec = {**FAST, "save_steps": 1, "save_total_limit": 4, "learning_rate": 0.01, "replay_share": 0.0}
    folder = make_task(tmp_path / "task", rows={"train": noise(24), "dev": noise(12, 100)}, train=spec, prices=PRICES)
    runs = tmp_path / "runs"
    done = go(read_task(str(folder)), runs, ignore, until="training", train=True)
    name = done.folder.name

    seen = Seen(lambda event: isinstance(event, Progress) and event.task == "weights measured" and event.done == 2)
    with pytest.raises(KeyboardInterrupt):
        continual([name], runs, seen, checkpoints=True)
    kept = {path: path.stat().st_mtime_ns for path in (done.folder / "continual").rglob("*.jsonl")}
    assert any("step_1" in path.name for path in kept)
    assert not (done.folder / "continual/checkpoints.json").exists()

    heard: list[Event] = []
    first = continual([name], runs, heard.append, checkpoints=True)
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if "scores" in path.parts), "measured again"
    course = first.record
    assert isinstance(course, Course)
    assert [(one.name, one.step) for one in course.points] == [("base", 0), ("step_1", 1), ("step_2", 2), ("end", 3)]
    base, *rest = course.points
    assert base.gain is None
    assert base.general is None
    dev = {one.name: one.dev.mean for one in course.points}
    for one in rest:
        assert one.gain is not None
        assert one.general is not None
        assert one.gain.difference == pytest.approx(dev[one.name] - base.dev.mean)
        assert one.gain.n == 12
        assert one.general.change.n == 16
        assert one.general.change.estimate == pytest.approx(one.general.score - course.general_base)
        assert [each.name for each in one.divergences] == ["general text", "the task's prompts"]
    moved = [one.divergences[0].kl for one in rest]
    assert moved == sorted(moved), "each step goes further from the base"
    assert len(set(moved)) == 3
    notes = [one.text for one in heard if isinstance(one, Note)]
    assert any("never the locked test" in one for one in notes)
    assert not (done.folder / "scores" / "test").exists()
    assert not (folder / "ledger.jsonl").exists()
    assert not (done.folder / "continual/.arms").exists()

    silent_model()
    again: list[Event] = []
    assert continual([name], runs, again.append, checkpoints=True) == first
    assert [one.reused for one in again if isinstance(one, StageFinished)] == [True]
    capsys.readouterr()
    assert main(["evaluate", name, "--checkpoints", "--json", "--runs-dir", str(runs)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["run"]) == ("checkpoints", name)
    assert {one["name"]: one["dev"]["mean"] for one in told["found"]["points"]} == pytest.approx(dev)
    assert [one["general"]["answer"] for one in told["found"]["points"][1:]] == [
        one.general.answer for one in rest if one.general
    ]
    assert main(["evaluate", name, "--checkpoints", "--runs-dir", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "gain on dev, points" in shown
    assert "step_2" in shown


def test_kept_steps_of_a_whole_model_are_measured_and_not_left_on_the_disk(
    run_of: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    from tests.random_adapter import trained
    from trainer.card import write_card
    from trainer.saving import save_weights

    run = run_of("whole")
    row = Example("train-0", (Message("user", "red 0"),), "r")
    recipe = Recipe(use_peft=False)
    job = TrainingJob(
        tiny_model, recipe, PromptFormat("Name it.", "inline"), (row,), (), run / "training", "float32", "training"
    )

    def moved(size: float) -> Any:
        model, drawn = fp32(tiny_model), torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.data += size * torch.randn(weight.shape, generator=drawn)
        return model

    job.folder.mkdir(parents=True)
    folder = save_weights(moved(0.05), job.folder, tokenizer_of=tiny_model)
    write_card(folder, job, trained(job, folder))
    trained(job, folder).write(job.folder)
    step = job.folder / "checkpoints" / "step-2"
    moved(0.02).save_pretrained(step)
    found = continual([run.name], tmp_path / "runs", ignore, checkpoints=True).record
    assert isinstance(found, Course)
    assert [one.name for one in found.points] == ["base", "step_2", "end"]
    kl = [one.divergences[0].kl for one in found.points[1:]]
    assert 0 < kl[0] < kl[1]
    assert not list((run / "continual").rglob("*.safetensors"))


def test_named_weights_are_asked_on_the_first_runs_task_in_the_order_given(
    run_of: Callable[..., Path], tiny_model: Path, tmp_path: Path, silent_model: Callable[[], None]
) -> None:
    run, runs = run_of("colours", 1), tmp_path / "runs"
    later = adapter(tiny_model, tmp_path / "later" / "training", 3, 0.3)
    zero = adapter(tiny_model, tmp_path / "zero" / "training", 2, 0.0)
    first = continual([run.name, str(later), str(zero)], runs, ignore)
    course = first.record
    assert isinstance(course, Course)
    assert [one.name for one in course.points] == ["base", run.name, "later", "zero"]
    nothing = course.points[-1]
    assert nothing.gain is not None
    assert nothing.general is not None
    assert (nothing.gain.difference, nothing.general.change.estimate) == (0.0, 0.0)
    assert nothing.divergences[0].kl == pytest.approx(0.0, abs=1e-9)
    assert course.points[2].divergences[0].kl > course.points[1].divergences[0].kl > 0
    # The run's own weights are measured where its re-evaluation will look for them.
    assert (run / "general/few/tuned.jsonl").is_file()
    report = first.report.read_text()
    assert "over models in their order" in report
    silent_model()
    # In another order they are another record, of the same measurements.
    turned = continual([run.name, str(zero), str(later)], runs, ignore).record
    assert isinstance(turned, Course)
    assert {one.name: one.dev for one in turned.points} == {one.name: one.dev for one in course.points}
    # A record that is damaged is made again, of what is kept.
    first.path.write_text(first.path.read_text().replace('"points"', '"pints"'))
    assert continual([run.name, str(later), str(zero)], runs, ignore) == first
    # Its own weights named in another place stand there, and once.
    named = continual([run.name, str(zero), str(run / "training/adapter")], runs, ignore).record
    assert isinstance(named, Course)
    assert [one.name for one in named.points] == ["base", "zero", run.name]


def test_of_a_run_that_has_trained_nothing_the_task_and_the_base_are_meant(
    run_of: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    run = run_of("colours")
    weights = adapter(tiny_model, tmp_path / "zero" / "training", 2, 0.0)
    course = continual([run.name, str(weights)], tmp_path / "runs", ignore).record
    assert isinstance(course, Course)
    assert [one.name for one in course.points] == ["base", "zero"]


MATRIX = {
    # first, second, third: shares of right answers.
    "base": (0.25, 0.25, 0.25),
    "first": (1.0, 0.5, 0.25),
    "second": (0.5, 0.75, 0.75),
    "third": (0.25, 0.5, 1.0),
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Dev scores by `MATRIX`. Returns (row, task) as they are asked."""
    asked: list[tuple[str, str]] = []
    tasks = [*MATRIX][1:]

    def evaluated(task: Any, candidate: Any, split: str, *_: Any) -> Scores:
        assert split == "dev"
        # A row's name is its run's: the task's and a hash.
        row = candidate.name.partition("-")[0]
        asked.append((row, task.name))
        right = round(MATRIX[row][tasks.index(task.name)] * len(task.dev))
        items = tuple(Score(one.id, float(at < right), "x") for at, one in enumerate(task.dev))
        return Scores(candidate.name, "tuned", "dev", task.metric, items)

    monkeypatch.setattr(flow, "evaluate", evaluated)
    return asked


def chain_of(done: Done) -> Chain:
    assert isinstance(done.record, Chain)
    return done.record


def test_a_chain_of_tasks_gives_the_matrix_and_what_it_means(
    run_of: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    planted: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second training began with the first one's adapter merged into the base, the third with the bare base."""
    first = run_of("first", 1)
    merged = tmp_path / "merged"
    merge(first / "training/adapter", tiny_model, merged)
    dev = [{**row, "id": f"dev-{at}"} for at, row in enumerate(colour_rows(8, 60))]
    second = run_of("second", 2, merged, rows={"dev": dev})
    third = run_of("third", 3)
    names, runs = [one.name for one in (first, second, third)], tmp_path / "runs"
    done = continual(names, runs, ignore)
    chain = chain_of(done)
    assert chain.tasks == ("first", "second", "third")
    assert [(one.name, one.began) for one in chain.trainings] == [(names[0], ""), (names[1], names[0]), (names[2], "")]
    means = tuple(tuple(cell.mean for cell in row) for row in chain.scores.matrix)
    assert means == tuple(MATRIX.values())
    assert len(planted) == 12
    backward = {task: one.difference for task, one in chain.scores.backward}
    assert backward == pytest.approx({"first": 0.25 - 1.0, "second": 0.5 - 0.75})
    assert chain.scores.backward_transfer is not None
    assert chain.scores.backward_transfer.estimate == pytest.approx(-0.5)
    assert chain.scores.forward_transfer is not None
    assert chain.scores.forward_transfer.estimate == pytest.approx(((0.5 - 0.25) + (0.75 - 0.25)) / 2)
    assert chain.scores.forgetting is not None
    assert chain.scores.forgetting.estimate == pytest.approx(0.5)
    assert dict(chain.scores.forgotten)["second"].a == names[1]
    assert len(chain.general) == len(chain.divergences) == 3
    kl = [row[0].kl for row in chain.divergences]
    # The second row is two adapters away from the base.
    assert kl[1] > kl[0]
    assert any(f"not from the row before: {names[2]}" in one for one in chain.sentences())

    planted.clear()
    assert continual(names, runs, ignore) == done
    assert not planted
    report = done.report.read_text()
    assert "Backward transfer: -50.0 points" in report
    assert main(["evaluate", *names, "--runs-dir", str(runs)]) == 0
    assert "Backward transfer: -50.0 points" in capsys.readouterr().out.replace("\n", " ")

    # Without the run that it began with, the second is of another base.
    assert main(["evaluate", names[2], names[1], "--runs-dir", str(runs)]) == 1
    told = capsys.readouterr().err
    assert "of another base: of merged" in told
    assert "comes after that run" in told


def test_runs_of_one_task_are_models_and_no_chain(run_of: Callable[..., Path], tmp_path: Path) -> None:
    runs = [run_of("colours", 1), run_of("colours", 2, train={"num_train_epochs": 2})]
    assert runs[0] != runs[1]
    course = continual([one.name for one in runs], tmp_path / "runs", ignore).record
    assert isinstance(course, Course)
    assert (course.kind, course.task) == ("models", "colours")
    assert [one.name for one in course.points] == ["base", *(one.name for one in runs)]


def test_dev_items_that_another_run_has_learnt_are_told(
    run_of: Callable[..., Path], tmp_path: Path, planted: list[tuple[str, str]]
) -> None:
    copies = [{**row, "id": f"copy-{row['id']}"} for row in colour_rows(3, 24)]
    first = run_of("first", 1)
    second = run_of("second", 2, rows={"train": [*colour_rows(24), *copies], "dev": colour_rows(8, 60)})
    chain = chain_of(continual([first.name, second.name], tmp_path / "runs", ignore))
    assert f"3 dev items of first stand in the training rows of {second.name}: they flatter it." in chain.sentences()


def test_what_cannot_be_measured_says_why_and_what_to_do(
    run_of: Callable[..., Path],
    tiny_model: Path,
    tiny_gemma: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    silent_model: Callable[[], None],
) -> None:
    run, bare = run_of("colours", 1), run_of("bare")
    foreign = adapter(tiny_gemma, tmp_path / "foreign" / "training", 1)
    cardless = adapter(tiny_model, tmp_path / "cardless" / "training", 1)
    (cardless / "card.json").unlink()
    silent_model()

    def refused(*arguments: str, code: int = 1) -> str:
        assert main(["evaluate", *arguments, "--runs-dir", str(tmp_path / "runs")]) == code
        return " ".join(capsys.readouterr().err.split())

    none_kept = refused(run.name, "--checkpoints")
    assert "no weights of earlier steps are kept" in none_kept
    assert "save_total_limit: 4" in none_kept
    assert "no trained weights" in refused(bare.name, "--checkpoints")
    assert "no trained weights" in refused(run.name, bare.name)
    unknown = refused(run.name, run.name[:-1])
    assert f"did you mean '{run.name}'" in unknown
    assert "advisor adapters" in unknown
    other = refused(run.name, str(foreign))
    assert "of another base" in other
    assert str(foreign) in other
    assert "and here it is tiny (" in other
    assert "no card" in refused(run.name, str(cardless))
    assert "named twice" in refused(run.name, run.name, code=2)
    assert "of one RUN" in refused(run.name, bare.name, "--checkpoints", code=2)
    assert not (run / "continual").exists()


def test_what_data_say_is_no_markup(run_of: Callable[..., Path], tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of("colours")
    name = "[red]a|b`\x1b[31m"
    weights = adapter(tiny_model, tmp_path / "x" / "training", 2, 0.0).rename(tmp_path / name)
    assert main(["evaluate", run.name, str(weights), "--runs-dir", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr()
    assert "\x1b[31m" not in shown.out + shown.err
    assert "[red]" in shown.out
    report = continual([run.name, str(weights)], tmp_path / "runs", ignore).report.read_text()
    assert "\x1b" not in report
    (row,) = [line for line in report.splitlines() if line.startswith("|") and "red" in line]
    assert "\\[red\\]a\\\\|b" in row
