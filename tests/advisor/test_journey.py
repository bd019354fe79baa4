"""The whole journey on a model of two layers: every stage's record, reuse, interruption at each stage, the lock, the gate."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.cli.main import main
from advisor.decision.evidence import TrainingPlan
from advisor.flow import advice, tuned
from advisor.flow.intake import read_task
from advisor.flow.plan import plan
from advisor.flow.run import find_run, open_run, run_folder
from advisor.flow.whole import STAGES, go
from advisor.report.journey import Journey
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import CandidateScored, Event, StageFinished, StageStarted, TrainingStep, ignore
from evals.general import suites
from evals.general.suites import quick_suite
from evals.records import read_json, read_jsonl
from tests.conftest import COLOURS, colour_rows
from tests.few_items import first_items
from trainer import quantised
from trainer.card import read_card

Make = Callable[..., Path]
# Tokens decide between arms that score the same: seconds are another arm's in every run.
PRICES = {"gpu_hour": 1.0, "input_per_million": 1.0, "output_per_million": 1.0}
LOOKS = {"early_stopping_patience": 9, "eval_steps": 1}
FAST = {"num_train_epochs": 1, "save_steps": 2, "lora_r": 2, "per_device_train_batch_size": 8}


def noise(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows of which no way can learn the output: where something scores 1.0 already, training cannot pay and is not tried."""
    chance = random.Random(start)
    return [{**row, "output": chance.choice(COLOURS)} for row in colour_rows(count, start)]


@pytest.fixture(autouse=True)
def short_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real suite, a few items of it: a model of two layers is not what it is for."""
    few = first_items(quick_suite(), "quick", facts=6, instructions=4)
    monkeypatch.setattr(suites, "quick_suite", lambda: few)


@pytest.fixture
def task_folder(make_task: Make, tmp_path: Path) -> Path:
    # Under ten dev items nothing would be bought.
    rows = {"train": noise(24), "dev": noise(12, 100)}
    return make_task(tmp_path / "task", rows=rows, train=FAST, prices=PRICES, gate={"max_cost_per_1k": 1000.0})


# Where the tuned model's answers lie: dev's were asked to weigh the evidence.
CARD_SCORES = {"dev": "probes/dev/tuned.jsonl", "test": "scores/test/tuned.jsonl"}


class Seen:
    """A listener that keeps all events, and stops the run at the first that `stop_at` likes."""

    def __init__(self, stop_at: Callable[[Event], bool] = lambda event: False) -> None:
        self.events: list[Event] = []
        self.stop_at = stop_at

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.stop_at(event):
            raise KeyboardInterrupt


def journey(folder: Path, runs: Path, on_event: Callable[[Event], None] = ignore, **more: Any) -> Journey:
    return go(read_task(str(folder)), runs, on_event, train=more.pop("train", True), **more)


def outputs(run: Path) -> dict[str, list[str]]:
    files = [*run.glob("scores/*/*.jsonl"), *run.glob("general/quick/*.jsonl")]
    return {str(path.relative_to(run)): [row["output"] for row in read_jsonl(path)] for path in sorted(files)}


def test_every_stage_leaves_its_record_and_a_second_run_asks_nothing(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    first = journey(task_folder, tmp_path / "runs", seen)
    assert read_json(first.folder / "probes.json")["trained"][0]["full"]
    assert [event.stage for event in seen.events if isinstance(event, StageStarted)] == list(STAGES)
    assert any(isinstance(event, TrainingStep) and event.loss is not None for event in seen.events)
    for name in (
        "task.json",
        "splits.json",
        "probes.json",
        "recommendation.json",
        "reevaluation.json",
        "verdict.json",
        "report.json",
        "general/divergence.json",
        "general/forgetting.json",
    ):
        assert read_json(first.folder / name)["schema_version"] == 1, name
    for name in ("scores/dev/zero_shot.jsonl", "scores/test/tuned.jsonl", "general/quick/base.jsonl", "general/quick/tuned.jsonl",
                 "training/adapter/adapter_model.safetensors", "training/recipe.json", "events.jsonl", "report.md"):  # fmt: skip
        assert (first.folder / name).is_file(), name
    assert not list(first.folder.rglob("*.partial"))
    assert not list(first.folder.rglob("*.tmp"))
    line = read_jsonl(first.folder / "scores/test/tuned.jsonl")[0]
    assert {"id", "score", "output", "prompt_tokens", "output_tokens", "seconds", "skipped"} <= set(line)
    card = read_card(first.folder / "training" / "adapter")
    scores = {split: [row["score"] for row in read_jsonl(first.folder / path)] for split, path in CARD_SCORES.items()}
    assert {split: (one.mean, one.n) for split, one in card.scores.items()} == {
        split: (pytest.approx(sum(values) / len(values)), len(values)) for split, values in scores.items()
    }

    def asked(*_: Any) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(HfEngine, "generate", asked)
    before = outputs(first.folder)
    again = Seen()
    second = journey(task_folder, tmp_path / "runs", again)
    assert outputs(second.folder) == before
    assert second.recommendation == first.recommendation
    assert second.verdict == first.verdict
    reused = {event.stage: event.reused for event in again.events if isinstance(event, StageFinished)}
    assert all(reused[name] for name in STAGES if name != "verdict"), reused


def test_a_run_of_its_own_takes_the_answers_that_another_run_has_paid_for(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = journey(task_folder, tmp_path / "one", until="baselines", train=None)

    def loaded(self: ModelHandle) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ModelHandle, "base", property(loaded))
    second = journey(task_folder, tmp_path / "two", until="baselines", train=None)
    assert second.folder != first.folder
    assert outputs(second.folder) == outputs(first.folder)
    # What it cost is what it cost when the model was asked.
    assert [one.items for one in second.arms if one.kind == "prompt"] == [
        one.items for one in first.arms if one.kind == "prompt"
    ]


def test_training_never_sees_a_test_row(task_folder: Path, tmp_path: Path) -> None:
    done = journey(task_folder, tmp_path / "runs", until="training")
    task = done.task
    test = {example.text for example in task.test}
    jobs = sorted(path.parent for path in done.folder.rglob("job.json"))
    assert done.folder / "training" in jobs
    for job in jobs:
        given = "".join((job / name).read_text() for name in ("train.jsonl", "dev.jsonl"))
        assert not any(text in given for text in test)
    assert not (done.folder / "scores" / "test").exists()


STOPS: dict[str, Callable[[Event], bool]] = {
    "intake": lambda event: isinstance(event, StageFinished) and event.stage == "intake",
    "baselines": lambda event: isinstance(event, CandidateScored) and event.candidate == "zero_shot",
    "evidence": lambda event: isinstance(event, TrainingStep) and event.step == 1,
    "advice": lambda event: isinstance(event, StageFinished) and event.stage == "advice",
    "training": lambda event: isinstance(event, StageFinished) and event.stage == "training",
    "general": lambda event: getattr(event, "task", "") == "tuned on quick",
    "test": lambda event: isinstance(event, CandidateScored) and event.split == "test",
}


def test_interrupted_at_every_stage_it_goes_on_and_ends_as_if_unbroken(
    task_folder: Path, tmp_path: Path, own_cache: Path
) -> None:
    whole = journey(task_folder, tmp_path / "whole")
    # The second run is to ask the model itself.
    for path in own_cache.glob("responses.sqlite*"):
        path.unlink()
    for name, stop in STOPS.items():
        with pytest.raises(KeyboardInterrupt):
            journey(task_folder, tmp_path / "broken", Seen(stop))
        assert not (run_folder(whole.task, tmp_path / "broken") / "verdict.json").exists(), name
    broken = journey(task_folder, tmp_path / "broken")
    assert outputs(broken.folder) == outputs(whole.folder)
    adapters = [one.folder / "training" / "adapter" / "adapter_model.safetensors" for one in (broken, whole)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert broken.recommendation is not None
    assert whole.recommendation is not None
    assert broken.recommendation.comparisons == whole.recommendation.comparisons


def test_the_second_run_on_the_same_folder_is_refused(
    task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = read_task(str(task_folder))
    with open_run(task, tmp_path / "runs", ignore):
        assert main(["bench", str(task_folder), "--runs-dir", str(tmp_path / "runs")]) == 1
    assert "another advisor is working on this run" in capsys.readouterr().err
    with open_run(task, tmp_path / "runs", ignore):
        pass


def test_a_full_disk_loses_nothing(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    done = journey(task_folder, runs, until="baselines")
    before = outputs(done.folder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("evals.records.os.fsync", full)
        assert main(["advise", str(task_folder), "--runs-dir", str(runs)]) == 1
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "What to do" in said
    assert outputs(done.folder) == before
    assert main(["advise", str(task_folder), "--runs-dir", str(runs)]) == 0


def test_command_line_gate_report_and_looks(task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert main(["train", str(task_folder), *runs]) == 0
    assert main(["gate", str(task_folder), *runs]) == 1
    assert "no verdict yet" in capsys.readouterr().err
    assert main(["evaluate", str(task_folder), *runs]) == 0
    capsys.readouterr()
    code = main(["gate", str(task_folder), "--json", *runs])
    verdict = json.loads(capsys.readouterr().out)
    assert code == {"pass": 0, "fail": 100, "inconclusive": 101}[verdict["verdict"]]
    assert {rule["rule"] for rule in verdict["rules"]} == {"min_gain", "max_forgetting", "max_cost_per_1k"}
    # Ten general items can show nothing: the gate must not pass on them.
    assert verdict["verdict"] != "pass"
    assert main(["report", str(task_folder), *runs]) == 0
    assert "locked test" in capsys.readouterr().out
    looks = read_jsonl(task_folder / "ledger.jsonl")
    assert len(looks) == 1
    assert looks[0]["candidates"][0] == "tuned"


def test_a_later_run_on_the_same_test_rows_is_told_of_the_earlier_look(
    task_folder: Path, make_task: Make, tmp_path: Path
) -> None:
    journey(task_folder, tmp_path / "runs")
    changed = make_task(task_folder, train={**FAST, "lora_r": 4}, prices=PRICES)
    second = journey(changed, tmp_path / "runs")
    assert second.reevaluated is not None
    assert second.reevaluated.earlier_looks == 1
    assert "looked at 1 time" in (second.folder / "report.md").read_text()


def test_an_edited_task_is_another_run_and_the_gate_does_not_take_the_old_one(
    task_folder: Path, make_task: Make, tmp_path: Path
) -> None:
    done = journey(task_folder, tmp_path / "runs", until="baselines", train=None)
    assert find_run(str(task_folder), tmp_path / "runs") == done.folder
    make_task(task_folder, seed=7)
    with pytest.raises(AdvisorError, match="of an earlier state"):
        find_run(str(task_folder), tmp_path / "runs")


def test_dry_run_prints_a_plan_and_writes_nothing(
    task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(task_folder), "--dry-run", "--json", "--runs-dir", str(tmp_path / "runs")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["lora_r"] == 2
    # 24 rows and a fifth of replay: 30 rows in batches of 8.
    assert plan["training_estimate"]["steps"] == 4
    assert not (tmp_path / "runs").exists()


def test_hostile_rows_stay_text_in_the_report(make_task: Make, tmp_path: Path) -> None:
    hostile = "```\n<script>alert(1)</script> [x](javascript:y) | [red]z[/] \x1b[31m"
    rows = [{"id": f"hostile-{n}", "input": f"{hostile} {n}", "output": "red"} for n in range(8)]
    folder = make_task(tmp_path / "task", rows={"test": rows}, train=FAST)
    done = journey(folder, tmp_path / "runs")
    report = (done.folder / "report.md").read_text()
    outside, inside = [], False
    for line in report.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            outside.append(line)
    assert "<script>" not in "\n".join(outside)
    assert "\x1b" not in report


def test_a_learning_curve_is_bought_kept_and_held_to_what_came_of_it(
    make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the full training is dear: points of 64 and more rows, two seeds, and then the real thing beside the forecast."""
    monkeypatch.setattr(advice, "plan_of", lambda *_: TrainingPlan(300, 1e6, ((75, 1.0), (150, 2.0))))
    monkeypatch.setattr(tuned, "PROBE_STEPS", 4)
    splits = {"train": noise(300), "dev": noise(30, 1000), "test": noise(12, 2000)}
    folder = make_task(tmp_path / "task", rows=splits, train={**FAST, "per_device_train_batch_size": 64})
    runs = tmp_path / "runs"
    done = journey(folder, runs, until="advice", train=None)
    bought = [one for one in read_json(done.folder / "probes.json")["bought"] if one["what"] == "training"]
    assert [(one["rows"], one["seed"]) for one in bought[:2]] == [(75, 0), (75, 1)]
    small = {json.loads(line)["id"] for line in (done.folder / "curve/75-0/train.jsonl").read_text().splitlines()}
    assert len(small) == 75
    if len(bought) == 3:
        large = {json.loads(line)["id"] for line in (done.folder / "curve/150-0/train.jsonl").read_text().splitlines()}
        assert small < large
    assert not (done.folder / "training").exists()
    forecasts = read_json(done.folder / "curve.json")["forecasts"]
    assert 0 <= forecasts[-1]["chance"] <= 1
    assert any("short training" in one.sentence for one in done.recommendation.reasons)

    trained = journey(folder, runs, until="training")
    observed = read_json(trained.folder / "curve.json")["observed"]
    best = max(arm.mean for arm in trained.arms if arm.kind != "trivial")
    assert observed["gain"] == pytest.approx(observed["score"] - best)
    (line,) = read_jsonl(runs / "calibration.jsonl")
    assert line["observed"] == observed["gain"]
    journey(folder, runs, until="training")
    assert len(read_jsonl(runs / "calibration.jsonl")) == 1
    capsys.readouterr()
    assert main(["doctor", "--calibration", "--runs-dir", str(runs)]) == 0
    assert "1 forecast was followed by a full training" in " ".join(capsys.readouterr().out.split())


def test_all_weights_go_the_whole_way(make_task: Make, tmp_path: Path) -> None:
    rows = {"train": noise(24), "dev": noise(12, 100)}
    folder = make_task(
        tmp_path / "task",
        rows=rows,
        train={
            "method": "full",
            **{key: value for key, value in FAST.items() if key != "lora_r"},
            "learning_rate": 0.01,
            **LOOKS,
        },
        prices=PRICES,
        gate={"max_cost_per_1k": 1000.0},
    )
    done = journey(folder, tmp_path / "runs")
    model = done.folder / "training" / "model"
    assert not (done.folder / "training" / "adapter").exists()
    assert read_card(model).kind == "model"
    assert read_card(model).scores.keys() == {"dev", "test"}
    assert read_json(done.folder / "report.json")["training"]["folder"] == "model"
    # They are the best of what was looked at, and the report does not keep that to itself.
    looks = read_json(done.folder / "training" / "training.json")["chosen_of"]
    assert looks > 1
    assert f"dev's loss is the best of {looks} looks at the same rows" in (done.folder / "report.md").read_text()
    # What the locked test and the general benchmarks were asked of are these weights, not the base's.
    found, general = outputs(done.folder), read_json(done.folder / "reevaluation.json")["general"]["tasks"]
    assert set(general) == {"facts", "instructions"}
    assert found["general/quick/tuned.jsonl"] != found["general/quick/base.jsonl"]

    again = Seen()
    second = journey(folder, tmp_path / "runs", again)
    assert outputs(second.folder) == found
    assert next(one.reused for one in again.events if isinstance(one, StageFinished) and one.stage == "training")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"method": "qlora"}, "a base in 4 bits"),
        ({"lora_target_modules": ["c_attn"]}, "`c_attn` is not in this model"),
        ({"max_length": 513}, "more than this model reads"),
    ],
)
def test_a_recipe_that_cannot_be_trained_here_is_refused_before_anything_is_loaded(
    train: dict[str, Any], message: str, make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelHandle, "base", property(lambda self: pytest.fail("the model was loaded")))
    monkeypatch.setattr(quantised, "unusable", lambda device: "bitsandbytes is not installed")
    folder = make_task(tmp_path / "task", train=train)
    with pytest.raises(AdvisorError, match=message):
        journey(folder, tmp_path / "runs", train=None)
    with pytest.raises(AdvisorError, match=message):
        plan(read_task(str(folder)), tmp_path / "runs")
