"""The best sentence of the documents as the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.classic.arms import classic_arms
from baselines.classic.passage import SHARES, BestPassage
from baselines.classic.sentences import MOST_WORDS, WordMatch, sentences
from evals.candidate import Answer
from evals.engines.embed import Embedder
from evals.engines.engine import Message
from evals.evaluate import evaluate
from evals.events import ignore
from evals.task.load import Task, load_task
from evals.task.reading.documents import Document

MakeTask = Callable[..., Path]
THINGS = ["canteen", "ferry", "archive", "cold store", "museum", "shipyard", "lighthouse", "library", "harbour", "school"]
FACTS = ["opens at {}", "was built by master {}", "holds {} boxes"]


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


def a_task(make_task: MakeTask, folder: Path, **spec: Any) -> Task:
    documents = {
        f"docs/{at}.md": f"# About the {thing}\n\nRead this. "
        + " ".join(f"The {thing} {fact.format(f'K{at}{number}')}." for number, fact in enumerate(FACTS))
        for at, thing in enumerate(THINGS)
    }
    asked = [
        {"input": f"{question} the {thing}?", "output": f"K{at}{number}"}
        for at, thing in enumerate(THINGS)
        for number, question in enumerate(["When opens", "Who was the master that built", "How many boxes holds"])
    ]
    splits = {"train": asked[:16], "dev": asked[16:24], "test": asked[24:]}
    body = {"output": {"type": "text"}, "metric": "containment", **spec}
    body["data"] = {**{name: f"{name}.jsonl" for name in splits}, "documents": "docs/"}
    return load_task(make_task(folder, rows=splits, files=documents, **body))


def test_sentences_are_literal_under_the_title_of_their_document() -> None:
    text = 'Intro line one\ngoes on. Then 3.5 km of it!\n\n## Part\n\nIs it (really)? "Yes." e.g. this one\n\nÅre is cold.'
    found = sentences([Document("a.md", f"# The Title\n\n{text}"), Document("b", "Only. Only.\n\nＡは一。Ｂは二。")])
    assert [one.text for one in found if one.title == "The Title"] == [
        "Intro line one goes on.",
        "Then 3.5 km of it!",
        "Is it (really)?",
        '"Yes." e.g. this one',
        "Åre is cold.",
    ]
    assert [one.text for one in found if one.title != "The Title"] == ["Only.", "Ａは一。", "Ｂは二。"]


def test_a_sentence_without_an_end_is_cut() -> None:
    words = [f"w{at}" for at in range(2 * MOST_WORDS + 5)]
    found = sentences([Document("a", " ".join(words))])
    assert [len(one.text.split()) for one in found] == [MOST_WORDS, MOST_WORDS, 5]
    assert " ".join(one.text for one in found) == " ".join(words)
    assert sentences([Document("a", "# Title only\n\n... !!")]) == []


def test_word_match_is_bm25() -> None:
    texts = ["red fox red fox fox", "blue fox", "green owl sings at night"]
    lengths = [len(text.split()) for text in texts]

    def score(at: int, asked: set[str]) -> float:
        total = 0.0
        for word in asked:
            count = texts[at].split().count(word)
            holding = sum(word in text.split() for text in texts)
            rarity = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
            total += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[at] / (sum(lengths) / 3)))
        return total

    found = WordMatch(texts).scores("Fox, fox and RED owl!")
    assert found == pytest.approx([score(at, {"fox", "red", "owl"}) for at in range(3)])
    assert WordMatch(texts).scores("nothing of it").tolist() == [0, 0, 0]


def test_the_sentence_that_answers_is_found(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    task = a_task(make_task, tmp_path / "t")
    (arm,) = classic_arms(task, embedder)
    assert isinstance(arm, BestPassage)
    scores = evaluate(task, arm, "dev", tmp_path / "s", ignore)
    assert scores.mean == 1.0
    assert scores.items[0].output == "The shipyard was built by master K51."
    assert all(0 <= one.seconds < 1 for one in scores.items)
    together = [one.text for one in arm.requests(task.dev) if isinstance(one, Answer)]
    alone = [one.text for example in task.dev for one in arm.requests([example]) if isinstance(one, Answer)]
    assert together == alone
    assert arm.requests([]) == []


def test_the_share_of_meaning_is_learnt_from_training_questions(make_task: MakeTask, tmp_path: Path) -> None:
    class Knowing(Embedder):
        """A question and the sentences with its answer have one vector, everything else another."""

        def __init__(self, answers: dict[str, str]) -> None:
            super().__init__("")
            self.answers = answers

        def encode(self, texts: Any, task: str = "") -> Any:
            names = list(self.answers.values())
            found = [self.answers.get(text) or next((name for name in names if name in text), None) for text in texts]
            return np.stack([np.eye(len(names) + 1)[0 if name is None else 1 + names.index(name)] for name in found])

    task = a_task(make_task, tmp_path / "t")
    # Questions whose words are those of another document: only the meaning tells.
    asked = [replace(row, messages=(Message("user", f"The school, the school? {row.id}"),)) for row in task.train[:10]]
    misled = task.with_split("train", asked)
    arm = BestPassage(misled, Knowing({row.text: row.target for row in asked}))
    assert arm.share >= 0.5
    blind = BestPassage(misled, Knowing({"nothing": "nowhere"}))
    assert blind.share == SHARES[0]  # all shares are equally wrong


def test_settings_follow_documents_and_training_rows(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    task = a_task(make_task, tmp_path / "t")
    settings = BestPassage(task, embedder).settings
    assert BestPassage(replace(task, documents=task.documents[:-1]), embedder).settings != settings
    assert BestPassage(task.with_split("train", task.train[:-1]), embedder).settings != settings
    assert BestPassage(task.with_split("test", task.test[:1]), embedder).settings == settings


def test_labels_and_texts_without_documents_get_no_passage(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    names = [f"K{at}{number}" for at in range(len(THINGS)) for number in range(len(FACTS))]
    labels = a_task(make_task, tmp_path / "t", output={"type": "label", "labels": names}, metric="accuracy")
    assert "best_passage" not in [one.name for one in classic_arms(labels, embedder)]
    assert classic_arms(load_task(make_task(tmp_path / "u", output={"type": "text"})), embedder) == []
