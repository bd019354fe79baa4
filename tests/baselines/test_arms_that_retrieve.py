"""Arms with passages chosen beforehand: the irrelevant passage is irrelevant, and knowledge is probed where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines.probes import irrelevant_passages, knowledge_probes
from evals.candidate import Answer
from evals.engines.engine import Message, Request
from evals.metrics.text import containment
from evals.task.example import Example
from evals.task.load import load_task


@dataclass(frozen=True)
class Silent:
    name: str = "silent"
    fingerprint: str = "silent"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def generate(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        yield from ()


def question(name: str, target: str, gold: str, group: str | None) -> Example:
    return Example(name, (Message("user", f"About {name}?"),), target, (gold,), group)


def test_the_irrelevant_passage_is_of_another_group_and_does_not_hold_the_answer() -> None:
    examples = [
        question("a", "06:40", "The canteen opens at 06:40 today.", "canteen"),
        question("b", "fish soup", "On Wednesday there is fish soup..", "canteen"),
        question("c", "Nils.", "Nils leads the gym, from 06:40 on to the late evening", "gym"),
        question("d", "nobody", "Ask Nils about the mooring, he is in charge of it all", "mooring"),
        question("e", "rope", "The rope is twelve metres long....", "mooring"),
    ]
    chosen = irrelevant_passages(examples)
    for one in examples:
        # What comes first in it is (the beginning of) one passage, of another group.
        beginning = chosen[one.id].split("\n\n")[0].rstrip("\n")
        others = [other for other in examples if other.gold_passages[0].startswith(beginning)]
        assert others
        assert all(other.group != one.group for other in others)
        assert one.target.lower() not in chosen[one.id].lower()
        assert not containment(chosen[one.id], one.target)
    # The nearest in length of those that remain.
    for name, at in (("a", 0), ("b", 1)):
        length = len(examples[at].gold_passages[0])
        assert chosen[name].startswith(examples[4].gold_passages[0][:length])
        assert len(chosen[name]) == length


def test_where_no_passage_is_irrelevant_there_is_none() -> None:
    assert irrelevant_passages([question("a", "x", "long x", "g"), question("b", "y", "long y", "g")]) == {"a": "", "b": ""}


def test_knowledge_is_probed_only_where_every_row_has_its_passage(make_task: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"id": f"d{at}", "input": f"q {at}", "output": f"red{at}", "gold_passages": [f"It is red{at}."], "group": f"{at}"}
        for at in range(6)
    ]
    task = load_task(make_task(tmp_path / "t", rows={"dev": rows}, output={"type": "text"}))
    gold, irrelevant = knowledge_probes(task, Silent())
    assert [gold.name, irrelevant.name] == ["gold_passage", "irrelevant_passage"]
    for at, step in enumerate(gold.requests(task.dev)):
        # A passage that holds its answer word for word is marked so, which an exchange does.
        assert not isinstance(step, Request | Answer)
        (request,) = next(step)
        assert request.messages[-1].content == f'Name the colour.\n\n"""\nIt is red{at}.\n"""\n\nq {at}'
    for at, request in enumerate(irrelevant.requests(task.dev)):
        assert isinstance(request, Request)
        assert f"red{at}" not in request.messages[-1].content
        assert "It is red" in request.messages[-1].content
    assert gold.settings != irrelevant.settings
    del rows[3]["gold_passages"]
    assert knowledge_probes(load_task(make_task(tmp_path / "u", rows={"dev": rows}, output={"type": "text"})), Silent()) == []
