"""Answers behind reasons are found where they stand, and a vote counts what says the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prompts.prompt import answer_format
from baselines.prompts.reasoning import ASKED, MARK, ROOM, TEMPERATURE, SelfConsistency, reason_then_answer, voted
from evals.candidate import AnswerFormat
from evals.engines.engine import Message, Request, Response
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.evaluate import evaluate
from evals.events import Event, Note, ignore
from evals.exchange import exchanged
from evals.metrics.number import last_number, parse_number
from evals.metrics.structured import equal, parse_value
from evals.task.load import Task, load_task


def read(output_type: Any, text: str, *labels: str) -> str:
    return AnswerFormat(output_type, 8, labels, MARK).parse(text)


@pytest.mark.parametrize(
    ("output_type", "text", "answer"),
    [
        ("label", "It is a rose.\nAnswer: red", "red"),
        ("label", "It is a rose.\nanswer :  red \nAnd so on.", "red"),
        ("label", "Answer: blue? No.\n\nANSWER:\n\nred\nmore", "red"),
        ("label", "I think.\n**Answer:** red", "red"),
        ("label", "I think.\n**Answer**: red", "red"),
        ("label", "I think.\n**Answer: red**\nmore", "red"),
        ("label", "__Answer:__ red", "red"),
        ("label", "**Answer: C**: red", "C**: red"),
        ("label", "The answer is: red", "red"),
        ("label", "It is a rose. So the answer is red.", "red."),
        ("label", "The answer is not clear.\nBut it is a rose\nred\n\n", "red"),
        ("label", "MyAnswer: blue\nred", "red"),
        # A small model goes round, or is cut off behind its last mark.
        ("label", "Answer: red\n\nAnswer: ", "red"),
        ("label", "A rose.\nred\nAnswer:", "red"),
        ("text", "Answer: no", "no"),
        ("text", "Long.\nThe last line", "The last line"),
        ("text", "", ""),
        ("number", "3 + 4 = 7\nAnswer: $1,234.", "$1,234."),
        ("number", "First 3, then 1,234 of them", "1,234"),
        ("number", "The answer is 12", "12"),
        ("number", "none", "none"),
        ("json", 'Answer: {"a":\n 1}', '{"a":\n 1}'),
        ("json", 'Answer:\n```json\n{"a": 1}\n```\nThat is it.', '{"a": 1}'),
        ("json", 'Answer:\n~~~\n{"a": "```"}\n~~~', '{"a": "```"}'),
        ("json", 'Not {"a": 1} but {"b": {"c": 2}}, I think {so}', '{"b": {"c": 2}}'),
        ("json", "Answer: none", "none"),
        ("json", "nothing here", "nothing here"),
    ],
)
def test_the_answer_is_what_stands_behind_the_last_mark_or_at_the_end(output_type: str, text: str, answer: str) -> None:
    assert read(output_type, text) == answer


def test_without_a_mark_to_look_for_an_answer_is_read_as_ever() -> None:
    assert AnswerFormat("label", 8).parse("Reasons.\nAnswer: red") == "Reasons."
    assert AnswerFormat("json", 8).parse('```json\n{"a": 1}\n```') == '```json\n{"a": 1}\n```'


def test_a_label_of_two_lines_is_not_cut_to_another_label() -> None:
    labels = ("card", "card\nlost", "late")
    assert AnswerFormat("label", 8, labels).parse("card\nlost\n") == "card\nlost"
    assert read("label", "Hm.\nAnswer: card\nlost", *labels) == "card\nlost"
    assert AnswerFormat("label", 8, labels).parse("card\nwas lost") == "card"


def test_another_mark_may_be_asked_for() -> None:
    for mark, text in (("####", "3+4\n#### 7"), ("Final answer:", "Answer: 8\nfinal  answer: 7"), ("=>", "8 => 7")):
        assert AnswerFormat("number", 8, (), mark).parse(text) == "7"


TYPES = st.sampled_from(["text", "label", "json", "number"])
# Pieces that a parser could trip over, and any text at all.
PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["Answer", "answer:", "**", "_", "`", "```", "json", "\n", " is ", ":", "{", '{"', '"}', "1,", "-", "\u2028"]
    ),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@given(output_type=TYPES, text=TEXTS, after=st.one_of(st.just(MARK), st.text(max_size=6)))
def test_no_text_breaks_the_parser_nor_adds_to_what_was_said(output_type: Any, text: str, after: str) -> None:
    AnswerFormat(output_type, 8, ("red",), after).parse(text)
    answer = AnswerFormat(output_type, 8, ("red",), MARK).parse(text)
    if output_type != "number":  # whose digits may be of another width
        assert answer in text.strip()


@given(output_type=TYPES, before=TEXTS, text=TEXTS)
def test_what_follows_a_mark_is_read_as_an_answer_alone(output_type: Any, before: str, text: str) -> None:
    if "answer" in text.casefold() or "```" in text or not text.strip():
        return
    alone = AnswerFormat(output_type, 8).parse(text)
    assert read(output_type, f"{before}\nAnswer: {text}") == alone


@given(
    before=st.text("abc {}[]\"'\n:,", max_size=20),
    value=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=4)),
)
def test_the_last_object_is_found_whole(before: str, value: dict[str, Any]) -> None:
    if '"' in before:  # an object may then begin before ours
        return
    found = read("json", f'{{"a": 1}} {before} {json.dumps(value)} done.')
    assert json.loads(found) == value


@given(text=st.text("abc 0123456789.,-\n", max_size=30))
def test_the_last_number_is_the_one_that_the_tolerant_metric_reads(text: str) -> None:
    wanted = last_number(text)
    if wanted is not None:
        assert parse_number(read("number", text)) == wanted


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """An engine whose tokens are characters and whose answers are given; it remembers what it was asked."""

    answer: Callable[[Request], str] = lambda request: "red"
    context_length: int = 4096
    name: str = "scripted"
    fingerprint: str = "scripted"
    takes_tools: bool = False
    asked: list[Request] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(len(one.content) for one in turns) for turns in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        self.asked += requests
        # Backwards: nothing may depend on the order in which answers come.
        for one in reversed(requests):
            text = self.answer(one)
            skipped = "too long" if text == "SKIP" else ""
            yield Response(one.id, "" if skipped else text, 10, len(text), 0.25, skipped=skipped)


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task"))


def test_the_model_is_asked_for_reasons_and_given_room_for_them(task: Task) -> None:
    engine = Scripted()
    told: list[Event] = []
    arm = reason_then_answer(task, engine, told.append)
    assert (arm.name, arm.kind, told) == ("reason_then_answer", "prompt", [])
    assert arm.answer_format.max_new_tokens == answer_format(task, engine).max_new_tokens + ROOM[task.output_type]
    (request, *_) = arm.requests(task.dev)
    assert request.messages == (Message("user", f"Name the colour.\n\n{ASKED}\n\n{task.dev[0].text}"),)
    assert MARK in ASKED
    assert arm.parse("It is like blood.\nAnswer: red\n") == "red"
    alone = reason_then_answer(replace(task, instruction=""), engine, ignore)
    assert alone.prompt_format.instruction == ASKED


def test_reasons_have_what_the_context_leaves_and_it_is_said(task: Task) -> None:
    plain = answer_format(task, Scripted()).max_new_tokens
    longest = len(f"Name the colour.\n\n{ASKED}\n\n") + max(len(one.text) for one in (*task.train, *task.dev))
    most = ROOM[task.output_type]
    for spare, room in ((most + 5, most), (most, most), (most - 1, most - 1), (3, 3), (-50, 0)):
        told: list[Event] = []
        arm = reason_then_answer(task, Scripted(context_length=longest + plain + spare), told.append)
        assert arm.answer_format.max_new_tokens == plain + room
        assert [type(one) for one in told] == ([Note] if room < most else [])
        assert all(f"{room} of {most}" in one.text for one in told if isinstance(one, Note))


# --- voting -----------------------------------------------------------------------------------------------------------


def vote(output_type: Any, *texts: str, labels: Sequence[str] = ()) -> Any:
    responses = [Response("e", "" if text == "SKIP" else text, 1, 1, 0.0, skipped="why" * (text == "SKIP")) for text in texts]
    return voted(responses, AnswerFormat(output_type, 8, tuple(labels)))


@pytest.mark.parametrize(
    ("output_type", "texts", "answer", "votes"),
    [
        ("label", ["blue", "Red", "'red'."], "Red", [2, 1]),
        ("label", ["blue", "red", "red", "blue"], "blue", [2, 2]),
        ("label", ["SKIP", "SKIP", "red"], "red", [1]),
        # What is no label has no vote where there is one.
        ("label", ["well", "well", "red"], "red", [1]),
        ("label", ["well", "hm", "hm"], "hm", [2, 1]),
        ("number", ["7", "1,000", "1000.0", "about 7"], "1,000", [2, 1]),
        ("number", ["0", "-0.0", "1"], "0", [2, 1]),
        ("json", ['{"a": 2}', '{"a": 1, "b": [1]}', '{"b":[1.0],"a":1}', "{"], '{"a": 1, "b": [1]}', [2, 1]),
        ("json", ['{"a": true}', '{"a": 1}', '{"a": 1.0}'], '{"a": 1}', [2, 1]),
        ("text", ["Oslo", "the oslo!", "Bergen", "Bergen.", "Oslo"], "Oslo", [3, 2]),
        ("text", ["", "", "Oslo"], "Oslo", [1]),
        ("text", ["", ""], "", [2]),
    ],
)
def test_the_majority_of_what_says_the_same_wins_and_the_first_seen_a_tie(
    output_type: str, texts: list[str], answer: str, votes: list[int]
) -> None:
    found = vote(output_type, *texts, labels=["red", "blue"] if output_type == "label" else ())
    assert found.text == answer
    assert [one["votes"] for one in found.trace] == votes
    assert found.trace[0]["answer"] == answer
    assert not found.skipped


def test_without_a_single_sample_there_is_no_answer() -> None:
    found = vote("label", "SKIP", "SKIP")
    assert (found.text, found.skipped, found.trace) == ("", "why", ())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([1.0, 0.5, -0.0]) | st.text("ab", max_size=1),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60)
@given(values=st.lists(VALUES, min_size=1, max_size=7))
def test_json_votes_are_those_of_equal_values(values: list[Any]) -> None:
    found = vote("json", *(json.dumps(one) for one in values))
    counts = [sum(equal(one, other) for other in values) for one in values]
    assert found.trace[0]["votes"] == max(counts)
    assert equal(parse_value(found.text), values[counts.index(max(counts))])
    assert sum(one["votes"] for one in found.trace) == len(values)


def test_what_was_said_is_the_first_text_that_gave_the_answer(task: Task) -> None:
    texts = iter(["So.\nAnswer: blue", "First.\nAnswer: red", "Then.\nAnswer: red"])
    arm = SelfConsistency(reason_then_answer(task, Scripted(lambda _: next(texts)), ignore), 3, 0)
    (example, *_) = task.dev
    (found,) = exchanged(arm.engine, [(example.id, *arm.requests([example]))], arm.parse)
    # `Scripted` answers backwards: the first sample said what it was asked last.
    assert (found.answer.text, found.answer.said) == ("red", "Then.\nAnswer: red")
    assert found.answer.trace == [{"answer": "red", "votes": 2}, {"answer": "blue", "votes": 1}]


def test_samples_are_one_round_with_seeds_of_their_own_and_cost_what_all_of_them_cost(task: Task, tmp_path: Path) -> None:
    engine = Scripted(lambda request: "red" if (request.seed or 0) % 3 else "SKIP")
    arm = SelfConsistency(reason_then_answer(task, engine, ignore), 4, 0)
    assert (arm.name, arm.kind) == ("self_consistency_4", "prompt")
    scores = evaluate(task, arm, "dev", tmp_path / "scores", ignore)
    assert len(engine.asked) == 4 * len(task.dev)
    assert {one.temperature for one in engine.asked} == {TEMPERATURE}
    seeds = {one.id: one.seed for one in engine.asked}
    assert len(set(seeds.values())) == len(engine.asked)
    assert all(one is not None and 0 <= one < 2**31 for one in seeds.values())
    for item in scores.items:
        heard = sum(bool(seed % 3) for name, seed in seeds.items() if seed is not None and name.startswith(f"{item.id}\x1f"))
        assert (item.prompt_tokens, item.seconds) == (40, 1.0)
        assert item.output_tokens == 3 * heard + 4 * (4 - heard)
        assert item.trace == ([{"answer": "red", "votes": heard}] if heard else [])
    again = Scripted(engine.answer)
    answers = exchanged(again, [(one.id, step) for one, step in reversed(_steps(replaced(arm, again), task))], arm.parse)
    assert len(list(answers)) == len(task.dev)
    assert {one.id: one.seed for one in again.asked} == seeds


def replaced(arm: SelfConsistency, engine: Scripted) -> SelfConsistency:
    return replace(arm, prompt=replace(arm.prompt, engine=engine))


def _steps(arm: SelfConsistency, task: Task) -> list[Any]:
    return list(zip(task.dev, arm.requests(task.dev), strict=True))


def test_seeds_follow_the_tasks_and_settings_tell_them(task: Task) -> None:
    asked = []
    for seed in (0, 1):
        engine = Scripted()
        arm = SelfConsistency(reason_then_answer(task, engine, ignore), 2, seed)
        list(exchanged(engine, [(one.id, step) for one, step in _steps(arm, task)], arm.parse))
        asked.append(({one.seed for one in engine.asked}, json.dumps(arm.settings, sort_keys=True)))
    assert not asked[0][0] & asked[1][0]
    assert asked[0][1] != asked[1][1]
    prompt = reason_then_answer(task, Scripted(), ignore)
    assert SelfConsistency(prompt, 2, 0).settings != SelfConsistency(prompt, 3, 0).settings


def test_a_real_engine_draws_different_samples_and_the_same_ones_again(task: Task, tiny_model: Path) -> None:
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    prompt = reason_then_answer(task, engine, ignore)
    short = replace(prompt, answer_format=replace(prompt.answer_format, output_type="text", max_new_tokens=6))
    arm = SelfConsistency(short, 5, 0)
    rows = task.dev[:3]
    runs = []
    for examples in (rows, rows[::-1]):
        steps = [(one.id, step) for one, step in zip(examples, arm.requests(examples), strict=True)]
        runs.append({one.id: one.answer for one in exchanged(engine, steps, arm.parse)})
    assert runs[0] == runs[1]
    assert all(Counter(one.skipped for one in run.values()) == {"": 3} for run in runs)
    assert any(len(one.trace) > 1 for one in runs[0].values())
