"""A task whose model is served: measured and recommended for like any other, but never trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.cli.main import main
from advisor.flow.intake import read_task
from advisor.flow.whole import go
from evals.errors import AdvisorError
from evals.events import CandidateScored, Event, StageFinished
from tests.conftest import colour_rows
from tests.serving import Reply, ScriptedServer, completion

Make = Callable[..., Path]
KEY = "sk-a-key-that-stays-in-the-environment"


def colour(number: int, body: dict[str, Any]) -> Reply:
    """The colour that the last message names: the right answer to every row."""
    return Reply(body=completion(body["messages"][-1]["content"].split()[-1].strip(".")))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    one = ScriptedServer(colour, {"data": [{"id": "big", "max_model_len": 4096}]})
    with one.running():
        yield one


@pytest.fixture
def task_folder(server: ScriptedServer, make_task: Make, tmp_path: Path) -> Path:
    model = {"model_name_or_path": "big", "engine": "endpoint", "base_url": server.base_url}
    return make_task(tmp_path / "task", model=model, prices={"input_per_million": 1.0})


def test_bench_measures_every_arm_and_asks_nothing_twice(server: ScriptedServer, task_folder: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    done = go(read_task(str(task_folder)), tmp_path / "runs", seen.append, until="baselines")
    means = {one.candidate: one.mean for one in seen if isinstance(one, CandidateScored)}
    assert {"zero_shot", "zero_shot_inline", "zero_shot_described", "few_shot_random_8", "few_shot_nearest_8"} <= set(means)
    assert means["zero_shot"] == means["few_shot_nearest_8"] == 1.0
    asked = len(server.bodies)
    assert asked == len({json.dumps(body, sort_keys=True) for body in server.bodies})
    lone = [arm for arm in done.arms if arm.kind == "prompt" and not arm.candidate.startswith("self_consistency")]
    assert all(item.prompt_tokens == 11 and item.output_tokens == 3 for arm in lone for item in arm.items)
    (vote,) = (arm for arm in done.arms if arm.candidate == "self_consistency_5")
    assert all(item.prompt_tokens == 5 * 11 for item in vote.items)
    again: list[Event] = []
    go(read_task(str(task_folder)), tmp_path / "runs", again.append, until="baselines")
    # A form that the server does not enforce is tried once a run.
    assert server.bodies[asked:] == server.bodies[:1]
    assert all(one.reused for one in again if isinstance(one, CandidateScored | StageFinished))


def test_an_interrupted_bench_asks_only_for_the_rest(server: ScriptedServer, task_folder: Path, tmp_path: Path) -> None:
    broken = lambda number, body: Reply(400, {"error": {"message": "no"}}) if number >= 20 else colour(number, body)  # noqa: E731
    server.answer = broken
    with pytest.raises(AdvisorError, match="status 400"):
        go(read_task(str(task_folder)), tmp_path / "runs", lambda _: None, until="baselines")
    answered = {json.dumps(body, sort_keys=True) for body in server.bodies[:20]}
    before = server.settled()
    server.answer = colour
    go(read_task(str(task_folder)), tmp_path / "runs", lambda _: None, until="baselines")
    rest = [json.dumps(body, sort_keys=True) for body in server.bodies[before:]]
    assert len(rest) == len(set(rest)) > 8
    # But for those that were under way when it broke, and the trial of the form.
    assert len(answered & set(rest)) <= 8 + 1


def test_the_whole_journey_says_that_training_is_untested_and_keeps_the_key_out(
    server: ScriptedServer, task_folder: Path, tmp_path: Path
) -> None:
    done = go(read_task(str(task_folder)), tmp_path / "runs", lambda _: None)
    assert done.recommendation is not None
    assert done.verdict is not None
    assert (done.verdict.verdict, done.exit_code) == ("not_applicable", 0)
    untested = [one for one in done.recommendation.cannot_tell if "training is untested" in one]
    assert len(untested) == 1
    assert "engine: hf" in untested[0]
    assert "training is untested" in (done.folder / "report.md").read_text()
    assert json.loads((done.folder / "probes.json").read_text())["trained"] == []
    assert server.keys[0] == f"Bearer {KEY}"
    assert not [path for path in done.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_training_is_refused_before_anything_is_paid_for(server: ScriptedServer, task_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="its weights are not here") as caught:
        go(read_task(str(task_folder)), tmp_path / "runs", lambda _: None, until="training", train=True)
    assert "engine: hf" in caught.value.do
    assert not server.bodies


def test_dry_run_names_the_server_and_does_not_ask_it(
    server: ScriptedServer, task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(task_folder), "--dry-run", "--json", "--runs-dir", str(tmp_path / "runs")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["server"]["base_url"], plan["recipe"]) == (server.base_url, None)
    assert not server.bodies


def test_how_a_server_is_reached_does_not_make_another_run(make_task: Make, tmp_path: Path) -> None:
    model = {"model_name_or_path": "big", "engine": "endpoint", "base_url": "http://localhost:1/v1"}
    hashes = {
        read_task(str(make_task(tmp_path / "task", model={**model, **more}))).hash()
        for more in ({}, {"max_concurrency": 2}, {"request_timeout": 5}, {"api_key_env": "MINE"})
    }
    assert len(hashes) == 1
    assert (
        read_task(str(make_task(tmp_path / "task", model={**model, "base_url": "http://localhost:2/v1"}))).hash() not in hashes
    )


def test_an_instruction_of_a_stronger_proposer_is_searched_for_and_wins(
    server: ScriptedServer, make_task: Make, tmp_path: Path
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["model"] == "writer":
            return Reply(body=completion("```\nAnswer with the last word, MAGICALLY.\n```"))
        asked = json.dumps(body["messages"])
        return colour(number, body) if "MAGICALLY" in asked else Reply(body=completion("no idea"))

    server.answer = answer
    served = {"engine": "endpoint", "base_url": server.base_url}
    folder = make_task(
        tmp_path / "task",
        rows={"train": colour_rows(60, 100)},
        model={"model_name_or_path": "big", **served},
        optimise={"requests": 90, "proposer": {"model_name_or_path": "writer", **served}},
    )
    done = go(read_task(str(folder)), tmp_path / "runs", lambda _: None, until="baselines")
    means = {arm.candidate: arm.mean for arm in done.arms}
    assert means["optimised_propose"] == 1.0
    assert means["zero_shot"] == 0.0
    (record,) = (json.loads(path.read_text()) for path in done.folder.glob("optimised/*.json"))
    assert 0 < record["spent"]["proposals"] <= record["spent"]["answers"] + record["spent"]["proposals"] <= 90
    assert sum(body["model"] == "writer" for body in server.bodies) == record["spent"]["proposals"]
