"""MIPROv2 behind our engine. Runs where the extra `mipro` is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dspy")
pytest.importorskip("optuna")

from baselines.prompts.optimise.arms import optimised_arms
from baselines.prompts.optimise.mipro import mipro, plan
from baselines.prompts.optimise.rows import parted
from baselines.prompts.optimise.search import Meter, Search
from evals.candidate import AnswerFormat
from evals.engines.engine import Message, Request, Response
from evals.errors import AdvisorError
from evals.metrics.build import Compared
from evals.metrics.label import accuracy
from evals.task.example import Example

COLOURS = ["red", "blue", "green", "pink"]
GOOD = "Answer with the colour that the sentence names."
ACCURACY = Compared("accuracy", accuracy, {"name": "accuracy"})


@dataclass
class Scripted:
    """Answers by `reply(request)`; keeps every request."""

    reply: Callable[[Request], str]
    name: str = "scripted"
    fingerprint: str = "scripted"
    context_length: int = 100_000
    takes_tools: bool = False
    asked: list[Request] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(self.count_tokens([one.content for one in prompt])) for prompt in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        self.batches.append(len(requests))
        for request in requests:
            self.asked.append(request)
            yield Response(request.id, self.reply(request), 10, 2, 0.01)


def colour(request: Request) -> str:
    return request.messages[-1].content.rstrip(".").split()[-1]


def by_instruction(request: Request) -> str:
    return colour(request) if request.messages[0].content == GOOD else "red"


def by_shots(request: Request) -> str:
    """Right where it is shown demonstrations, whatever the instruction."""
    return colour(request) if len(request.messages) > 2 else "red"


def search_of(engine: Scripted, proposer: Scripted, budget: int = 200) -> Search:
    rows = [Example(f"r{at}", (Message("user", f"Item {at} is {COLOURS[at % 4]}."),), COLOURS[at % 4]) for at in range(80)]
    learn, hold = parted(rows, budget, 0)
    answers = AnswerFormat("label", 8, tuple(COLOURS))
    return Search(engine, proposer, ACCURACY, answers, "Name it.", "A colour.", learn, hold, Meter(budget))


def test_a_planted_instruction_is_found() -> None:
    engine, proposer = (
        Scripted(by_instruction),
        Scripted(lambda _: f"[[ ## proposed_instruction ## ]]\n{GOOD}\n\n[[ ## completed ## ]]"),
    )
    search = search_of(engine, proposer)
    found = mipro(search)
    assert found.improved
    assert found.instruction == GOOD
    assert found.score == 1.0
    assert found.items == len(search.hold)
    assert found.spent.requests == len(engine.asked) + len(proposer.asked) <= 200
    assert found.spent.proposals == len(proposer.asked) > 0
    told = "".join(one.messages[0].content for one in proposer.asked)
    assert "Name it." in told
    assert not [one for one in search.hold if one.text in told]
    # Validation rows are asked together, though DSPy takes them in turn.
    assert engine.batches.count(len(search.hold)) >= 2


def test_demonstrations_become_shots_and_are_training_rows_with_right_answers() -> None:
    search = search_of(Scripted(by_shots), Scripted(lambda _: "nothing of use"))
    found = mipro(search)
    assert found.improved
    assert found.shots
    rows = {one.id: one for one in search.learn}
    assert all(shot.target == rows[shot.id].target for shot in found.shots)
    assert found.score == 1.0


def test_a_proposer_that_ignores_the_form_is_taken_at_its_word() -> None:
    found = mipro(search_of(Scripted(by_instruction), Scripted(lambda _: GOOD)))
    assert found.instruction == GOOD


@pytest.mark.parametrize("budget", [0, 7, 12, 40, 90])
def test_no_budget_is_exceeded_and_what_was_found_before_its_end_is_kept(budget: int) -> None:
    engine, proposer = Scripted(by_shots), Scripted(lambda _: "Say it.")
    found = mipro(search_of(engine, proposer, budget))
    assert len(engine.asked) + len(proposer.asked) == found.spent.requests <= budget


def test_the_meter_stops_what_the_plan_got_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.prompts.optimise.mipro.plan", lambda search: replace(plan(search), trials=50))
    engine, proposer = Scripted(by_shots), Scripted(lambda request: f"Say it {request.seed} times.")
    found = mipro(search_of(engine, proposer, 120))
    assert len(engine.asked) + len(proposer.asked) <= 120
    assert found.improved
    assert found.score == 1.0


def test_an_error_of_the_engine_ends_the_search() -> None:
    def fail(_: Request) -> str:
        raise AdvisorError("the server is gone")

    with pytest.raises(AdvisorError, match="the server is gone"):
        mipro(search_of(Scripted(by_shots), Scripted(fail)))


def test_an_error_in_a_trial_ends_the_search_at_once() -> None:
    """DSPy takes it for a wrong answer, scores 0 and goes on."""
    failed: list[str] = []

    def fail(request: Request) -> str:
        if request.messages[0].content == "Say it.":
            failed.append(request.id)
            raise AdvisorError("the server is gone")
        return "red"

    with pytest.raises(AdvisorError, match="the server is gone"):
        mipro(search_of(Scripted(fail), Scripted(lambda _: "Say it.")))
    assert len(failed) == 1


def test_an_answer_that_is_only_partly_right_is_never_shown_as_a_demonstration() -> None:
    half = Compared("half", lambda output, target: 1.0 if output == target else 0.5, {})
    engine = Scripted(lambda _: "violet")
    mipro(replace(search_of(engine, Scripted(lambda _: "Say it.")), metric=half))
    shown = [
        (turn.content, after.content)
        for request in engine.asked
        for turn, after in zip(request.messages, request.messages[1:], strict=False)
        if after.role == "assistant"
    ]
    assert shown
    assert all(question.rstrip(".").split()[-1] == answer for question, answer in shown)


def test_no_file_no_output_no_setting_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = logging.root.manager.disable
    mipro(search_of(Scripted(by_shots), Scripted(lambda _: "Say it.")))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


def test_the_same_search_comes_to_the_same() -> None:
    outcomes = [mipro(search_of(Scripted(by_shots), Scripted(lambda _: "Say it."))) for _ in range(2)]
    assert outcomes[0] == outcomes[1]


def test_an_instruction_that_is_empty_stays_empty() -> None:
    """DSPy writes one of its own where there is none: it must not be asked in the incumbent's place."""
    engine = Scripted(by_shots)
    search = replace(search_of(engine, Scripted(lambda _: "Say it.")), instruction="")
    mipro(search)
    assert {one.messages[0].content for one in engine.asked if one.messages[0].role == "system"} <= {"Say it."}


@pytest.mark.demo_model
def test_mipro_on_the_demo_model(make_task: Callable[..., Path], tmp_path: Path, demo_cache: Path) -> None:
    """A task of three labels: the search ends within its budget, and says what it came to."""
    from evals.engines.open import open_engine
    from evals.events import Event, Note
    from evals.task.load import load_task

    words = {
        "positive": ["great", "lovely", "perfect"],
        "negative": ["awful", "broken", "useless"],
        "neutral": ["a box", "grey", "a lamp"],
    }
    rows = [
        {"id": f"s{at}-{label}", "input": f"Review {at}: it is {words[label][at % 3]}.", "output": label}
        for at in range(20)
        for label in words
    ]
    folder = make_task(
        tmp_path / "task",
        rows={"train": rows[:48], "dev": rows[48:54], "test": rows[54:]},
        instruction="Is the review positive, negative or neutral? Answer with one word.",
        model={"model_name_or_path": "smollm2-135m-instruct"},
        optimise={"methods": ["mipro"], "requests": 80},
    )
    task = load_task(folder)
    events: list[Event] = []
    engine = open_engine(task.spec.model, task.located, events.append, None)
    arms: list[Any] = optimised_arms(task, engine, engine, [ACCURACY], tmp_path / "optimise", events.append)
    (note,) = [one.text for one in events if isinstance(one, Note) and one.text.startswith("mipro")]
    print(note)
    assert len(arms) == ("scores" in note and "against" in note)
