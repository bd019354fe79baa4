"""Demonstrations: chosen from train, never the question itself, as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from baselines.prompts.prompt import affordable_shots, answer_format, nearest_shots, prompt_arms, random_shots
from evals.engines.embed import Embedder
from evals.engines.engine import Message, Request
from evals.task.example import Example
from evals.task.load import Task, load_task


@dataclass(frozen=True)
class Characters:
    """An engine whose tokens are characters; it answers nothing."""

    name: str = "characters"
    fingerprint: str = "characters"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def generate(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        yield from ()


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task"))


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


def test_random_shots_are_the_same_for_all_and_drawn_from_a_seed(task: Task) -> None:
    chosen = random_shots(task.train, 5, seed=3)(task.dev)
    assert len(chosen) == len(task.dev)
    assert len({tuple(one.id for one in shots) for shots in chosen}) == 1
    assert len({one.id for one in chosen[0]}) == 5
    assert chosen == random_shots(task.train, 5, seed=3)(task.dev)
    assert chosen != random_shots(task.train, 5, seed=4)(task.dev)
    assert len(random_shots(task.train[:3], 5, seed=3)(task.dev)[0]) == 3


def test_nearest_shots_put_the_nearest_last(task: Task, embedder: Embedder) -> None:
    chosen = nearest_shots(task.train, 4, embedder)(task.dev)
    pool = embedder.encode([one.text for one in task.train])
    for example, shots in zip(task.dev, chosen, strict=True):
        likeness = pool @ embedder.encode([example.text])[0]
        place = {one.id: at for at, one in enumerate(task.train)}
        shown = [float(likeness[place[one.id]]) for one in shots]
        assert shown == sorted(shown)
        np.testing.assert_allclose(shown[::-1], np.sort(likeness)[::-1][:4], atol=1e-6)


def test_a_question_is_never_shown_to_itself(task: Task, embedder: Embedder) -> None:
    for example, shots in zip(task.train, nearest_shots(task.train, 4, embedder)(task.train), strict=True):
        assert example.id not in {one.id for one in shots}
        assert len(shots) == 4


def test_as_many_shots_as_fit_and_no_more(task: Task) -> None:
    engine = Characters()
    longest = max(len(f"{one.text}\n{one.target}") for one in task.train)
    lengths = sorted((len(f"{one.text}\n{one.target}") for one in task.train), reverse=True)

    def least(count: int) -> int:
        return len(task.instruction) + 2 * longest + 128 + sum(lengths[:count]) + 16 * count

    for count in (1, 3, 8):
        assert affordable_shots(task, engine, least(count), 8) == count
        assert affordable_shots(task, engine, least(count) - 1, 8) == count - 1
    assert affordable_shots(task, engine, 10**6, 8) == 8
    assert affordable_shots(task, engine, 10, 8) == 0


def test_all_turns_of_a_conversation_take_room(task: Task) -> None:
    history = (Message("user", "x" * 500), Message("assistant", "y" * 500))
    long = task.with_split("train", [replace(one, messages=(*history, *one.messages)) for one in task.train])
    assert affordable_shots(task, Characters(), 2000, 8) == 8
    assert affordable_shots(long, Characters(), 2000, 8) == 0


def test_the_answer_has_room_for_a_quarter_more_than_the_longest_target(task: Task) -> None:
    assert answer_format(task, Characters()).max_new_tokens == 24
    long = task.with_split("train", (replace(task.train[0], target="x" * 100), *task.train[1:]))
    assert answer_format(long, Characters()).max_new_tokens == 129


def test_the_arms_ask_every_question_with_its_instruction_and_shots(task: Task, embedder: Embedder) -> None:
    arms = {one.name: one for one in prompt_arms(task, Characters(), embedder, 4096)}
    assert list(arms) == ["zero_shot", "zero_shot_inline", "few_shot_random_8", "few_shot_nearest_8"]
    for name, arm in arms.items():
        asked = arm.requests(task.dev)
        assert [one.id for one in asked if isinstance(one, Request)] == [one.id for one in task.dev]
        for request, example in zip(asked, task.dev, strict=True):
            assert isinstance(request, Request)
            roles = [one.role for one in request.messages]
            assert roles == {
                "zero_shot": ["system", "user"],
                "zero_shot_inline": ["user"],
            }.get(name, ["system", *["user", "assistant"] * 8, "user"])
            assert "Name the colour." in request.messages[0].content
            assert request.messages[-1].content.endswith(example.text)
            # The right answer of a test question stands nowhere but in other rows' answers.
            assert example.text not in "".join(one.content for one in request.messages[:-1])
    assert len({str(arm.settings) for arm in arms.values()}) == 4


def test_without_instruction_or_room_there_are_fewer_arms(task: Task, embedder: Embedder) -> None:
    arms = prompt_arms(replace(task, instruction=""), Characters(), embedder, 100)
    assert [one.name for one in arms] == ["zero_shot"]


def test_settings_follow_the_pool_and_the_seed(task: Task, embedder: Embedder) -> None:
    other = task.with_split("train", task.train[1:])
    seeded = replace(task, spec=task.spec.model_copy(update={"seed": 5}))
    keys = [
        {arm.name: str(arm.settings) for arm in prompt_arms(one, Characters(), embedder, 4096)} for one in (task, other, seeded)
    ]
    assert len({one["few_shot_random_8"] for one in keys}) == 3
    assert len({one["few_shot_nearest_8"] for one in keys}) == 2
    assert len({one["zero_shot"] for one in keys}) == 1


def test_a_shot_is_an_example_of_the_pool(task: Task, embedder: Embedder) -> None:
    pool = {one.id for one in task.train}
    chosen: list[tuple[Example, ...]] = [
        *nearest_shots(task.train, 8, embedder)(task.test),
        *random_shots(task.train, 8, 0)(task.test),
    ]
    assert all(one.id in pool for shots in chosen for one in shots)
