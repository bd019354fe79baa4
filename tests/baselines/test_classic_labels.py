"""Classifiers of labels: what they learn, what they cannot, and what they must not look at."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.classic.arms import classic_arms
from baselines.classic.fields import ABSENT
from baselines.classic.labels import Learner
from baselines.classic.logistic import Logistic
from baselines.classic.neighbours import Neighbours, _choose, _nearest, _vote
from baselines.classic.tfidf import TfidfLinear
from evals.candidate import Answer, Candidate
from evals.engines.embed import TIMED, Embedder
from evals.evaluate import evaluate
from evals.events import ignore
from evals.task.load import Task, load_task

MakeTask = Callable[..., Path]
WORDS = {"yes": "qqqqqqqqqqqq", "no": "zzzzzzzzzzzz"}


class Angles(Embedder):
    """A text is a number of degrees; its vector is the unit vector of that angle."""

    fingerprint = "angles"  # type: ignore[assignment]

    def encode(self, texts: Sequence[str], task: str = "embedding") -> Any:
        for text in texts:
            turn = np.deg2rad(float(text))
            self._known[text] = np.array([np.cos(turn), np.sin(turn)], dtype=np.float32)
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


@pytest.fixture(params=["tfidf_linear", "nearest_neighbour", "classifier_on_embeddings"])
def learner(request: pytest.FixtureRequest, embedder: Embedder) -> Learner:
    every: list[Learner] = [TfidfLinear(), Neighbours(embedder), Logistic(embedder)]
    return next(one for one in every if one.name == request.param)


def rows(start: int, count: int) -> list[dict[str, str]]:
    labels = ["yes", "no"]
    return [{"input": f"{WORDS[labels[at % 2]]} {at}", "output": labels[at % 2]} for at in range(start, start + count)]


def said(arm: Candidate, task: Task) -> list[str]:
    return [one.text for one in arm.requests(task.dev) if isinstance(one, Answer)]


def test_what_the_words_say_is_learnt(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    task = load_task(make_task(tmp_path / "t", rows={"train": rows(0, 24), "dev": rows(24, 10), "test": rows(34, 4)}))
    arms = classic_arms(task, embedder)
    assert [one.name for one in arms] == ["tfidf_linear", "nearest_neighbour", "classifier_on_embeddings"]
    for arm in arms:
        scores = evaluate(task, arm, "dev", tmp_path / "s", ignore)
        assert scores.mean == 1.0, arm.name
        assert (scores.kind, arm.engine) == ("no_llm", None)
        assert all(0 < one.seconds < 1 for one in scores.items), arm.name
        one_by_one = [arm.requests([example])[0] for example in task.dev]
        assert said(arm, task) == [one.text for one in one_by_one if isinstance(one, Answer)]
        assert arm.requests([]) == []


def test_shuffled_labels_are_guessed(learner: Learner) -> None:
    # Two clear kinds of text whose labels were drawn by lot: nothing is to be known about new ones.
    draw = random.Random(0)
    texts = [f"{WORDS[draw.choice(['yes', 'no'])]} {at}" for at in range(300)]
    labels = [draw.choice("ab") for _ in texts]
    found = learner.learn(texts[:200], {"": labels[:200]}, [str(at) for at in range(200)])(texts[200:])
    right = sum(one == other for one, other in zip(found.values[""], labels[200:], strict=True))
    assert 32 <= right <= 68  # 50 by chance, and 3.6 standard deviations


def test_settings_follow_the_training_rows(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    tasks = []
    for name, count in (("t", 24), ("u", 26)):
        splits = {"train": rows(0, count), "dev": rows(30, 10), "test": rows(40, 4)}
        tasks.append(load_task(make_task(tmp_path / name, rows=splits)))
    one, other = (classic_arms(task, embedder) for task in tasks)
    again = classic_arms(tasks[0].with_split("dev", tasks[0].dev[:2]), embedder)
    for before, after, same in zip(one, other, again, strict=True):
        assert before.settings != after.settings
        assert before.settings == same.settings


def test_rare_labels_empty_texts_and_one_cluster(learner: Learner) -> None:
    texts = [" ", "?", "one", "two", "three", "漢字", "a" * 9000]
    values = ["a", "b", "c", "d", "e", "f", "g"]
    for names in (list("1234567"), ["same"] * 7):
        found = learner.learn(texts, {"x": values, "y": [ABSENT, *["v"] * 6]}, names)([" ", "new", "three"])
        assert len(found.values["x"]) == len(found.values["y"]) == 3
        assert set(found.values["x"]) <= set(values)
        assert set(found.values["y"]) <= {ABSENT, "v"}
    assert len(learner.learn([" ", " "], {"": ["a", "b"]}, ["1", "2"])([" ", "x"]).values[""]) == 2


def test_texts_without_a_term_are_answered() -> None:
    found = TfidfLinear().learn(["", "?", ""], {"": ["a", "b", "a"]}, list("123"))
    assert list(found(["", "!", "words"]).values[""]) == ["a"] * 3
    assert list(TfidfLinear().learn(["", ""], {"": ["a", "b"]}, list("12"))(["x"]).values[""]) in (["a"], ["b"])


def test_the_questions_are_embedded_anew_to_know_what_they_cost(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"question {at}" for at in range(7)]
    embedder.encode(texts)
    asked: list[str] = []
    model = embedder._model.encode
    monkeypatch.setattr(embedder._model, "encode", lambda batch, **more: asked.extend(batch) or model(batch, **more))
    known = dict(embedder._known)
    assert embedder.seconds_each(texts) > 0
    assert sorted(asked) == sorted([texts[0], *texts])  # the first one warms up
    assert embedder._known.keys() == known.keys()
    assert embedder.seconds_each([]) == 0
    asked.clear()
    embedder.seconds_each([f"{at}" for at in range(1000)])
    assert len(asked) == TIMED + 1


def test_neighbours_vote_by_their_cosines() -> None:
    codes = np.array([[0, 1, 1, 0], [2, 1, 1, 0], [1, 0, 2, 2]])
    weights = np.array([[0.9, 0.5, 0.3, 0.1], [0.9, 0.5, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0]])
    assert _vote(codes, weights, 1, 3).tolist() == [0, 2, 1]
    assert _vote(codes, weights, 3, 3).tolist() == [0, 1, 1]  # 0.9 against 0.8; 0.9 against 1.0; no weight: the nearest
    assert _vote(codes, weights, 10, 3).tolist() == [0, 1, 1]


def test_the_nearest_rows_come_first_and_the_own_cluster_never() -> None:
    angles = Angles("")
    known = angles.encode([str(at) for at in range(0, 360, 10)])
    asked = angles.encode(["44", "181"])
    ((near, cosines, part),) = _nearest(asked, known)
    assert part == slice(0, 2)
    assert near[0, :4].tolist() == [4, 5, 3, 6]
    assert near[1, :3].tolist() == [18, 19, 17]
    assert cosines[0, :2] == pytest.approx(np.cos(np.deg2rad([4, 6])), abs=1e-6)
    own = np.arange(36)
    own[5] = own[4]
    ((near, _, _),) = _nearest(known[4:5], known, own[4:5], own)
    assert near[0, 0] == 3
    assert set(near[0, 1:3].tolist()) == {2, 6}  # equally near


def test_k_is_chosen_without_the_rows_own_clusters() -> None:
    # Four copies of each text with one label, and no neighbour beyond them that tells anything but the majority: with the
    # copies k=1 would be always right, without them it is right by chance, and ten votes are right more often.
    draw = random.Random(1)
    texts, labels, names = [], [], []
    for at in range(60):
        label = "a" if draw.random() < 0.75 else "b"
        for _ in range(4):
            texts.append(str(at * 6))
            labels.append(label)
            names.append(f"cluster {at}")
    angles = Angles("")
    code = np.unique(np.asarray(labels), return_inverse=True)[1]
    own = _choose(angles.encode(texts), {"": code}, [str(at) for at in range(len(texts))])
    apart = _choose(angles.encode(texts), {"": code}, names)
    assert own[""] == 1
    assert apart[""] > 1


def test_numbers_that_come_again_are_told_like_labels(make_task: MakeTask, embedder: Embedder, tmp_path: Path) -> None:
    def stars(start: int, count: int) -> list[dict[str, Any]]:
        return [
            {"input": f"{'qqqqqqqqq' if at % 2 else 'zzzzzzzzz'} {at}", "output": at % 2 + 1}
            for at in range(start, start + count)
        ]

    splits = {"train": stars(0, 24), "dev": stars(24, 10), "test": stars(34, 4)}
    task = load_task(make_task(tmp_path / "t", rows=splits, output={"type": "number"}))
    for arm in classic_arms(task, embedder):
        assert evaluate(task, arm, "dev", tmp_path / "s", ignore).mean == 1.0
    free = [{"input": f"how much is {at}", "output": at} for at in range(60)]
    splits = {"train": free[:40], "dev": free[40:50], "test": free[50:]}
    assert classic_arms(load_task(make_task(tmp_path / "u", rows=splits, output={"type": "number"})), embedder) == []
