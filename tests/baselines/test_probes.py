"""Probes: passages of equal length, nested demonstrations, samples that differ by their seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.probes import irrelevant_passages, sample_probes, shot_probes
from evals.engines.engine import Message, Request, Response
from evals.task.example import Example
from evals.task.load import Task, load_task
from tests.conftest import colour_rows


@dataclass(frozen=True)
class Silent:
    name: str = "silent"
    fingerprint: str = "silent"
    context_length: int = 100_000
    takes_tools: bool = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(self.count_tokens([one.content for one in turns])) for turns in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        yield from ()


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task", rows={"train": colour_rows(40), "dev": colour_rows(8, 40), "test": None}))


def question(name: str, target: str, passage: str) -> Example:
    return Example(name, (Message("user", "?"),), target, (passage,), name)


@given(st.lists(st.text("ab cde", min_size=1, max_size=60), min_size=4, max_size=8, unique=True))
def test_an_irrelevant_passage_is_as_long_as_the_right_one(passages: list[str]) -> None:
    examples = [question(str(at), "zzz", passage) for at, passage in enumerate(passages)]
    for example, text in zip(examples, irrelevant_passages(examples).values(), strict=True):
        own = example.gold_passages[0]
        others = [one for one in passages if one != own]
        assert len(text) == min(len(own), len("\n\n".join(others)))
        assert any(one.startswith(text) or text.startswith(one) for one in others)


def test_more_shots_hold_the_fewer_and_nothing_else_changes(task: Task) -> None:
    probes = shot_probes(task, Silent())
    assert [one.name for one in probes] == ["shots_0", "shots_2", "shots_8", "shots_32"]
    asked = [one.requests(task.dev)[0].messages for one in probes]
    shown = [[one.content for one in messages[1:-1]] for messages in asked]
    assert [len(one) for one in shown] == [0, 4, 16, 64]
    assert all(more[: len(fewer)] == fewer for fewer, more in pairwise(shown))
    assert len({(messages[0], messages[-1]) for messages in asked}) == 1
    assert len({str(one.settings) for one in probes}) == 4


def test_samples_differ_by_their_seed_alone(task: Task) -> None:
    plain = shot_probes(task, Silent())[0]
    drawn = [one.requests(task.dev) for one in sample_probes(plain, 3)]
    assert len(drawn) == 5
    # No two draws share their luck, neither of one question nor of two.
    assert len({request.seed for one in drawn for request in one}) == 5 * len(task.dev)
    assert {one[0].temperature for one in drawn} == {0.7}
    assert {one[0].messages for one in drawn} == {plain.requests(task.dev)[0].messages}
