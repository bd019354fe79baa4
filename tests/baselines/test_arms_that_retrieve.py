"""Chunks lose nothing, the index is exact, and the irrelevant passage is irrelevant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.probes import irrelevant_passages, knowledge_probes
from baselines.rag.candidate import rag_arms, retrieval_recall
from baselines.rag.chunks import Chunk, covers, split_document, split_documents
from baselines.rag.index import DenseIndex
from evals.engines.embed import Embedder
from evals.engines.engine import Message, Request
from evals.metrics.text import containment
from evals.task.example import Example
from evals.task.load import load_task
from evals.task.reading.documents import Document

words = st.sampled_from(["ship", "tide", "rope", "06:40", "harbour", "e.g.", "Kaldvik", "£5", "søndag"])
sentences = st.lists(words, min_size=1, max_size=90).map(lambda some: " ".join(some).capitalize() + ".")
paragraphs = st.lists(sentences, min_size=1, max_size=6).map(" ".join)
texts = st.lists(paragraphs | st.just("# A heading"), min_size=1, max_size=5).map("\n\n".join)


@settings(max_examples=80, deadline=None)
@given(texts, st.integers(5, 60))
def test_every_sentence_is_in_some_chunk_and_no_chunk_is_too_long(text: str, size: int) -> None:
    chunks = split_document(Document("d.md", text), size)
    assert [one.position for one in chunks] == list(range(len(chunks)))
    assert all(0 < len(one.text.split()) <= size for one in chunks)
    body = [line for line in text.split("\n\n") if not line.startswith("#")]
    for sentence in (one for paragraph in body for one in re.split(r"(?<=\.)\s+(?=[A-Z0-9])", paragraph)):
        pieces = sentence.split()
        for start in range(0, len(pieces), size):
            piece = " ".join(pieces[start : start + size])
            assert any(piece in one.text for one in chunks), piece


def test_neighbours_share_a_sentence() -> None:
    text = " ".join(f"Sentence number {at} is here." for at in range(12))
    chunks = split_document(Document("d.md", text), 20)
    assert len(chunks) > 3
    for left, right in pairwise(chunks):
        shared = left.text.split(". ")[-1].rstrip(".")
        assert right.text.startswith(shared)
    # With no word lost: the chunks without their overlap are the text.
    assert chunks[0].text + "".join(one.text.split(".", 1)[1] for one in chunks[1:]) == text


def test_a_sentence_longer_than_a_chunk_is_cut() -> None:
    text = " ".join(f"w{at}" for at in range(130))
    chunks = split_document(Document("d.md", text), 60)
    assert [len(one.text.split()) for one in chunks] == [60, 60, 10]
    assert " ".join(one.text for one in chunks) == text


def test_the_title_is_the_first_heading_or_the_files_name() -> None:
    titled = split_document(Document("a/b.md", "# The *Canteen*\n\nIt opens.\n\n## More\n\nIt closes."))
    assert [one.title for one in titled] == ["The *Canteen*"]
    assert titled[0].passage == "The *Canteen*: It opens. It closes."
    assert split_document(Document("a/b.c.md", "It opens."))[0].title == "b.c"
    assert split_document(Document("a.md", "# Only a heading")) == []


def test_a_chunk_covers_a_passage_from_half_on() -> None:
    gold = "abcdefghij" * 4

    def chunk(text: str) -> Chunk:
        return Chunk("d", "t", 0, 0, len(text), text)

    assert covers(chunk(f"before {gold} after"), gold)
    assert covers(chunk(f"xx {gold[:20]}"), gold)
    assert not covers(chunk(f"xx {gold[:19]}"), gold)
    assert covers(chunk("The   harbour\nopens"), "The harbour  opens")
    # One run, not crumbs that add up.
    assert not covers(chunk(" ".join(gold)), gold)
    assert not covers(chunk("anything"), " ")


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


DOCUMENTS = tuple(
    Document(f"{name}.md", f"# {name}\n\nThe {name} opens at 0{at}:40. Its colour is {name[::-1]}. Ask {name * 3} first.")
    for at, name in enumerate(["canteen", "gym", "mooring", "payroll", "zebra", "quay"])
)


def test_the_index_finds_the_chunk_that_equals_the_question(embedder: Embedder) -> None:
    chunks = split_documents(DOCUMENTS, 8)
    index = DenseIndex(chunks, embedder)
    assert [found[0] for found in index.search([one.passage for one in chunks], 1)] == chunks
    every = index.search([chunks[0].passage], 10**6)[0]
    assert sorted(map(chunks.index, every)) == list(range(len(chunks)))
    vectors = embedder.encode([one.passage for one in chunks])
    likeness = [float(vectors[chunks.index(one)] @ vectors[0]) for one in every]
    np.testing.assert_allclose(likeness, sorted(likeness, reverse=True), atol=1e-6)


@dataclass(frozen=True)
class Silent:
    name: str = "silent"
    fingerprint: str = "silent"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def generate(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        yield from ()


def test_the_best_passage_stands_nearest_to_the_question(
    make_task: Callable[..., Path], embedder: Embedder, tmp_path: Path
) -> None:
    files = {f"docs/{one.id}": one.text for one in DOCUMENTS}
    data = {name: f"{name}.jsonl" for name in ("train", "dev", "test")}
    task = load_task(make_task(tmp_path / "t", files=files, data={**data, "documents": "docs"}))
    arms = rag_arms(task, Silent(), embedder)
    assert [(one.name, one.count) for one in arms] == [("rag_1", 1), ("rag_3", 3)]
    for arm in arms:
        for request, example in zip(arm.requests(task.dev), task.dev, strict=True):
            assert isinstance(request, Request)
            (found,) = arm.index.search([example.text], arm.count)
            shown = "\n\n".join(one.passage for one in reversed(found))
            assert request.messages == (Message("user", f"Name the colour.\n\n{shown}\n\n{example.text}"),)
    assert arms[0].settings != arms[1].settings


def test_recall_counts_the_questions_whose_passage_was_found(embedder: Embedder) -> None:
    index = DenseIndex(split_documents(DOCUMENTS), embedder)
    task_like = [
        Example(f"q{at}", (Message("user", index.chunks[at].passage),), "x", (index.chunks[at if at < 4 else 0].text,))
        for at in range(6)
    ]

    @dataclass(frozen=True)
    class Arm:
        index: DenseIndex
        count: int = 1

    recall, seconds = retrieval_recall(Arm(index), task_like) or (0.0, 0.0)  # type: ignore[arg-type]
    assert recall == 4 / 6
    assert seconds >= 0
    assert retrieval_recall(Arm(index), [Example("q", (Message("user", "a"),), "x")]) is None  # type: ignore[arg-type]


def test_documents_of_nothing_but_headings_give_no_rag_arm(
    make_task: Callable[..., Path], embedder: Embedder, tmp_path: Path
) -> None:
    data = {name: f"{name}.jsonl" for name in ("train", "dev", "test")}
    folder = make_task(tmp_path / "t", files={"docs/a.md": "# Heading\n"}, data={**data, "documents": "docs"})
    assert rag_arms(load_task(folder), Silent(), embedder) == []
    assert rag_arms(load_task(make_task(tmp_path / "u")), Silent(), embedder) == []


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
    for at, request in enumerate(gold.requests(task.dev)):
        assert isinstance(request, Request)
        assert request.messages[-1].content == f"Name the colour.\n\nIt is red{at}.\n\nq {at}"
    for at, request in enumerate(irrelevant.requests(task.dev)):
        assert isinstance(request, Request)
        assert f"red{at}" not in request.messages[-1].content
        assert "It is red" in request.messages[-1].content
    assert gold.settings != irrelevant.settings
    del rows[3]["gold_passages"]
    assert knowledge_probes(load_task(make_task(tmp_path / "u", rows={"dev": rows}, output={"type": "text"})), Silent()) == []
