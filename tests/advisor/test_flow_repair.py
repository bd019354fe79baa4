"""Repair on a model of two layers: real weights and a real half of a suite on which the base is right by construction."""

from __future__ import annotations

import random
import re
import shutil
import string
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from advisor.cli.main import main
from advisor.decision.repair import choose
from advisor.flow import repair, tuned
from advisor.flow.export import trained_weights
from advisor.flow.intake import read_task
from advisor.flow.repair import Bench, arms_of, read_repair, search
from advisor.flow.session import Session
from advisor.flow.whole import go
from advisor.report.journey import Journey
from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import Event, Note, StageFinished, ignore
from evals.general import suites
from evals.general.halves import half, half_of
from evals.general.lm_eval import measure
from evals.general.suites import Suite, quick_suite, rows_of, standard_suite
from evals.records import content_hash, read_json, read_jsonl
from evals.scores import Score, Scores
from evals.task.example import Example
from tests.advisor.test_journey import FAST, PRICES, Seen, noise
from tests.few_items import first_items
from tests.random_adapter import fp32, random_adapter, trained
from tests.trainer import forked
from trainer import launch
from trainer.card import read_card, write_card
from trainer.job import TrainingJob
from trainer.recipe import Recipe
from trainer.regmean import WEIGHTS_OF_GENERAL
from trainer.repair import line, source
from trainer.saving import save_weights

Make = Callable[..., Path]
ITEMS = 220


def planted(rows: list[dict[str, Any]]) -> Suite:
    """One multiple-choice task of these rows."""
    task = next(one for one in quick_suite().tasks if one.name == "facts")
    config = dict(task.config)
    make: Any = config["custom_dataset"]
    config["custom_dataset"] = partial(make.func, rows, *make.args[1:], **make.keywords)
    return Suite("planted", (replace(task, config=config, items=len(rows), digest=content_hash(rows)),))


def drawn_item(at: int) -> dict[str, Any]:
    drawn = random.Random(at)
    words = ["".join(drawn.sample(string.ascii_lowercase, 4)) for _ in range(4)]
    asked = " ".join("".join(drawn.sample(string.ascii_lowercase, 5)) for _ in range(2))
    return {"id": f"planted-{at}", "template": f"{at}", "question": f"{asked}?", "choices": words, "answer": 0}


@pytest.fixture(scope="module")
def right_by_construction(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Items whose right answer is what the base says: every flip of another model's is a loss."""
    rows = [drawn_item(at) for at in range(ITEMS)]
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    found, _ = measure(engine, planted(rows), tmp_path_factory.mktemp("general"), "base", ignore)
    said = {one.id: one.output for one in found.items}
    suite = planted([{**row, "answer": row["choices"].index(said[row["id"]])} for row in rows])
    return replace(suite, name="right")


@pytest.fixture
def make_job(tiny_model: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    def make(name: str, **recipe: Any) -> TrainingJob:
        row = Example("train-0", (Message("user", "red 0"),), "r")
        settings = Recipe(**{"lora_r": 4, **recipe})
        form = PromptFormat("Name it.", "inline")
        return TrainingJob(tiny_model, settings, form, (row,), (), tmp_path / name, "float32", name)

    return make


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the launcher alone: others start processes of their own too."""
    forked.start_server()
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": forked.Worker}))


def dev_scores(name: str, mean: float, count: int = 12) -> Scores:
    right = round(mean * count)
    items = tuple(Score(f"dev-{at}", float(at < right), "x") for at in range(count))
    return Scores(name, "tuned", "dev", "accuracy", items)


@pytest.fixture
def planted_gain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], float]], list[str]]:
    """Dev scores by an arm's name: a model of two layers learns nothing. Returns the names that were asked, in their order."""

    def plant(score: Callable[[str], float]) -> list[str]:
        asked: list[str] = []

        def evaluated(task: Any, candidate: Any, split: str, *_: Any) -> Scores:
            asked.append(candidate.name)
            assert split == "dev", "repair looks at dev only"
            right = round(score(candidate.name) * len(task.dev))
            items = tuple(Score(row.id, float(at < right), "x") for at, row in enumerate(task.dev))
            return Scores(candidate.name, "tuned", "dev", task.metric, items)

        monkeypatch.setattr(repair, "evaluate", evaluated)
        return asked

    return plant


def scale_of(name: str) -> float:
    return float(name.rpartition("_x")[2]) if "_x" in name else 1.0


@pytest.fixture
def bench(
    make_task: Make, right_by_construction: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Bench]:
    def make(**more: Any) -> Bench:
        task = read_task(str(make_task(tmp_path / "task", rows={"dev": noise(12, 100)})))
        session = Session(task, more.pop("on_event", ignore))
        whole, _ = measure(session.weights, right_by_construction, tmp_path / "general", "base", ignore)
        suite = half(right_by_construction, "a")
        rival = replace(dev_scores("zero_shot", 0.0), metric=task.metric)
        rival = replace(rival, items=tuple(Score(row.id, 0.0, "x") for row in task.dev))

        def candidate(folder: Path, name: str) -> Any:
            return tuned.tuned_candidate(task, session, folder, name, PromptFormat("Name it.", "inline"))

        margin = more.pop("margin", 0.1)
        return Bench(task, session, tmp_path / "repair", suite, whole, rival, candidate, frozenset(), margin, **more)

    return make


def test_the_halves_are_apart_and_make_up_the_suite(right_by_construction: Suite) -> None:
    halves = [half(right_by_construction, which) for which in ("a", "b")]
    ids = [{row["id"] for task in one.tasks for row in task.config["custom_dataset"].args[0]} for one in halves]
    assert not ids[0] & ids[1]
    assert sum(map(len, ids)) == ITEMS == sum(one.items for suite in halves for one in suite.tasks)
    assert {half_of(one) for one in ids[0]} == {"a"}
    assert 0.4 < len(ids[0]) / ITEMS < 0.6
    assert len({*(one.tasks[0].digest for one in halves), right_by_construction.tasks[0].digest}) == 3


def test_the_search_finds_the_largest_gain_within_the_margin(
    bench: Callable[..., Bench],
    make_job: Callable[..., TrainingJob],
    planted_gain: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = planted_gain(scale_of)
    own = source("tuned", random_adapter(make_job("a/training"), 1, 0.03))
    at, scales = bench(), line("tuned", [own])
    found = search(at, scales)
    kls = [one.kl for one in sorted(found, key=lambda one: -one.scale)]
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] > 0
    measured = {one.name: one for one in found if one.measured}
    assert asked[0] == "tuned"
    assert not measured["tuned"].passes, "nothing is to be mended"
    chosen = choose(found).chosen
    assert chosen
    assert measured[chosen].passes
    assert not any(one.passes and one.scale > measured[chosen].scale for one in measured.values())
    # The next stronger one was looked at and lost too much.
    stronger = min((one.scale for one in found if one.scale > measured[chosen].scale), default=None)
    assert any(one.scale == stronger and not one.passes for one in measured.values())

    # What is measured is kept: a second search reads no weights.
    monkeypatch.setattr(HfEngine, "compared", lambda *_: pytest.fail("KL was measured again"))
    monkeypatch.setattr(ModelHandle, "forward", lambda *_: pytest.fail("the model was asked again"))
    assert search(bench(), scales) == found


def test_a_regmean_keeps_the_gain_that_a_smaller_scale_gives_up(
    bench: Callable[..., Bench], make_job: Callable[..., TrainingJob], planted_gain: Callable[..., list[str]]
) -> None:
    """All of one source are made when the first is asked for, and chosen where they gain most."""
    planted_gain(scale_of)
    own, at = source("tuned", random_adapter(make_job("a/training"), 1, 0.03)), bench()
    arms = arms_of(own, (), (own,))
    solved = [one for one in arms if one.general]
    assert [one.name for one in solved] == [f"tuned_regmean_{weight:g}" for weight in WEIGHTS_OF_GENERAL]
    with at.weights(solved[-1]) as folder:
        card = read_card(folder)
        made = sorted((at.folder / ".arms").iterdir())
    assert "RegMean with the base on general text at a weight of 10" in card.title
    assert card.how == "repair"
    assert len(made) == len(solved)
    found = {one.name: one for one in search(at, arms)}
    assert {one.name for one in arms} == set(found)
    assert choose([*found.values()]).chosen in {one.name for one in solved}
    assert found["tuned_regmean_10"].kl < found["tuned_regmean_0.3"].kl < found["tuned"].kl


def test_answers_that_are_there_are_not_asked_again(
    bench: Callable[..., Bench],
    make_job: Callable[..., TrainingJob],
    planted_gain: Callable[..., list[str]],
    right_by_construction: Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted_gain(scale_of)
    own = source("tuned", random_adapter(make_job("a/training"), 1, 0.03))
    arms = arms_of(own, (), (own,))
    engine = bench().session.weights.with_adapter(own.folder, "tuned")
    whole, _ = measure(engine, right_by_construction, tmp_path / "general", "tuned", ignore)
    expected = search(bench(), arms, most=1)
    shutil.rmtree(tmp_path / "repair")
    monkeypatch.setattr(repair, "measure", lambda *_: pytest.fail("the trained weights were asked again"))
    assert search(bench(answered={"tuned": whole}), arms, most=1) == expected


def test_whole_models_are_made_when_they_are_asked_and_not_kept(
    bench: Callable[..., Bench], make_job: Callable[..., TrainingJob], planted_gain: Callable[..., list[str]]
) -> None:
    """Several of them would fill a disk; what they scored is kept."""
    import torch

    planted_gain(scale_of)
    job = make_job("full", use_peft=False)
    model, drawn = fp32(job.model_folder), torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=drawn)
    job.folder.mkdir(parents=True)
    folder = save_weights(model, job.folder, tokenizer_of=job.model_folder)
    write_card(folder, job, trained(job, folder))
    own, at = source("tuned", folder), bench()
    arms = arms_of(own, (), (own,))
    found = search(at, arms, most=2)
    kls = [one.kl for one in found]
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] > 0
    assert sum(one.measured for one in found) == 2
    assert not any(path.is_file() for path in (at.folder / ".arms").rglob("*"))
    assert own.folder.is_dir()


def test_weights_that_cannot_be_summed_are_left_out_and_said(
    bench: Callable[..., Bench], make_job: Callable[..., TrainingJob], planted_gain: Callable[..., list[str]]
) -> None:
    planted_gain(scale_of)
    heard: list[Event] = []
    dora = [
        source(name, random_adapter(make_job(name, use_dora=True, seed=seed), seed, 0.02))
        for seed, name in ((1, "a"), (2, "b"))
    ]
    found = search(bench(on_event=heard.append), arms_of(dora[0], (), dora), most=1)
    assert not any(one.kind == "soup" for one in found)
    assert any(isinstance(one, Note) and "soup_of_2 is left out" in one.text for one in heard)


RUINOUS = {**FAST, "learning_rate": 0.002, "replay_share": 0.0}


@pytest.fixture
def run_of(
    make_task: Make, tmp_path: Path, right_by_construction: Suite, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Journey]:
    """A whole journey on the planted suite."""
    monkeypatch.setattr(repair, "general_suite", lambda task: right_by_construction)
    rows = {"train": noise(24), "dev": noise(12, 100)}
    folder = make_task(tmp_path / "task", rows=rows, train=RUINOUS, prices=PRICES, gate={"max_forgetting": 0.1})

    def run(on_event: Callable[[Event], None] = ignore, **more: Any) -> Journey:
        return go(read_task(str(folder)), tmp_path / "runs", on_event, train=True, **more)

    return run


def test_a_run_that_forgot_too_much_is_mended_before_the_test_is_opened(
    run_of: Callable[..., Journey], planted_gain: Callable[..., list[str]], tmp_path: Path
) -> None:
    planted_gain(lambda name: 0.5 + scale_of(name) / 2)
    seen = Seen(lambda event: isinstance(event, StageFinished) and event.stage == "repair")
    with pytest.raises(KeyboardInterrupt):
        run_of(seen)
    (run,) = (tmp_path / "runs").glob("*/repair.json")
    run = run.parent
    assert not (run / "scores" / "test").exists()
    assert not (tmp_path / "task" / "ledger.jsonl").exists()

    done = run_of()
    found = done.repair
    assert found is not None
    assert found.chosen
    assert found.weights == "repair/adapter"
    weights = run / found.weights
    assert trained_weights(run) == weights
    card = read_card(weights)
    scale = next(one.scale for one in found.arms if one.name == found.chosen)
    assert [(one.digest, one.weight) for one in card.parents] == [(read_card(run / "training/adapter").digest, scale)]
    # What the test and the gate were asked of are the repaired weights.
    assert set(card.scores) == {"dev", "test"}
    assert "test" not in read_card(run / "training/adapter").scores
    assert done.reevaluated is not None
    general = done.reevaluated.general
    assert general is not None
    assert {half_of(one.id) for one in general.tuned.items} == {"b"}
    assert general.tuned.suite == found.confirm == "right-b"
    (look,) = read_jsonl(tmp_path / "task" / "ledger.jsonl")
    assert look["weights"]
    assert not (run / "repair" / ".arms").exists()
    report = (run / "report.md").read_text()
    assert "## Repair" in report
    assert f"`{found.chosen}` is used" in report

    again = Seen()
    second = run_of(again)
    assert second.repair == found
    assert all(one.reused for one in again.events if isinstance(one, StageFinished) and one.stage != "verdict")


def test_what_repair_chose_is_confirmed_on_standard_where_that_is_named(
    run_of: Callable[..., Journey],
    planted_gain: Callable[..., list[str]],
    right_by_construction: Suite,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """On all of its items, by the names that the gate knows them by; none of them has chosen anything."""
    planted_gain(lambda name: 0.5 + scale_of(name) / 2)
    few = first_items(standard_suite(), "standard", facts=10, grammar=10)
    monkeypatch.setattr(suites, "standard_suite", lambda: few)
    path = tmp_path / "task" / "task.yaml"
    spec = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**spec, "general": {"confirm": "standard"}}))
    done = run_of()
    assert done.repair is not None
    assert done.repair.chosen
    assert done.repair.confirm == "standard"
    assert done.reevaluated is not None
    general = done.reevaluated.general
    assert general is not None
    assert general.measures.suite == "standard"
    assert {one.id for one in general.tuned.items} == {str(row["id"]) for task in few.tasks for row in rows_of(task)}
    assert {one.task for one in general.measures.benchmarks} == {"facts", "grammar"}


def test_all_weights_that_were_trained_are_mended_on_the_way_too(
    run_of: Callable[..., Journey], planted_gain: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Of a full fine-tuning: the average with the base takes the place of the trained model in the test, the gate and the export."""
    planted_gain(lambda name: 0.5 + scale_of(name) / 2)
    path = tmp_path / "task" / "task.yaml"
    spec = yaml.safe_load(path.read_text())
    full = {name: value for name, value in spec["train"].items() if not name.startswith("lora")}
    full |= {"use_peft": False}
    path.write_text(yaml.safe_dump({**spec, "train": full, "gate": {"max_forgetting": 0.15}}))
    done = run_of()
    assert done.repair is not None
    assert done.repair.weights == "repair/model"
    weights = trained_weights(done.folder)
    assert weights == done.folder / "repair" / "model"
    card = read_card(weights)
    scale = next(one.scale for one in done.repair.arms if one.name == done.repair.chosen)
    assert 0 < scale < 1
    assert set(card.scores) == {"dev", "test"}
    assert not (done.folder / "repair" / ".arms").exists()
    # Each weight lies so far on the way from the base to the trained model.
    base, tuned, found = (
        load_file(folder / "model.safetensors")
        for folder in (Path(spec["model"]["model_name_or_path"]), done.folder / "training" / "model", weights)
    )
    moved = [name for name in base if not torch.equal(base[name], tuned[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(found[name], torch.lerp(base[name], tuned[name], scale), rtol=1e-5, atol=1e-6)


def test_where_no_scale_is_worth_having_trainings_are_offered_and_run_one_by_one(
    run_of: Callable[..., Journey], planted_gain: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worth: dict[str, float] = {}
    planted_gain(lambda name: worth.get(re.sub(r"_(x|regmean_)[\d.]+$", "", name), 0.0))
    done = run_of()
    found = done.repair
    assert found is not None
    assert not found.chosen
    assert done.verdict is not None
    assert done.verdict.verdict != "pass"
    assert trained_weights(done.folder) == done.folder / "training" / "adapter"
    assert [one.name for one in found.offers] == ["replay", "learning_rate", "early", "seed"]
    assert all(one.seconds > 0 and one.money is not None and not one.done for one in found.offers)
    arguments = [done.folder.name, "--runs-dir", str(tmp_path / "runs")]
    remedies = done.folder / "remedies"

    # It goes on where it stopped: with the only one that is left, which differs in its seed alone and is averaged with the first.
    for one in found.offers[:-1]:
        (remedies / one.name).mkdir(parents=True)
        (remedies / one.name / "training.json").touch()
    assert main(["train", "--remedy", *arguments]) == 0
    assert read_json(remedies / "seed/remedy.json")["overrides"] == {"seed": 1}
    after = read_repair(done.folder)
    assert after is not None
    assert {"soup_of_2", "remedy_seed"} <= {one.name for one in after.arms}
    assert main(["train", "--remedy", *arguments]) == 1
    assert "all remedies are tried" in capsys.readouterr().err

    (remedies / "replay" / "training.json").unlink()
    worth["remedy_replay"] = 0.9
    assert main(["train", "--remedy", *arguments]) == 0
    assert read_json(remedies / "replay/recipe.json")["replay_share"] == 0.2
    # The first training is as it was.
    assert read_card(done.folder / "training/adapter").recipe["replay_share"] == 0.0
    after = read_repair(done.folder)
    assert after is not None
    assert after.chosen.startswith("remedy_replay")
    # The verdict was on other weights, and another look at the test is one that the claim is weaker for.
    assert main(["gate", *arguments]) == 1
    assert main(["evaluate", *arguments]) == 0
    looks = read_jsonl(tmp_path / "task" / "ledger.jsonl")
    assert len({one["weights"] for one in looks}) == len(looks) == 2
    assert "looked at 1 time(s) before" in (done.folder / "report.md").read_text()
    capsys.readouterr()
    assert main(["train", "--remedy", *arguments]) == 1
    assert "nothing to mend" in capsys.readouterr().err


def test_a_remedy_needs_something_to_mend(
    make_task: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_task(tmp_path / "task", train=FAST)
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert main(["train", "--remedy", str(folder), *runs]) == 1
    assert "no run yet" in capsys.readouterr().err
