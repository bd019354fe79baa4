"""A prompt: its requests, the room for its answer, and what it loses where the context is too short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prompts.prompt import Prompt, answer_format, dropped_shots, most_tokens, seed_of
from evals.candidate import AnswerFormat, PromptFormat
from evals.engines.engine import Constraint, Message, Request, ToolCall
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import Event, Note, ignore
from evals.task.example import Example
from evals.task.load import Task, load_task

CONTEXT = 512
ANSWER = 24
ANSWERS = AnswerFormat("text", ANSWER)


@dataclass
class Characters:
    """An engine whose tokens are characters, with two more for each turn; it answers nothing, and keeps what it counted."""

    context_length: int = 100_000
    name: str = "characters"
    fingerprint: str = "characters"
    takes_tools: bool = False
    counted: list[Sequence[Message]] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        self.counted += prompts
        return [sum(len(turn.content) + 2 for turn in turns) for turns in prompts]

    def generate(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        yield from ()


def row(name: str, text: str, target: str = "t") -> Example:
    return Example(name, (Message("user", text),), target)


def shown(request: Request) -> list[str]:
    """The demonstrations of a request, by their questions."""
    return [turn.content for turn in request.messages if turn.role == "user"][:-1]


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task"))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(tiny_model), "float32", ignore))


def test_the_answer_has_room_for_a_quarter_more_than_the_longest_target(task: Task) -> None:
    assert answer_format(task, Characters()).max_new_tokens == 24
    long = task.with_split("train", (replace(task.train[0], target="x" * 100), *task.train[1:]))
    assert answer_format(long, Characters()).max_new_tokens == 129


def test_requests_carry_all_that_the_prompt_says_and_its_settings_show_it() -> None:
    form = Constraint("choice", '["a", "b"]')
    shots = (row("s", "shot", "a"),)
    plain = Prompt("p", Characters(), PromptFormat("Say."), ANSWERS)
    whole = replace(
        plain, shots=lambda some: [shots] * len(some), shot_settings={"n": 1}, constraint=form, temperature=0.5, seed=9
    )
    (asked,) = whole.requests([row("q", "question")])
    turns = (("system", "Say."), ("user", "shot"), ("assistant", "a"), ("user", "question"))
    assert asked == Request("q", tuple(Message(*turn) for turn in turns), ANSWER, 0.5, seed_of(9, "q"), constraint=form)
    changes = [{"shot_settings": {"n": 2}}, {"constraint": form}, {"temperature": 0.5}, {"seed": 1}, {"answer_format": None}]
    changes[-1] = {"answer_format": replace(ANSWERS, after="Answer:")}
    assert len({str(replace(plain, **change).settings) for change in [{}, *changes]}) == len(changes) + 1  # type: ignore[arg-type]


def test_at_the_border_of_the_context_one_token_decides(tiny: HfEngine) -> None:
    """Four demonstrations that fit exactly, then one character more in the question: the front one goes, aloud."""
    assert tiny.context_length == CONTEXT
    prompt_format = PromptFormat("Name it.")
    shots = tuple(row(f"s{at}", f"{at}" * 20) for at in range(4))
    bare = tiny.count_prompts([prompt_format.messages(row("q", ""), shots)])[0]
    told: list[Event] = []
    arm = Prompt("few", tiny, prompt_format, ANSWERS, shots=lambda some: [shots] * len(some), on_event=told.append)

    fits = row("fits", "x" * (CONTEXT - ANSWER - bare))
    (asked,) = arm.requests([fits])
    assert len(shown(asked)) == 4
    assert told == []
    (response,) = tiny.generate([asked])
    assert (response.prompt_tokens, response.skipped) == (CONTEXT - ANSWER, "")

    longer = row("longer", "x" * (CONTEXT - ANSWER - bare + 1))
    # As it is, the engine would skip it.
    (whole,) = tiny.generate([Request("whole", prompt_format.messages(longer, shots), ANSWER)])
    assert whole.skipped
    short, asked = arm.requests([row("short", "x"), longer])
    assert len(shown(short)) == 4
    assert shown(asked) == ["1" * 20, "2" * 20, "3" * 20]
    (response,) = tiny.generate([asked])
    assert response.skipped == ""
    (note,) = told
    assert isinstance(note, Note)
    assert note.level == "warning"
    assert "few: 1 of 2 prompts lost demonstrations (1 each, 1 in all)" in note.text
    assert "context of 512 tokens with 24 for the answer" in note.text


def test_a_question_that_is_too_long_alone_loses_all_and_is_skipped_with_a_reason(tiny: HfEngine) -> None:
    told: list[Event] = []
    shots = tuple(row(f"s{at}", "shot") for at in range(3))
    arm = Prompt("few", tiny, PromptFormat(""), ANSWERS, shots=lambda some: [shots] * len(some), on_event=told.append)
    asked = arm.requests([row("long", "x" * 600), row("short", "x")])
    assert [len(shown(one)) for one in asked] == [0, 3]
    responses = {one.id: one for one in tiny.generate(asked)}
    assert "does not fit the context of 512" in responses["long"].skipped
    assert responses["short"].skipped == ""
    assert [one.text.split(",")[0] for one in told if isinstance(one, Note)] == [
        "few: 1 of 2 prompts lost demonstrations (3 each"
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text("aé€", max_size=30), st.lists(st.integers(0, 40), max_size=9)), max_size=5),
    st.integers(0, 200),
)
def test_as_few_demonstrations_are_dropped_as_must_be(drawn: list[tuple[str, list[int]]], room: int) -> None:
    """Against trying every count; letters of several bytes keep the cheap bound apart from the true length."""
    prompt_format = PromptFormat("Do.", "inline")
    examples = [row(str(at), text) for at, (text, _) in enumerate(drawn)]
    shots = [tuple(row(f"{at}-{n}", "s" * size) for n, size in enumerate(sizes)) for at, (_, sizes) in enumerate(drawn)]
    expected = []
    for example, some in zip(examples, shots, strict=True):
        counts = Characters().count_prompts([prompt_format.messages(example, some[drop:]) for drop in range(len(some) + 1)])
        expected.append(next((drop for drop, count in enumerate(counts) if count <= room), len(some)))
    assert dropped_shots(Characters(), prompt_format, room, examples, shots) == expected


def test_prompts_that_cannot_be_too_long_are_not_counted() -> None:
    engine = Characters(400)
    shots = (row("s", "shot"),)
    arm = Prompt("few", engine, PromptFormat("Do."), ANSWERS, shots=lambda some: [shots] * len(some))
    arm.requests([row(str(at), "question") for at in range(300)])
    assert len(engine.counted) == 1
    assert [turn.content for turn in engine.counted[0]] == ["x"] * 4
    # One that can be is counted, and five rounds of halving are enough for 32.
    engine.counted.clear()
    many = tuple(row(f"s{at}", "shot") for at in range(32))
    long = replace(arm, shots=lambda some: [many] * len(some))
    assert [len(shown(one)) for one in long.requests([row("q", "x" * 300)])] == [7]
    assert len(engine.counted) <= 1 + 1 + 5


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_the_cheap_bound_is_never_too_low(tiny: HfEngine, texts: list[str]) -> None:
    roles = ["system", "user", "assistant", "user"]
    turns = [Message(role, text.encode("utf-8", "ignore").decode()) for role, text in zip(roles, texts, strict=False)]
    assert most_tokens(tiny, [turns])[0] >= tiny.count_prompts([turns])[0]


def test_turns_with_calls_have_no_cheap_bound() -> None:
    call = ToolCall("f", '{"long": "' + "x" * 900 + '"}')
    turns = (Message("user", "q"), Message("assistant", "", (call,)), Message("tool", "r"), Message("user", "and?"))
    assert most_tokens(Characters(), [turns, turns[:1]]) == [float("inf"), 3 + 1]
