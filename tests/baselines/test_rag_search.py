"""What retrieval is tried with, and which of it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from baselines.rag import search
from baselines.rag.chunks import Chunk, Chunking
from baselines.rag.relevance import NDCG, Retrieval
from baselines.rag.retriever import Found
from baselines.rag.search import Way, best_ways, measured_ways, rag_arms, ways
from evals.engines.embed import Embedder
from evals.events import Event, ignore
from evals.task.load import Task, load_task

MakeTask = Callable[..., Path]


class Engine:
    name = fingerprint = "counts"
    context_length = 100_000
    takes_tools = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Any]]) -> list[int]:
        return [sum(len(turn.content) for turn in turns) for turns in prompts]


@dataclass(frozen=True)
class Finds:
    name: str = "finds"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"finds": self.name}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        return [[Found(Chunk("d", "t", 0, 0, 3, "red"), 1.0)][:count] for _ in questions]


def retrieval(name: str, ranking: float, seconds: float = 0.5) -> Retrieval:
    return Retrieval(name, "", "answer", 9, {}, {NDCG: (ranking, 0.0, 1.0)}, seconds, {})


@pytest.fixture
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


@pytest.fixture
def task(make_task: MakeTask, tmp_path: Path) -> Task:
    text = "# Paints\n\nItem 24 is red. It was new.\n\n## Old\n\nItem 25 is blue. It is old and very large indeed."
    data = {**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "documents": "docs"}
    return load_task(make_task(tmp_path / "task", files={"docs/a.md": text}, data=data, output={"type": "text"}))


def test_of_each_cut_the_best_way_goes_on_and_the_best_of_them_first() -> None:
    some = [Way(Finds(name), cut) for cut in ("small", "large") for name in ("bm25", "dense", "hybrid")]
    ranked = dict(zip([one.name for one in some], [0.1, 0.5, 0.5, 0.9, 0.2, 0.1], strict=True))
    best = best_ways([(one, retrieval(one.name, ranked[one.name])) for one in some])
    assert [one.name for one in best] == ["bm25_large", "dense_small"]  # of equals the first
    assert all(one.seconds == 0.5 for one in best)


def test_a_cut_that_comes_to_the_same_chunks_is_left_out(task: Task, embedder: Embedder, tmp_path: Path) -> None:
    every = list(ways(task, embedder, None, tmp_path / "home", ignore))
    assert {one.retriever.name for one in every} >= {"bm25", "dense"}
    cuts = {one.chunking: [(c.start, c.end) for c in one.index.chunks] for one in every if one.index is not None}
    assert len(cuts) == len({tuple(one) for one in cuts.values()}) < len(search.CHUNKINGS) + 1
    again = list(ways(task, embedder, None, tmp_path / "home", ignore))
    assert [one.name for one in again] == [one.name for one in every]


def test_all_weight_on_one_part_makes_no_hybrid(
    task: Task, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = search.fitted
    monkeypatch.setattr(search, "fitted", lambda *given: replace(fit(*given), weights=(1.0, 0.0)))
    assert "hybrid" not in {one.retriever.name for one in ways(task, embedder, None, tmp_path, ignore)}


def test_each_way_is_measured_on_dev_by_its_name(task: Task) -> None:
    seen: list[Event] = []
    (found,) = measured_ways([Way(Finds(), "cut")], task, seen.append)
    assert found.name == "finds_cut"
    # Where no passage is given the answer is looked for, and two colours stand in no document.
    assert found.kind == "answer"
    assert found.n + sum(found.unmeasured.values()) == len(task.dev)
    assert found.unmeasured["the answer stands in no document"] == 4
    assert found.recall == 0.5


def test_names_of_pipelines_tell_all_and_differ(task: Task, embedder: Embedder) -> None:
    def around(chunk: Chunk, reach: int) -> Chunk:
        return chunk

    class Indexed(Way):
        around = property(lambda self: around)  # type: ignore[assignment]

    arms = rag_arms(task, Engine(), embedder, [Indexed(Finds(), "a", seconds=0.25), Way(Finds(), "b")], ignore, rewrite=True)
    names = [one.name for one in arms]
    assert len(names) == len(set(names))
    assert {"rag_finds_a_plain_10", "rag_finds_a_cited_3", "rag_finds_a_widened_1", "rag_finds_a_rewritten_3"} <= set(names)
    assert "rag_finds_b_plain_10" not in names
    assert "rag_finds_b_shots_3" in names
    assert len({str(one.settings) for one in arms if "_a_" in one.name}) == sum("_a_" in name for name in names)
    assert {one.search_seconds for one in arms} == {0.25, None}
    as_json = rag_arms(replace(task, output_type="json"), Engine(), embedder, [Way(Finds(), "a")], ignore)
    assert not any("cited" in one.name for one in as_json)


def test_a_collection_s_name_becomes_part_of_a_file_s(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    from evals.task.spec import QdrantSpec

    monkeypatch.setattr(search, "open_qdrant", lambda *_: Finds("qdrant"))
    spec = QdrantSpec(url="http://localhost:6333", collection="Our pages, all of them " + "x" * 200)
    (way,) = search.database(spec, embedder, None, ignore)
    assert way.name.startswith("qdrant_Our-pages-all-of-them-x")
    assert len(way.name) < 60


def test_the_index_of_a_task_has_one_place(task: Task, embedder: Embedder, tmp_path: Path) -> None:
    one, other = (
        search.index_folder(tmp_path, task, cut, embedder) for cut in (Chunking("sentences", 9), Chunking("tokens", 9))
    )
    assert one != other
    assert one == search.index_folder(tmp_path, task, Chunking("sentences", 9), embedder)
