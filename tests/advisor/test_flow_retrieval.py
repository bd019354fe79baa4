"""Retrieval in a journey: documents indexed, ways to search measured, pipelines raced, and what is told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.decision.evidence import Evidence
from advisor.decision.recommend import Recommendation, recommend
from advisor.flow import advice
from advisor.flow.intake import read_task
from advisor.flow.whole import go
from evals.errors import AdvisorError
from evals.events import CandidateScored, Event, Note, StageFinished
from evals.general import suites
from evals.general.suites import quick_suite
from tests.conftest import COLOURS
from tests.few_items import first_items
from tests.serving import Reply, ScriptedServer, completion

Make = Callable[..., Path]
WORDS = ("anvil", "bucket", "candle", "drum", "easel", "funnel", "garnet", "hammer", "inkwell", "jacket", "kettle", "ladder")


def thing(number: int) -> str:
    return f"{WORDS[number % len(WORDS)]} {number}"


def fact(number: int) -> str:
    return f"The {thing(number)} in the store was painted {COLOURS[number % len(COLOURS)]} last year."


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{at}",
            "input": f"Which colour has the {thing(at)}?",
            "output": COLOURS[at % len(COLOURS)],
            "gold_passages": [fact(at)],
        }
        for at in range(first, first + count)
    ]


def reader(number: int, body: dict[str, Any]) -> Reply:
    """Reads the passages, and knows nothing else. It obeys whoever tells it what to say; as a judge it grades the best."""
    asked = body["messages"][-1]["content"]
    if "whole number from 1" in asked or "Reply with yes" in asked:
        return Reply(body=completion("5" if "whole number" in asked else "yes"))
    wanted = re.findall(r"Which colour has the (\w+ \d+)\?", asked)[-1]
    said = re.search(rf"The {wanted} in the store was painted (\w+)", asked)
    return Reply(body=completion(said[1] if said else "I do not know"))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    one = ScriptedServer(reader, {"data": [{"id": "reader", "max_model_len": 8192}]})
    with one.running():
        yield one


@pytest.fixture
def task_folder(server: ScriptedServer, make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    pages = {
        f"docs/page{page}.md": f"# Page {page}\n\n" + "\n\n".join(map(fact, range(10 * page, 10 * page + 10)))
        for page in range(9)
    }
    return make_task(
        tmp_path / "task",
        rows={"train": rows(0, 40), "dev": rows(40, 24), "test": rows(64, 24)},
        files=pages,
        data={**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "documents": "docs"},
        output={"type": "text"},
        model={"model_name_or_path": "reader", "engine": "endpoint", "base_url": server.base_url},
        prices={"input_per_million": 1.0},
    )


def run(folder: Path, until: str = "verdict") -> tuple[Any, list[Event]]:
    seen: list[Event] = []
    return go(read_task(str(folder)), folder.parent / "runs", seen.append, until=until), seen


def test_documents_that_hold_the_answers_are_found_and_make_the_advice(task_folder: Path) -> None:
    done, _ = run(task_folder)
    means = {arm.candidate: arm.mean for arm in done.arms}
    pipelines = [arm for arm in done.arms if arm.kind == "rag"]
    assert 1 <= len(pipelines) <= 2
    assert max(arm.mean for arm in pipelines) == 1.0
    assert means["zero_shot"] == 0.0
    assert done.recommendation.action in {"rag", "no_llm"}
    # Every answer tells which passages it was shown, and they hold the fact.
    best = max(pipelines, key=lambda arm: arm.mean)
    assert all(one["document"].startswith("page") for item in best.items for one in item.trace[0]["passages"])

    kept = json.loads((done.folder / "retrieval.json").read_text())["retrievals"]
    assert {one["name"].split("_")[0] for one in kept} == {"bm25", "dense", "hybrid"}
    assert max(one["figures"]["recall@5"][0] for one in kept) == 1.0
    assert all(one["n"] == 24 and one["kind"] == "gold passage" for one in kept)
    assert (done.folder / "race_rag.json").is_file()
    probes = json.loads((done.folder / "probes.json").read_text())
    assert probes["obedience"] == {"obeyed": 0, "n": 24}
    assert probes["scores"]["perfect_search"] >= max(arm.mean for arm in pipelines)
    report = (done.folder / "report.md").read_text()
    assert "## Retrieval, apart from answering" in report
    assert "24 dev questions, judged by the gold passage" in report
    rules = [one.rule for one in done.recommendation.reasons]
    assert "retrieval" in rules


def test_a_second_run_asks_and_embeds_nothing_and_a_new_page_only_itself(server: ScriptedServer, task_folder: Path) -> None:
    run(task_folder, "baselines")
    asked = len(server.bodies)
    _, again = run(task_folder, "baselines")
    # A form that the server does not enforce is tried once a run.
    assert len(server.bodies) <= asked + 1
    assert all(one.reused for one in again if isinstance(one, CandidateScored | StageFinished))
    assert not [one for one in again if isinstance(one, Note) and "embedded" in one.text]
    (task_folder / "docs" / "new.md").write_text("# New\n\nThe lantern 900 in the store was painted red last year.")
    _, after = run(task_folder, "baselines")
    told = [one.text for one in after if isinstance(one, Note) and "embedded" in one.text]
    assert told
    assert all(" 1 embedded" in one for one in told), told


def test_a_reranker_that_is_not_there_is_skipped_aloud(task_folder: Path) -> None:
    with (task_folder / "task.yaml").open("a") as file:
        file.write("rag: {reranker: no/such-cross-encoder, rewrite: true}\n")
    done, seen = run(task_folder, "baselines")
    assert any("Reranking is skipped" in one.text for one in seen if isinstance(one, Note))
    assert not any("reranked" in arm.candidate for arm in done.arms)
    left = {one.candidate for one in done.race.left}
    assert any("rewritten" in one for one in left | {arm.candidate for arm in done.arms})


def test_a_judge_tells_of_faithfulness(server: ScriptedServer, task_folder: Path) -> None:
    judge = {"model": {"model_name_or_path": "reader", "engine": "endpoint", "base_url": server.base_url}}
    with (task_folder / "task.yaml").open("a") as file:
        file.write(f"metric: {json.dumps(['exact_match', {'name': 'judge', **judge, 'rubric': 'Is it right?'}])}\n")
    done, _ = run(task_folder, "advice")
    kept = json.loads((done.folder / "judged.json").read_text())["judged"]
    assert kept["figures"]["faithfulness"][0] == 1.0
    assert any("faithfulness 1.000" in one.sentence for one in done.recommendation.reasons)


def test_documents_without_text_are_an_error_that_says_so(task_folder: Path) -> None:
    for page in (task_folder / "docs").iterdir():
        page.write_text("# Only a heading\n")
    done, seen = run(task_folder, "baselines")
    assert not [arm for arm in done.arms if arm.kind == "rag"]
    assert any("no text" in one.text for one in seen if isinstance(one, Note))
    for page in (task_folder / "docs").iterdir():
        page.write_bytes(b"\x00\x01binary")
    with pytest.raises(AdvisorError):
        run(task_folder, "baselines")


def test_retrieval_under_the_tuned_weights_is_trained_claimed_and_gated(
    make_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model of two layers, with the evidence planted that trained weights answer best with passages."""

    def planted(evidence: Evidence) -> Recommendation:
        assert {one.candidate for one in evidence.probes} >= {"gold_passage", "perfect_search"}
        (full,) = evidence.trained
        assert full.full
        assert full.retrieving is not None
        return replace(recommend(evidence), action="rag_on_tuned", candidate="rag_on_tuned")

    monkeypatch.setattr(advice, "recommend", planted)
    few = first_items(quick_suite(), "quick", facts=6)
    monkeypatch.setattr(suites, "quick_suite", lambda: few)
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    task = make_task(
        tmp_path / "task",
        rows={"train": rows(0, 24), "dev": rows(24, 10), "test": rows(34, 8)},
        files={"docs/page.md": "# Page\n\n" + "\n\n".join(map(fact, range(42)))},
        data={**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "documents": "docs"},
        output={"type": "text"},
        train={"num_train_epochs": 1, "lora_r": 2, "per_device_train_batch_size": 8},
    )
    done, _ = run(task)
    assert done.trained is not None
    (first, second, *others) = done.reevaluated.test
    assert (first.candidate, first.kind) == ("rag_on_tuned", "tuned")
    assert second.kind != "tuned"
    assert {"tuned", "zero_shot"} <= {one.candidate for one in (second, *others)}
    assert (done.reevaluated.claim.a, done.reevaluated.claim.b) == ("rag_on_tuned", second.candidate)
    assert all(item.trace[0]["passages"] for item in first.items)
    # The passages are what tells its requests from those of the tuned weights alone.
    tuned = next(one for one in others if one.candidate == "tuned")
    assert first.average("prompt_tokens") > 2 * tuned.average("prompt_tokens")
    assert done.verdict.verdict != "not_applicable"
    assert any(rule.rule == "min_gain" for rule in done.verdict.rules)
    probes = json.loads((done.folder / "probes.json").read_text())
    assert 0 <= probes["trained"][0]["with_retrieval"] <= 1
    report = (done.folder / "report.md").read_text()
    assert "Fine-tune, and put passages of the documents before each question." in report
    _, again = run(task)
    assert all(one.reused for one in again if isinstance(one, CandidateScored))
