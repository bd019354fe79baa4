"""Demonstrations: chosen from train at random, for coverage or by nearness, never the question itself, as many as fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prompts import shots as module
from baselines.prompts.shots import (
    diverse_shots,
    few_shot_arms,
    nearest,
    nearest_shots,
    pool_of,
    random_shots,
    spread,
    typical_tokens,
)
from evals.candidate import PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Message, Request
from evals.events import Event, Note, ignore
from evals.task.example import Example
from evals.task.load import Task, load_task


@dataclass(frozen=True)
class Characters:
    """An engine whose tokens are characters, with two more for each turn; it answers nothing."""

    context_length: int = 100_000
    name: str = "characters"
    fingerprint: str = "characters"
    takes_tools: bool = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(len(turn.content) + 2 for turn in turns) for turns in prompts]

    def generate(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        yield from ()


def row(name: str, text: str, target: str = "t", group: str | None = None) -> Example:
    return Example(name, (Message("user", text),), target, group=group)


def ids(chosen: Sequence[Example]) -> list[str]:
    return [one.id for one in chosen]


def unit(vectors: Sequence[Sequence[float]]) -> np.ndarray:
    found = np.asarray(vectors, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def drawn_vectors(count: int, seed: int, width: int = 4) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task"))


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


def test_random_shots_are_the_same_for_all_and_drawn_from_a_seed(task: Task) -> None:
    chosen = random_shots(task.train, 5, seed=3)(task.dev)
    assert len(chosen) == len(task.dev)
    assert len({tuple(ids(shots)) for shots in chosen}) == 1
    assert len(set(ids(chosen[0]))) == 5
    assert chosen == random_shots(task.train, 5, seed=3)(task.dev)
    assert chosen != random_shots(task.train, 5, seed=4)(task.dev)
    assert len(random_shots(task.train[:3], 5, seed=3)(task.dev)[0]) == 3


def test_fewer_random_or_diverse_shots_are_a_part_of_more(task: Task, embedder: Embedder) -> None:
    for chooser in (
        lambda count: random_shots(task.train, count, 7),
        lambda count: diverse_shots(task.train, count, embedder, 7, by_label=True),
    ):
        sets = [set(ids(chooser(count)(task.dev)[0])) for count in (2, 4, 8, 16)]
        assert [len(one) for one in sets] == [2, 4, 8, 16]
        assert all(less < more for less, more in pairwise(sets))


def test_a_question_is_never_shown_to_itself_nor_to_its_twin(task: Task, embedder: Embedder) -> None:
    twin = replace(task.train[0], id="twin")
    train = (*task.train, twin)
    choosers = {
        "random": random_shots(train, 12, 0),
        "diverse": diverse_shots(train, 12, embedder, 0, by_label=True),
        "nearest": nearest_shots(train, 12, embedder),
    }
    for name, chooser in choosers.items():
        for example, shown in zip(train, chooser(train), strict=True):
            assert example.messages not in [one.messages for one in shown], name
            # What is left out is replaced.
            assert len({one.messages for one in shown}) == len(shown) == 12, name


def test_a_training_row_is_not_shown_its_group_and_a_question_from_outside_is(embedder: Embedder) -> None:
    train = [row("a", "red one", group="g"), row("b", "red two", group="g"), row("c", "green"), row("d", "blue", group="h")]
    outside = row("z", "red three", group="g")
    for chooser in (
        random_shots(train, 4, 0),
        diverse_shots(train, 4, embedder, 0),
        nearest_shots(train, 4, embedder),
    ):
        seen = [set(ids(shown)) for shown in chooser([*train, outside])]
        assert seen == [{"c", "d"}, {"c", "d"}, {"a", "b", "d"}, {"a", "b", "c"}, {"a", "b", "c", "d"}]


def test_equal_rows_are_shown_once_and_the_same_question_with_another_answer_too(embedder: Embedder) -> None:
    train = [row(str(at), "same") for at in range(6)] + [row("other", "same", "u"), row("end", "far away")]
    assert ids(pool_of(train).rows) == ["0", "other", "end"]
    assert sorted(ids(nearest_shots(train, 3, embedder)([row("q", "sane")])[0])) == ["0", "end", "other"]


def test_nearest_shots_put_the_nearest_last(task: Task, embedder: Embedder) -> None:
    chosen = nearest_shots(task.train, 4, embedder)(task.dev)
    pool = embedder.encode([one.text for one in task.train])
    for example, shots in zip(task.dev, chosen, strict=True):
        likeness = pool @ embedder.encode([example.text])[0]
        place = {one.id: at for at, one in enumerate(task.train)}
        shown = [float(likeness[place[one.id]]) for one in shots]
        assert shown == sorted(shown)
        np.testing.assert_allclose(shown[::-1], np.sort(likeness)[::-1][:4], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(0, 9), st.integers(1, 14), st.integers(1, 60))
def test_nearest_is_the_head_of_the_full_order(seed: int, count: int, rows: int, held: int) -> None:
    """Against a plain sort; small whole coordinates make ties, which go to the row that comes first."""
    drawn = np.random.default_rng(seed)
    pool = drawn.integers(-1, 2, size=(rows, 2)).astype(np.float32)
    questions = drawn.integers(-1, 2, size=(5, 2)).astype(np.float32)
    barred = [set(drawn.integers(0, rows, size=drawn.integers(0, 4)).tolist()) for _ in questions]
    expected = [
        sorted((at for at in range(rows) if at not in out), key=lambda at: (-float(question @ pool[at]), at))[:count]
        for question, out in zip(questions, barred, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LIKENESSES", held)
        assert nearest(questions, pool, barred, count) == expected


def plain_spread(vectors: np.ndarray, count: int) -> list[int]:
    """Greedy facility location, written out."""
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        values = {
            at: round(sum(max(float(vectors[i] @ vectors[j]) for j in (*chosen, at)) for i in range(len(vectors))), 4)
            for at in range(len(vectors))
            if at not in chosen
        }
        chosen.append(max(values, key=lambda at: values[at]))
    return chosen


def coverage(vectors: np.ndarray, chosen: Sequence[int]) -> float:
    return float((vectors @ vectors[list(chosen)].T).max(axis=1).sum())


@pytest.mark.parametrize("seed", range(8))
def test_spread_is_greedy_facility_location_and_near_the_best_choice(seed: int) -> None:
    vectors = drawn_vectors(11, seed)
    chosen = spread(vectors, [""] * 11, 4)
    assert chosen == plain_spread(vectors, 4)
    # Nemhauser's bound, for the sum that counts from -1, the least cosine.
    best = max(coverage(vectors, some) for some in combinations(range(11), 4))
    assert coverage(vectors, chosen) + 11 >= (1 - 1 / math.e) * (best + 11)
    assert sorted(spread(vectors, [""] * 11, 50)) == list(range(11))


def test_spread_takes_one_of_each_cluster_before_a_second_of_any() -> None:
    drawn = np.random.default_rng(0)
    centres = np.eye(5)
    sizes = [40, 20, 10, 5, 3]
    cluster = np.repeat(np.arange(5), sizes)
    vectors = unit(centres[cluster] + 0.05 * drawn.normal(size=(len(cluster), 5)))
    chosen = [int(cluster[at]) for at in spread(vectors, [""] * len(vectors), 5)]
    # The largest first: it stands for most rows.
    assert chosen == [0, 1, 2, 3, 4]


def test_by_label_no_target_comes_again_before_all_have_come() -> None:
    targets = ["common"] * 50 + ["some"] * 8 + ["rare"]
    chosen = [targets[at] for at in spread(drawn_vectors(len(targets), 1), targets, 8)]
    assert sorted(chosen[:3]) == ["common", "rare", "some"]
    assert Counter(chosen[:5]) == {"common": 2, "some": 2, "rare": 1}
    assert Counter(chosen) == {"common": 4, "some": 3, "rare": 1} or Counter(chosen) == {"common": 3, "some": 4, "rare": 1}


def test_diverse_shots_cover_the_labels_and_end_with_the_most_typical_row(task: Task, embedder: Embedder) -> None:
    chosen = diverse_shots(task.train, 4, embedder, 0, by_label=True)(task.dev)
    assert len({tuple(ids(shots)) for shots in chosen}) == 1
    assert {one.target for one in chosen[0]} == {"red", "blue", "green", "pink"}
    vectors = embedder.encode([one.text for one in task.train])
    assert chosen[0][-1] == task.train[int(np.argmax((vectors @ vectors.T).sum(axis=1)))]
    first = diverse_shots(task.train, 1, embedder, 0)(task.dev)
    assert ids(first[0]) == [chosen[0][-1].id]


def test_more_rows_than_are_compared_are_drawn_by_label_and_seed(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPREAD", 12)
    train = [row(f"c{at}", f"common {at}", "common") for at in range(60)] + [row("r", "rare one", "rare")]
    question = [row("q", "anything")]
    shown = diverse_shots(train, 2, embedder, 0, by_label=True)(question)[0]
    assert {one.target for one in shown} == {"common", "rare"}
    draws = {tuple(ids(diverse_shots(train, 4, embedder, seed)(question)[0])) for seed in range(6)}
    assert len(draws) > 1
    assert diverse_shots(train, 4, embedder, 2)(question) == diverse_shots(train, 4, embedder, 2)(question)


def test_the_arms_ask_every_question_with_its_instruction_and_shots(task: Task, embedder: Embedder) -> None:
    arms = few_shot_arms(task, Characters(), embedder, ignore)
    assert [one.name for one in arms] == [
        f"few_shot_{how}_{count}" for count in (2, 4, 8, 16) for how in ("random", "diverse", "nearest")
    ]
    assert len({str(arm.settings) for arm in arms}) == len(arms)
    for arm in arms:
        count = int(arm.name.rsplit("_", 1)[1])
        asked = arm.requests(task.dev)
        assert ids(task.dev) == [one.id for one in asked]
        for request, example in zip(asked, task.dev, strict=True):
            assert [one.role for one in request.messages] == ["system", *["user", "assistant"] * count, "user"]
            assert request.messages[0].content == "Name the colour."
            assert request.messages[-1].content == example.text
            # The right answer of a test question stands nowhere but in other rows' answers.
            assert example.text not in "".join(one.content for one in request.messages[:-1])


def test_a_count_is_offered_where_a_typical_prompt_fits_and_said_where_not(task: Task, embedder: Embedder) -> None:
    question, shot = typical_tokens(task, Characters(), PromptFormat("Name the colour."))
    turns = [len(one.text) + 2 for one in task.train]
    assert question == pytest.approx(len("Name the colour.") + 2 + sum(turns) / 24)
    assert shot == pytest.approx((sum(turns) + sum(len(one.target) + 2 for one in task.train)) / 24)
    needed = math.ceil(question + 8 * shot + 24)
    for context, counts in ((needed, {2, 4, 8}), (needed - 1, {2, 4}), (30, set())):
        told: list[Event] = []
        arms = few_shot_arms(task, Characters(context), embedder, told.append)
        assert {int(one.name.rsplit("_", 1)[1]) for one in arms} == counts
        (note,) = [one for one in told if isinstance(one, Note)]
        assert "32 (train has 24 different rows)" in note.text
        assert ("8 (about" in note.text) == (8 not in counts)
        assert f"the context has {context}" in note.text


def test_all_turns_of_a_conversation_take_room(task: Task, embedder: Embedder) -> None:
    history = (Message("user", "x" * 500), Message("assistant", "y" * 500))
    long = task.with_split("train", [replace(one, messages=(*history, *one.messages)) for one in task.train])
    assert len(few_shot_arms(task, Characters(3000), embedder, ignore)) == 12
    assert few_shot_arms(long, Characters(3000), embedder, ignore) == []


def test_settings_follow_the_pool_and_the_seed(task: Task, embedder: Embedder) -> None:
    other = task.with_split("train", task.train[1:])
    seeded = replace(task, spec=task.spec.model_copy(update={"seed": 5}))
    keys = [
        {arm.name: str(arm.settings) for arm in few_shot_arms(one, Characters(), embedder, ignore)}
        for one in (task, other, seeded)
    ]
    assert len({one["few_shot_random_8"] for one in keys}) == 3
    assert len({one["few_shot_diverse_8"] for one in keys}) == 3
    assert len({one["few_shot_nearest_8"] for one in keys}) == 2
