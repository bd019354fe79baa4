"""Probes: passages of equal length, nested demonstrations, samples that differ by their seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.probes import (
    CANARIES,
    HOLDS_ANSWER,
    holding_answers,
    irrelevant_passages,
    knowledge_probes,
    obedience_probe,
    obeyed,
    sample_probes,
    shot_probes,
)
from evals.engines.engine import Message, Request, Response
from evals.errors import AdvisorError
from evals.exchange import exchanged
from evals.scores import Scores, unscored
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


def test_samples_are_drawn_of_the_prompt_that_is_given_with_all_that_it_shows(task: Task) -> None:
    best = shot_probes(task, Silent())[2]
    for one in sample_probes(best, 3):
        assert one.kind == "probe"
        assert [asked.messages for asked in one.requests(task.dev)] == [asked.messages for asked in best.requests(task.dev)]


def holding(*rows: tuple[str, str]) -> set[str]:
    """The names (a, b, …) of the (target, passage) rows whose passage is known to hold the answer."""
    return set(holding_answers([question("abcdefgh"[at], target, passage) for at, (target, passage) in enumerate(rows)]))


def test_a_passage_holds_an_answer_that_stands_in_it_word_for_word_and_hardly_elsewhere() -> None:
    others = [("blue", "The sea is Blue."), ("wet", "Rain is yes and wet."), ("cold", "Yes, ice is cold.")]
    # Case and punctuation apart; not inside another word; not where it is not said at all.
    assert holding(("red car", "It was a RED, car."), *others) == {"a", "b", "c", "d"}
    assert holding(("red", "It was hundred."), *others) == {"b", "c", "d"}
    # "yes" stands in the passages of others: no passage answers with it.
    assert holding(("yes", "Was it? Yes."), *others) == {"b", "c", "d"}
    assert holding(("", "Nothing."), *others) == {"b", "c", "d"}
    # Rows of the same passage say nothing of how common a word is.
    assert holding(*[("blue", "The sea is blue.")] * 3, ("red", "Red it is.")) == {"a", "b", "c", "d"}


def test_answers_to_a_passage_that_holds_them_say_so_and_nothing_else_changes(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [
        {"id": f"d{at}", "input": f"q {at}", "output": f"red{at}" if at else "green", "gold_passages": [f"It is red{at}."]}
        for at in range(3)
    ]
    task = load_task(make_task(tmp_path / "held", rows={"dev": rows}, output={"type": "text"}))
    gold, irrelevant = (replace(one, engine=Says(answers=("a", "b", "c"))) for one in knowledge_probes(task, Silent()))
    found, other = (
        [
            unscored(one)
            for one in exchanged(
                probe.engine,
                [(one.id, step) for one, step in zip(task.dev, probe.requests(task.dev), strict=True)],
                probe.parse,
            )
        ]
        for probe in (gold, irrelevant)
    )
    assert [one.trace for one in found] == [[], [{HOLDS_ANSWER: True}], [{HOLDS_ANSWER: True}]]
    assert [one.trace for one in other] == [[], [], []]
    assert [replace(one, trace=[]) for one in found] == other
    assert gold.settings != replace(gold, holding=frozenset()).settings


def passages_of(task: Task) -> dict[str, str]:
    return {one.id: f"First {one.id} came. Then it went. It is {one.target}." for one in task.dev}


def test_an_instruction_stands_in_the_middle_of_each_passage(task: Task) -> None:
    passages = passages_of(task)
    probe = obedience_probe(task, Silent(), passages)
    assert (probe.name, probe.kind) == ("planted_instruction", "probe")
    for example in task.dev:
        passage, order, word = probe.planted[example.id]
        assert word in order
        assert passage.count(order) == 1
        assert " ".join(passage.replace(order, "").split()) == passages[example.id]
        assert passage.index(order) > 0
        assert not passage.endswith(order)
    # The wording and the word are the example's own, the same in every run.
    assert len({order for _, order, _ in probe.planted.values()}) > 2
    assert obedience_probe(task, Silent(), passages).planted == probe.planted
    assert (
        probe.settings != obedience_probe(task, Silent(), {name: f"{text} More." for name, text in passages.items()}).settings
    )
    with pytest.raises(AdvisorError, match="1 examples have no passage"):
        obedience_probe(task, Silent(), {one.id: "x" for one in task.dev[1:]})


def test_no_word_is_planted_that_the_texts_hold(task: Task) -> None:
    held = passages_of(task)
    first = task.dev[0].id
    held[first] += f" {CANARIES[0].upper()} and {CANARIES[1]}s."
    words = {word for *_, word in obedience_probe(task, Silent(), held).planted.values()}
    assert words <= set(CANARIES[2:])
    held[first] += " ".join(CANARIES)
    for *_, word in obedience_probe(task, Silent(), held).planted.values():
        assert not any(word in text for text in held.values())


@dataclass(frozen=True)
class Says(Silent):
    answers: tuple[str, ...] = ()

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request, text in zip(requests, self.answers, strict=True):
            yield Response(request.id, text, 1, 1, 0.0, skipped="" if text else "too long")


def test_obedience_is_the_word_said_and_not_the_passage_read_aloud(task: Task) -> None:
    planted = obedience_probe(task, Silent(), passages_of(task)).planted
    some = [planted[one.id] for one in task.dev]
    answers = (
        some[0][2],
        f"Sure!\n{some[1][2].upper()}.",
        f'{{"colour": "{some[2][2]}"}}',
        # Not obeyed: the passage copied, another's word, the right answer, no answer at all.
        some[3][0],
        next(word for *_, word in some if word != some[4][2]),
        "red",
        some[6][1],
        "",
    )
    probe = obedience_probe(task, Says(answers=answers), passages_of(task))
    steps = [(one.id, step) for one, step in zip(task.dev, probe.requests(task.dev), strict=True)]
    found = tuple(unscored(one) for one in exchanged(probe.engine, steps, probe.parse))
    assert obeyed(Scores("planted_instruction", "probe", "dev", "m", found)) == (3, 7)
