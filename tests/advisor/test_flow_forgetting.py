"""What a training cost in general, measured on a model of two layers: what is said before, what is kept, what a gate may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.flow.forgetting import DIVERGENCE, RECORD, measured_forgetting, what_shows
from advisor.flow.intake import read_task
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.whole import go
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import Event, Note, ignore
from evals.general import suites
from evals.general.suites import Suite, quick_suite
from evals.records import read_json
from evals.statistics.margin import chance_of_passing
from evals.task.checks.findings import Checks, Finding, Place
from tests.evals.engines.test_hf_engine import make_adapter
from tests.few_items import first_items

Make = Callable[..., Path]
CLEAN = Checks((), (), {})


@pytest.fixture(scope="module")
def few() -> Suite:
    return first_items(quick_suite(), facts=12, instructions=4)


class Measured:
    """A task with a run of its own, its base and an adapter; what was said is kept."""

    def __init__(self, folder: Path, tiny_model: Path, make_task: Make) -> None:
        self.said: list[Event] = []
        self.task = read_task(str(make_task(folder / "task")))
        (folder / "run").mkdir()
        self.run = Run(folder / "run", self.said.append)
        self.session = Session(self.task, self.said.append)
        self.adapter = make_adapter(tiny_model, folder / "adapter", 1)

    def forgetting(self, suite: Suite, checks: Checks = CLEAN) -> Any:
        tuned = self.session.weights.with_adapter(self.adapter, "tuned")
        return measured_forgetting(self.task, self.run, self.session, suite, tuned, checks)

    @property
    def notes(self) -> list[str]:
        return [one.text for one in self.said if isinstance(one, Note)]


@pytest.fixture
def measured(tmp_path: Path, tiny_model: Path, make_task: Make, monkeypatch: pytest.MonkeyPatch) -> Measured:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    return Measured(tmp_path, tiny_model, make_task)


def test_everything_is_measured_once_and_kept_with_the_weights_that_it_is_of(
    measured: Measured, few: Suite, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    general, reused = measured.forgetting(few)
    found = general.measures
    assert not reused
    assert general.forgetting == found.pooled
    assert (found.pooled.n, [one.task for one in found.benchmarks]) == (16, ["facts", "instructions"])
    assert [one.name for one in found.divergences] == ["general text", "the task's prompts"]
    assert all(one.kl > 0 for one in found.divergences)
    assert found.drift is not None
    assert found.drift.n == 4
    assert found.calibration is not None
    assert found.calibration.n == 12
    asked = {one.id: one.asked for one in (*found.lost, *found.won)}
    assert asked
    assert all(asked.values())
    record = read_json(measured.run.path("general") / RECORD)
    assert record["pooled"]["estimate"] == found.pooled.estimate
    assert {one["id"] for name in ("lost", "won") for one in record[name]} == set(asked)
    what = what_shows(few, 0.05)
    assert measured.notes.index(what) == 0, measured.notes

    with monkeypatch.context() as patch:
        patch.setattr(ModelHandle, "forward", lambda *_: pytest.fail("the model was asked again"))
        patch.setattr(HfEngine, "generate", lambda *_: pytest.fail("the model was asked again"))
        again, reused = measured.forgetting(few)
    assert reused
    assert again == general
    # It was said before the suite was run, and is not said where it is not run.
    assert measured.notes.count(what) == 1

    kept = read_json(measured.run.path("general") / DIVERGENCE)
    measured.adapter = make_adapter(tiny_model, tmp_path / "other", 2)
    other, reused = measured.forgetting(few)
    assert not reused
    assert [one.kl for one in other.measures.divergences] != [one["kl"] for one in kept["divergences"]]


def test_an_adapter_that_changes_nothing_forgets_nothing(
    measured: Measured, few: Suite, tiny_model: Path, tmp_path: Path
) -> None:
    measured.adapter = make_adapter(tiny_model, tmp_path / "zero", None)
    general, _ = measured.forgetting(few)
    found = general.measures
    assert (found.pooled.estimate, found.lost, found.won) == (0.0, (), ())
    assert [one.kl for one in found.divergences] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert all(one.difference == 0.0 for one in found.drift.changes)
    # No item was lost, and sixteen are too few to call that no loss.
    assert found.pooled.answer == "undecided"
    assert found.pooled.more_items > 0


def test_items_that_stand_in_the_training_rows_are_left_out_and_said(measured: Measured, few: Suite) -> None:
    rows = [row["id"] for row in few.tasks[0].config["custom_dataset"].args[0][:3]]
    leaks = tuple(
        Finding(
            "leak.exact",
            "warning",
            "alike",
            (Place("train", "row-1", "train.jsonl", 1, "x"), Place("general", name, "", 0, "x")),
        )
        for name in rows
    )
    checks = Checks(leaks, (), {})
    assert checks.tainted_general() == set(rows)
    general, _ = measured.forgetting(few, checks)
    assert (general.measures.excluded, general.measures.benchmarks[0].excluded, general.forgetting.n) == (3, 3, 13)
    assert any(one.startswith("3 general items stand in the training rows") for one in measured.notes)


def test_what_the_suite_shows_is_said_of_what_is_pooled(few: Suite) -> None:
    chance = chance_of_passing(16, 0.05)
    told = what_shows(few, 0.05)
    assert f"16 pooled items at a margin of 5 points: a model without true loss passes in {100 * chance:.0f}%" in told
    assert "a true loss of 44 points is called broken in 80%" in told
    facts, instructions = few.tasks
    part = Suite("part", (facts, replace(instructions, pooled=False)))
    assert "12 pooled items" in what_shows(part, 0.05)
    none = Suite("none", (replace(facts, pooled=False),))
    assert "nothing decides about forgetting" in what_shows(none, 0.05)


def test_a_gate_on_a_benchmark_that_is_not_measured_is_refused_before_anything_is_loaded(
    make_task: Make, tmp_path: Path, few: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "quick_suite", lambda: few)
    monkeypatch.setattr(ModelHandle, "base", property(lambda self: pytest.fail("the model was loaded")))
    task = read_task(str(make_task(tmp_path / "task", gate={"benchmarks": {"fact": 0.1}})))
    with pytest.raises(AdvisorError, match=r"names fact, which the suite quick does not measure .did you mean .facts"):
        go(task, tmp_path / "runs", ignore)
