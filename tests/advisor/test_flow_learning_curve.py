"""Points of the learning curve as they are bought on a tiny model, the forecasts that are kept, and what they are held to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.cli.main import main
from advisor.decision.calibration import Held, calibration
from advisor.decision.evidence import Purchase, Trained
from advisor.decision.learning_curve import Forecast, forecast
from advisor.flow.doctor import past_forecasts
from advisor.flow.learning_curve import bought, keep_forecast, plan_of, settle, subset
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.tuned import curve_recipe, job_for, recipe_for
from evals.errors import AdvisorError
from evals.events import ignore
from evals.records import read_json, read_jsonl
from evals.scores import Score, Scores
from evals.task.load import Task, load_task
from tests.conftest import colour_rows
from trainer.job import finished
from trainer.recipe import Recipe

Make = Callable[..., Path]


@pytest.fixture
def task(make_task: Make, tmp_path: Path) -> Task:
    rows = {"train": colour_rows(260), "dev": colour_rows(8, 300), "test": colour_rows(8, 400)}
    return load_task(make_task(tmp_path / "task", rows=rows, train={"num_train_epochs": 0.1, "replay_share": 0.0}))


def run_in(tmp_path: Path, name: str = "colours-1") -> Run:
    return Run(tmp_path / "runs" / name, ignore)


def scored(name: str, right: int, n: int = 40) -> Scores:
    return Scores(name, "tuned", "dev", "exact", tuple(Score(f"item-{at}", float(at < right), "") for at in range(n)))


def foreseen(*right: int) -> Forecast:
    sizes = (128, 256, 512)
    points = [Trained(rows, 0, False, scored("tuned", one)) for rows, one in zip(sizes, right, strict=False)]
    found = forecast(points, scored("best", 20), 2048, 0.03)
    assert found is not None
    return found


def test_points_of_the_curve_share_their_cap_and_stop_early() -> None:
    recipe = Recipe(num_train_epochs=2, learning_rate=3e-4)
    points = [curve_recipe(recipe, rows, 16_000) for rows in (1000, 2000, 4000, 8000)]
    assert [one.total_steps(rows) for one, rows in zip(points, (1000, 2000, 4000, 8000), strict=True)] == [
        500,
        1000,
        1000,
        1000,
    ]
    assert {(one.max_steps, one.eval_steps, one.early_stopping_patience) for one in points} == {(1000, 100, 3)}
    # Every row of every subset is seen at least once.
    assert all(one.passes(rows) >= 1 for one, rows in zip(points, (1000, 2000, 4000, 8000), strict=True))
    assert all((one.learning_rate, one.replay_share) == (3e-4, 0.0) for one in points)
    # Few rows are seen more often: the same steps, so that the curve is one of rows.
    few = [curve_recipe(recipe, rows, 1024) for rows in (64, 128, 256, 512)]
    assert {one.total_steps(rows) for one, rows in zip(few, (64, 128, 256, 512), strict=True)} == {100}


def test_the_plan_names_every_subset_with_its_seconds(task: Task) -> None:
    session = Session(task, ignore)
    plan = plan_of(task, session, recipe_for(task, session.weights))
    assert (plan.rows, [rows for rows, _ in plan.subsets]) == (260, [65, 130])
    assert plan.full_seconds > 0
    assert all(seconds > 0 for _, seconds in plan.subsets)


def test_subsets_are_nested_seeded_and_drawn_from_everywhere(task: Task) -> None:
    small, large = subset(task, 65), subset(task, 130)
    assert large[:65] == small
    assert len(set(large)) == 130
    assert max(int(row.id.removeprefix("row-")) for row in small) > 200
    other = replace(task, spec=task.spec.model_copy(update={"seed": 1}))
    assert subset(other, 65) != small == subset(task, 65)


def test_a_point_and_the_full_training_are_bought(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, session = run_in(tmp_path), Session(task, ignore)
    monkeypatch.setattr("advisor.flow.tuned.PROBE_STEPS", 4)
    monkeypatch.setattr("advisor.flow.tuned.PROBE_EPOCHS", 0.1)
    point = bought(task, run, session, Purchase("training", "", 16, 1), None)
    assert (point.rows, point.seed, point.full, point.scores.candidate) == (16, 1, False, "tuned_16_1")
    assert [item.id for item in point.scores.items] == [row.id for row in task.dev]
    assert point.seconds > 0
    job = read_json(run.path("curve/16-1/job.json"))
    assert job["recipe"]["seed"] == task.spec.seed + 1
    assert [row["id"] for row in read_jsonl(run.path("curve/16-1/train.jsonl"))] == [row.id for row in subset(task, 16)]
    assert run.path("probes/dev/tuned_16_1.jsonl").is_file()
    full = bought(task, run, session, Purchase("training", "", len(task.train), 0, full=True), None)
    assert (full.full, full.scores.candidate) == (True, "tuned")
    # The stage that trains finds it finished: this is its job.
    stage = job_for(task, session, recipe_for(task, session.weights), task.train, run.path("training"), "training")
    assert finished(stage.folder, stage.input_hash, reused=True)


def test_forecasts_are_kept_once_for_the_points_they_rest_on(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for one in (foreseen(18), foreseen(18, 22), foreseen(18, 22)):
        keep_forecast(run, one)
    kept = read_json(run.path("curve.json"))["forecasts"]
    assert [len(one["points"]) for one in kept] == [1, 2]
    assert kept[1]["chance"] == foreseen(18, 22).chance


def test_a_forecast_is_held_to_the_full_training_in_one_line_a_run(task: Task, tmp_path: Path) -> None:
    best, full = scored("best", 20), scored("tuned", 27)
    for name in ("colours-1", "colours-2", "colours-1"):
        run = run_in(tmp_path, name)
        keep_forecast(run, foreseen(18, 22))
        settle(task, run, full, best)
    first, second = past_forecasts(tmp_path / "runs")
    assert (first.run, second.run) == ("colours-2", "colours-1")
    expected = foreseen(18, 22)
    assert (second.gain, second.low, second.high) == (expected.gain, expected.run_low, expected.run_high)
    assert (second.observed, second.points, second.rows, second.chance) == (pytest.approx(0.175), 2, 2048, expected.chance)
    assert read_json(run.path("curve.json"))["observed"]["gain"] == pytest.approx(0.175)
    with pytest.raises(AdvisorError, match="same items"):
        settle(task, run, scored("tuned", 27, 41), best)


def test_nothing_is_held_where_nothing_was_foreseen(task: Task, tmp_path: Path) -> None:
    settle(task, run_in(tmp_path), scored("tuned", 27), scored("best", 20))
    assert past_forecasts(tmp_path / "runs") == ()


def held(chance: float, gain: float, observed: float, run: str = "r") -> Held:
    return Held(run, "t", "m", 2048, 4, 0.03, gain, gain - 0.05, gain + 0.05, chance, observed, "2026-01-02")


def test_calibration_counts_by_hand() -> None:
    past = [held(0.05, 0.0, 0.01), held(0.08, 0.0, 0.10), held(0.5, 0.03, 0.04), held(0.95, 0.1, 0.1), held(1.0, 0.1, 0.02)]
    found = calibration(past)
    assert found is not None
    assert (found.n, found.inside) == (5, 3)
    assert found.error == pytest.approx((-0.01 - 0.10 - 0.01 + 0 + 0.08) / 5)
    assert found.absolute == pytest.approx(0.2 / 5)
    assert [(one.low, one.n, one.paid) for one in found.bins] == [(0.0, 2, 1), (0.3, 1, 1), (0.9, 2, 1)]
    assert found.bins[0].chance == pytest.approx(0.065)
    assert "So few carry hardly any claim." in found.sentence()
    assert calibration([]) is None


def test_doctor_shows_how_forecasts_held(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    assert main(["doctor", "--calibration", "--runs-dir", runs]) == 0
    assert "No forecast of training has been followed by a full training yet" in capsys.readouterr().out
    assert main(["doctor", "--calibration", "--runs-dir", runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"calibration": None, "forecasts": []}
    run = run_in(tmp_path)
    keep_forecast(run, foreseen(18, 22))
    settle(task, run, scored("tuned", 40), scored("best", 20))
    assert main(["doctor", "--calibration", "--runs-dir", runs]) == 0
    shown = capsys.readouterr().out
    assert "1 forecast was followed by a full training" in shown
    assert "+50.0" in shown
    assert main(["doctor", "--calibration", "--runs-dir", runs, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["calibration"]["n"] == 1
    assert body["forecasts"][0]["observed"] == pytest.approx(0.5)


def test_a_damaged_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "calibration.jsonl").write_text('{"run": "r"}\n{"run": "s"}\n')
    assert main(["doctor", "--calibration", "--runs-dir", str(tmp_path)]) == 1
    assert "this record is damaged" in capsys.readouterr().err
