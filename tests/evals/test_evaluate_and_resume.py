"""`evaluate` asks every item exactly once, whatever interrupts it, and never twice for the same thing."""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from evals.candidate import Answer, AnswerFormat, Kind, PromptFormat, first_line
from evals.engines.engine import Engine, Message, Request, Response
from evals.errors import AdvisorError
from evals.evaluate import evaluate
from evals.events import CandidateScored, Event, ignore
from evals.metrics.options import Consistency, plain_options
from evals.records import read_jsonl
from evals.task.example import Example
from evals.task.load import Task, load_task


class FakeEngine:
    """Answers with the last word of the input, in reverse order; `stop_after` answers it raises `stop_with`."""

    def __init__(self) -> None:
        self.name = "fake"
        self.fingerprint = "weights-1"
        self.asked: list[str] = []
        self.requests: list[Request] = []
        self.stop_after: int | None = None
        self.stop_with: BaseException = KeyboardInterrupt()
        self.skip: set[str] = set()
        self.leave_out: set[str] = set()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        self.requests = list(requests)
        for number, request in enumerate(reversed(requests)):
            if number == self.stop_after:
                raise self.stop_with
            if request.id in self.leave_out:
                continue
            self.asked.append(request.id)
            text = f" {request.messages[-1].content.split()[-1].strip('.')}\nand more"
            skipped = "too long" if request.id in self.skip else ""
            yield Response(request.id, "" if skipped else text, 7, 2, 0.5, skipped=skipped)


@dataclass(frozen=True)
class Asking:
    engine: Engine
    settings: Mapping[str, Any] = field(default_factory=lambda: {"shots": 0})
    name: str = "asking"
    kind: Kind = "prompt"

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        return [Request(one.id, one.messages, 8) for one in examples]

    def parse(self, text: str) -> str:
        return first_line(text)


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def ids(task: Task) -> list[str]:
    return [one.id for one in task.dev]


def test_every_item_is_asked_once_and_kept_in_the_splits_order(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    events: list[Event] = []
    scores = evaluate(task, Asking(engine), "dev", tmp_path / "s", events.append)
    assert Counter(engine.asked) == Counter(ids(task))
    assert [one.id for one in scores.items] == ids(task)
    assert (scores.mean, scores.skipped, scores.average("prompt_tokens")) == (1.0, 0, 7.0)
    assert {one.output for one in scores.items} == {"red", "blue", "green", "pink"}
    assert sorted(one.name for one in (tmp_path / "s" / "dev").iterdir()) == ["asking.json", "asking.jsonl"]
    told = [one for one in events if isinstance(one, CandidateScored)]
    assert [(one.mean, one.n, one.reused) for one in told] == [(1.0, 8, False)]


def test_what_is_there_is_not_asked_again(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    first = evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    engine.asked.clear()
    assert evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore) == first
    assert engine.asked == []


def by_text(task: Task) -> Task:
    return replace(task, spec=task.spec.model_copy(update={"metric": (plain_options("exact_match"),)}))


def test_changed_settings_weights_rows_or_metrics_are_asked_again(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    def asked(task: Task, candidate: Asking) -> int:
        engine.asked.clear()
        evaluate(task, candidate, "dev", tmp_path / "s", ignore)
        return len(engine.asked)

    assert asked(task, Asking(engine)) == 8
    assert asked(task, Asking(engine, {"shots": 4})) == 8
    engine.fingerprint = "weights-2"
    assert asked(task, Asking(engine, {"shots": 4})) == 8
    changed = task.with_split("dev", (replace(task.dev[0], target="pink"), *task.dev[1:]))
    assert asked(changed, Asking(engine, {"shots": 4})) == 8
    assert asked(by_text(changed), Asking(engine, {"shots": 4})) == 8
    # And what was asked last is what lies there.
    assert asked(by_text(changed), Asking(engine, {"shots": 4})) == 0


@pytest.mark.parametrize("stop_after", [0, 1, 5, 7])
@pytest.mark.parametrize("stop_with", [KeyboardInterrupt(), RuntimeError("the machine went away")], ids=["ctrl-c", "crash"])
def test_an_interrupted_evaluation_asks_only_the_rest(
    task: Task, engine: FakeEngine, tmp_path: Path, stop_after: int, stop_with: BaseException
) -> None:
    engine.stop_after, engine.stop_with = stop_after, stop_with
    with pytest.raises(type(stop_with)):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    engine.stop_after = None
    scores = evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    assert Counter(engine.asked) == Counter(ids(task))
    assert scores == evaluate(task, Asking(FakeEngine()), "dev", tmp_path / "whole", ignore)
    assert not list((tmp_path / "s").rglob("*.partial"))


def test_a_torn_partial_line_is_asked_again_and_nothing_else(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    engine.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    (partial,) = (tmp_path / "s" / "dev").glob("*.partial")
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    engine.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    assert len([json.loads(line) for line in partial.read_text().splitlines()]) == 6
    engine.stop_after = None
    evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    counts = Counter(engine.asked)
    assert set(counts) == set(ids(task))
    assert sorted(counts.values()) == [1] * 7 + [2]


def test_the_partial_answers_of_other_settings_are_left_alone(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    engine.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    engine.stop_after = None
    engine.asked.clear()
    evaluate(task, Asking(engine, {"shots": 2}), "dev", tmp_path / "s", ignore)
    assert len(engine.asked) == 8


@pytest.mark.parametrize("body", ['{"id": "row-24"}\n', '{"score": 1.0}\n', '{"id": "x", "score": 1, "output": "", "n": 1}\n'])
def test_foreign_lines_in_a_record_are_refused(task: Task, engine: FakeEngine, tmp_path: Path, body: str) -> None:
    evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    (tmp_path / "s" / "dev" / "asking.jsonl").write_text(body)
    with pytest.raises(AdvisorError, match="damaged"):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)


def test_a_record_that_lost_lines_is_asked_again(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    path = tmp_path / "s" / "dev" / "asking.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert len(evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore).items) == 8


def test_a_skipped_item_scores_nothing_and_keeps_its_reason(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    engine.skip = {"row-25", "row-26"}
    for _ in range(2):
        scores = evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
        assert {one.id: one.skipped for one in scores.items if one.skipped} == {"row-25": "too long", "row-26": "too long"}
        assert all((one.score, one.metrics["tolerant"]) == (0.0, 0.0) for one in scores.items if one.skipped)
        assert (scores.mean, scores.skipped) == (0.75, 2)


def test_an_engine_that_leaves_items_out_is_found_and_asked_for_them(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    engine.leave_out = {"row-30"}
    with pytest.raises(AdvisorError, match="1 of 8 requests without an answer, the first is of row-30"):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    engine.leave_out = set()
    engine.asked.clear()
    evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    assert engine.asked == ["row-30"]


def test_an_engines_broken_connection_is_not_called_a_full_disk(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    engine.stop_after, engine.stop_with = 3, ConnectionResetError("reset by peer")
    with pytest.raises(ConnectionResetError):
        evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)


def test_a_disk_that_fills_up_keeps_what_was_answered(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(AdvisorError, match="answers could not be kept") as caught:
            evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "goes on where it stopped" in caught.value.do
    kept = len(engine.asked) - 1
    assert kept >= 2
    engine.asked.clear()
    evaluate(task, Asking(engine), "dev", tmp_path / "s", ignore)
    assert len(engine.asked) == 8 - kept


TURNS = (Message("system", "Own rules."), Message("user", "q0"), Message("assistant", "a0"), Message("user", "q1"))
SHOT = Example("s", (Message("system", "Shot rules."), Message("user", "sq")), "sa")


def roles(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(one.role, one.content) for one in messages]


def test_there_is_one_system_message_and_it_comes_first() -> None:
    asked = PromptFormat("Do it.").messages(Example("e", TURNS, "a1"), [SHOT], context=["Passage."])
    assert roles(asked) == [
        ("system", "Do it.\n\nOwn rules."),
        ("user", "sq"),
        ("assistant", "sa"),
        ("user", "q0"),
        ("assistant", "a0"),
        ("user", "Passage.\n\nq1"),
    ]


def test_an_inline_instruction_stands_in_each_question() -> None:
    asked = PromptFormat("Do it.", "inline").messages(Example("e", TURNS, "a1"), [SHOT])
    assert roles(asked)[:2] == [("system", "Own rules."), ("user", "Do it.\n\nsq")]
    assert roles(asked)[-1] == ("user", "Do it.\n\nq1")


def test_an_answer_is_cut_to_its_first_line_and_json_is_not() -> None:
    assert AnswerFormat("label", 8).parse(" \n red \nand so on") == "red"
    assert AnswerFormat("json", 8).parse('\n{"a":\n 1}\n') == '{"a":\n 1}'
    assert AnswerFormat("text", 8).parse("") == ""


def steady(task: Task, samples: int) -> Task:
    options = (plain_options("accuracy"), Consistency(name="consistency", samples=samples, temperature=0.5))
    return replace(task, spec=task.spec.model_copy(update={"metric": options}))


def test_consistency_asks_paraphrases_and_samples_and_scores_their_agreement(
    task: Task, engine: FakeEngine, tmp_path: Path
) -> None:
    first, *rest = task.dev
    # The fake answers with the last word: one wording agrees with the question, the other does not.
    worded = replace(first, paraphrases=(f"Once more: {first.text}", "Item of another colour, violet."))
    varied = steady(task.with_split("dev", (worded, *rest)), 0)
    scores = evaluate(varied, Asking(engine), "dev", tmp_path / "s", ignore)
    assert sorted(engine.asked) == sorted([*(one.id for one in task.dev), f"{first.id}~p0", f"{first.id}~p1"])
    # Of the three pairs of answers one agrees. What has no other wording is not measured.
    assert scores.items[0].metrics["consistency"] == pytest.approx(1 / 3)
    assert all("consistency" not in one.metrics for one in scores.items[1:])
    assert scores.average("consistency") == pytest.approx(1 / 3)
    assert [one["id"] for one in read_jsonl(tmp_path / "s" / "dev" / "asking.jsonl")] == [one.id for one in task.dev]
    engine.asked.clear()
    evaluate(steady(varied, 2), Asking(engine), "dev", tmp_path / "s", ignore)
    assert len(engine.asked) == 8 + 2 + 16
    assert {one.temperature for one in engine.requests if "~s" in one.id} == {0.5}
    assert len({one.seed for one in engine.requests if "~s" in one.id}) == 16
    assert {one.temperature for one in engine.requests if "~s" not in one.id} == {0.0}


def test_what_was_never_measured_has_no_average(task: Task, engine: FakeEngine, tmp_path: Path) -> None:
    scores = evaluate(steady(task, 0), Asking(engine), "dev", tmp_path / "s", ignore)
    assert math.isnan(scores.average("consistency"))
