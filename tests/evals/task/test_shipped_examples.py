"""The shipped examples are what they say: valid, large enough, and without near-duplicates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from evals.metrics.text import containment, normalise
from evals.task.load import Task, load_task

EXAMPLES = Path(__file__).parents[3] / "advisor" / "examples"
NAMES = sorted(one.parent.name for one in EXAMPLES.glob("*/task.yaml"))


@pytest.fixture(scope="module", params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(EXAMPLES / request.param)


def rows(task: Task) -> list[tuple[str, str]]:
    return [(one.id, one.text) for name in ("train", "dev", "test") for one in task.split(name)]


def near_pairs(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of ids whose texts differ by one word at most: changed, added or left out.

    Two texts are such a pair where leaving one word out of each (or of one) at the same place gives the same words.
    """
    holes: dict[tuple[str, ...], list[tuple[str, int | None]]] = {}
    for name, text in texts:
        words = normalise(text).split()
        holes.setdefault(tuple(words), []).append((name, None))
        for at in range(len(words)):
            # A mark where the word was: "a X c" meets "a Y c", but not "a c X".
            holes.setdefault((*words[:at], "\0", *words[at + 1 :]), []).append((name, at))
            holes.setdefault((*words[:at], *words[at + 1 :]), []).append((name, -1))
    pairs = set()
    for found in holes.values():
        for name, how in found:
            for other, way in found:
                if name < other and not (how == way == -1):
                    pairs.add((name, other))
    return sorted(pairs)


def test_near_pairs_are_found() -> None:
    texts = [
        ("a", "the red fox ran"),
        ("b", "red cat ran"),
        ("c", "red fox ran far"),
        ("d", "fox red ran"),
        ("e", "Red fox, ran!"),
    ]
    assert near_pairs(texts) == [("a", "b"), ("a", "c"), ("a", "e"), ("b", "e"), ("c", "e")]


def test_the_examples_are_there() -> None:
    assert {"triage", "handbook", "capitals"} <= set(NAMES)


def test_an_example_is_large_enough(task: Task) -> None:
    assert len(rows(task)) >= 300
    assert min(len(task.dev), len(task.test)) >= 60
    assert task.instruction


def test_no_two_inputs_differ_by_one_word_at_most(task: Task) -> None:
    assert near_pairs(rows(task)) == []


def test_no_answer_stands_in_its_own_question(task: Task) -> None:
    if task.output_type == "text":
        told = [one.id for name in ("train", "dev", "test") for one in task.split(name) if containment(one.text, one.target)]
        assert told == []


def test_answers_stand_in_gold_passages_and_these_in_the_documents() -> None:
    task = load_task(EXAMPLES / "handbook")
    text = "\n".join(" ".join(one.text.split()) for one in task.documents)
    for one in (*task.train, *task.dev, *task.test):
        assert one.gold_passages, one.id
        assert any(one.target in passage for passage in one.gold_passages), one.id
        assert all(" ".join(passage.split()) in text for passage in one.gold_passages), one.id


def test_every_label_of_the_tickets_is_trained_on() -> None:
    task = load_task(EXAMPLES / "triage")
    seen = Counter((key, value) for one in task.train for key, value in json.loads(one.target).items() if key != "order")
    asked = {(key, value) for one in (*task.dev, *task.test) for key, value in json.loads(one.target).items() if key != "order"}
    assert min(seen[pair] for pair in asked) >= 3
