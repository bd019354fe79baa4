"""`advisor export` and `advisor adapters`: weights leave a run with their card, merged ones with what the comparison found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.cli import adapters as adapters_cli
from advisor.cli.main import main
from advisor.flow.card_scores import keep_scores
from advisor.flow.export import PARITY, export, parity
from advisor.flow.run import Run, run_folder
from advisor.flow.session import Session
from advisor.flow.tuned import job_for, recipe_for
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import ignore
from evals.records import write_json, write_jsonl
from evals.scores import Score, Scores
from evals.task.load import Task, load_task
from tests.random_adapter import random_adapter
from trainer.adapters import HOWS
from trainer.card import put_card, read_card
from trainer.merge import merge

Make = Callable[..., Path]


@pytest.fixture
def task(make_task: Make, tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task", train={"replay_share": 0.0, "lora_r": 4}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(task: Task, runs: Path) -> Path:
    """A run as it lies there after training, with random weights for trained ones."""
    folder = run_folder(task, runs)
    write_json(folder / "task.json", {"source": str(task.folder.resolve())})
    session = Session(task, ignore)
    job = job_for(task, session, recipe_for(task, session.weights), task.train, folder / "training", "training")
    random_adapter(job, 1)
    return folder


def test_an_export_is_the_adapter_and_its_card(
    run: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", run.name, "--runs-dir", str(runs), "--out", str(out)]) == 0
    there = run / "training" / "adapter"
    assert {one.name: one.read_bytes() for one in out.iterdir()} == {one.name: one.read_bytes() for one in there.iterdir()}
    assert read_card(out).digest == read_card(there).digest
    assert "tiny, SFT, LoRA" in capsys.readouterr().out


def test_nothing_is_overwritten(run: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for more in ([], ["--merge"]):
        assert main(["export", run.name, "--runs-dir", str(runs), "--out", str(out), *more]) == 1
        assert "there is something here already" in capsys.readouterr().err
    assert [one.name for one in out.iterdir()] == ["mine.txt"]


def test_a_run_without_trained_weights_is_an_error_in_a_sentence(
    run: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "training")
    assert main(["export", run.name, "--runs-dir", str(runs)]) == 1
    assert "this run has no trained weights" in capsys.readouterr().err


def test_changed_weights_are_not_exported(run: Path, runs: Path, tmp_path: Path) -> None:
    path = run / "training" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(AdvisorError, match="is not the file that its card names"):
        export(run.name, runs, tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_merged_weights_answer_like_the_adapter_and_it_is_measured(
    run: Path, runs: Path, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["export", run.name, "--runs-dir", str(runs), "--out", str(out), "--merge", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = told["parity"]
    assert (found["n"], found["same_tokens"], found["same_answers"]) == (len(task.dev), 1.0, 1.0)
    assert (found["score"]["difference"], found["dtype"], found["saved_in"]) == (0.0, "float32", "float32")
    assert found["score"]["low"] < 0 < found["score"]["high"]
    kept = json.loads((out / PARITY).read_text())
    assert {key: kept[key] for key in found} == found
    card = read_card(out)
    assert (card.kind, card.parents[0].name, card.scores["dev"].n) == ("model", run.name, len(task.dev))
    assert read_card(run / "training" / "adapter").scores["dev"] == card.scores["dev"]
    # It is a model like any other: named by its folder.
    assert HfEngine(ModelHandle(str(out), "float32", ignore)).parameters > 0


def test_an_export_that_is_stopped_while_it_measures_leaves_nothing(
    run: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("advisor.flow.export.evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(run.name, runs, tmp_path / "out" / "merged", ignore, merged=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_parity_sees_merged_weights_that_answer_otherwise(run: Path, task: Task, tmp_path: Path, tiny_model: Path) -> None:
    """The base in the place of merged weights: a merge that forgot the adapter."""
    adapter, wrong = run / "training" / "adapter", tmp_path / "wrong"
    merge(adapter, tiny_model, wrong)
    shutil.copyfile(tiny_model / "model.safetensors", wrong / "model.safetensors")
    card = put_card(wrong, read_card(adapter))
    found = parity(Session(task, ignore), adapter, wrong, card, ignore)
    assert found.same_answers < 0.5
    assert found.same_tokens < 0.5


def test_a_model_that_was_trained_whole_is_copied_and_never_merged(run: Path, runs: Path, tmp_path: Path) -> None:
    training = run / "training"
    card = read_card(training / "adapter")
    merge(training / "adapter", Path(_base(training / "adapter")), training / "model")
    put_card(training / "model", replace(card, kind="model"))
    shutil.rmtree(training / "adapter")
    found = export(run.name, runs, tmp_path / "out", ignore)
    assert (found.parity, found.card.kind) == (None, "model")
    assert read_card(tmp_path / "out").digest == found.card.digest
    with pytest.raises(AdvisorError, match="nothing to merge"):
        export(run.name, runs, tmp_path / "merged", ignore, merged=True)


def _base(adapter: Path) -> str:
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def test_the_list_shows_scores_and_names_what_cannot_be_used(run: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "training" / "adapter"
    write_json(run / "probes" / "dev" / "tuned.json", {"metric": "exact_match"})
    write_jsonl(run / "probes" / "dev" / "tuned.jsonl", [{"score": 1.0}, {"score": 0.5}])
    keep_scores(Run(run, ignore), weights, [Scores("tuned", "tuned", "test", "exact_match", (Score("a", 1.0, ""),))])
    # The folder of runs may stand before the verb, too.
    assert main(["--runs-dir", str(runs), "adapters", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["adapters", "--runs-dir", str(runs), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert before == [found]
    assert found["name"] == run.name
    assert {split: (one["mean"], one["n"]) for split, one in found["card"]["scores"].items()} == {
        "test": (1.0, 1),
        "dev": (0.75, 2),
    }
    (weights / "adapter_config.json").write_text("{}")
    assert main(["adapters", "--runs-dir", str(runs)]) == 1
    assert "cannot be used" in capsys.readouterr().out
    assert main(["adapters", "--runs-dir", str(runs / "none")]) == 0


def test_two_runs_are_combined_into_a_third_adapter(
    run: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = tmp_path / "first", tmp_path / "both"
    export(run.name, runs, first, ignore)
    command = ["adapters", "--runs-dir", str(runs), "combine", run.name, str(first), "--weights", "0.7", "0.3"]
    assert main([*command, "--how", "ties", "--out", str(out)]) == 0
    assert "0.7 x " + run.name in capsys.readouterr().out
    card = read_card(out)
    assert [(one.name, one.weight) for one in card.parents] == [(run.name, 0.7), ("first", 0.3)]
    assert str(tmp_path) not in (out / "card.json").read_text()
    assert main([*command, "--out", str(out)]) == 1
    assert main(["adapters", "combine", run.name, "--out", str(tmp_path / "x"), "--runs-dir", str(runs)]) == 2
    assert main(["adapters", "combine", run.name, str(first), "--weights", "1", "--out", "x", "--runs-dir", str(runs)]) == 2


def test_one_adapter_is_scaled_by_its_weight(run: Path, runs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert (
        main(["adapters", "combine", run.name, "--weights", "0.5", "--out", str(tmp_path / "half"), "--runs-dir", str(runs)])
        == 0
    )
    whole, half = (
        load_file(folder / "adapter_model.safetensors") for folder in (run / "training" / "adapter", tmp_path / "half")
    )
    layer = next(name for name in whole if "q_proj.lora_A" in name)
    # Alpha over rank is 32 / 4 in the one; in the other it is 1, and stands in A.
    delta = 8 * whole[layer.replace("lora_A", "lora_B")] @ whole[layer]
    assert (half[layer.replace("lora_A", "lora_B")] @ half[layer] - 0.5 * delta).abs().max() < 1e-6


def test_the_command_line_offers_what_the_trainer_can() -> None:
    """Written out there, so that `advisor --help` loads no trainer."""
    assert adapters_cli.HOWS == HOWS
