"""Dense search is exact when small; when large, what it misses is measured, kept within a bound, and said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baselines.rag import dense as dense_module
from baselines.rag import inverted as inverted_module
from baselines.rag.chunks import Chunking
from baselines.rag.dense import Dense
from baselines.rag.index import Index, open_index
from baselines.rag.inverted import lists_for, nearest, pieces
from baselines.rag.retriever import Found
from evals.events import ignore
from evals.records import file_hash
from evals.task.reading.documents import Document
from tests.baselines.rag_words import Notes, WordsEmbedder, state

CHUNKING = Chunking("tokens", 12)
SUBJECTS = 60
QUESTIONS = [f"subject{at} word{at % 7} word{at % 5}" for at in range(40)]


def corpus(documents: int, first: int = 0) -> list[Document]:
    """Documents about one subject each: their vectors lie in clusters, as those of real text do."""
    found = []
    for number in range(first, first + documents):
        random = np.random.default_rng(number)
        body = " ".join(f"subject{number % SUBJECTS} {one}" for one in random.choice([f"word{at}" for at in range(400)], 120))
        found.append(Document(f"d{number}", body))
    return found


CORPUS = corpus(60)


def index_of(folder: Path, documents: Sequence[Document] = CORPUS) -> Index:
    return open_index(folder, documents, CHUNKING, WordsEmbedder())


def by_hand(index: Index, question: str, count: int) -> list[int]:
    """Exact cosines in double precision, equals in order of their rows."""
    vector = index.embedder.encode([question])[0].astype(np.float64)
    scores = np.round(np.asarray(index.vectors, dtype=np.float64) @ vector, 6)
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count]


def rows_of(index: Index, found: Sequence[Found]) -> list[int]:
    places = {(chunk.document, chunk.position): row for row, chunk in enumerate(index.chunks)}
    return [places[one.chunk.document, one.chunk.position] for one in found]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred chunks are many."""
    monkeypatch.setattr(dense_module, "EXACT_UP_TO", 100)


@pytest.mark.parametrize("together", [1, 3, 64])
def test_a_small_index_is_searched_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(dense_module, "QUESTIONS_AT_ONCE", together)
    index = index_of(tmp_path)
    dense = Dense(index)
    for question, found in zip(QUESTIONS, dense.search(QUESTIONS, 10), strict=True):
        assert rows_of(index, found) == by_hand(index, question, 10)
        vector = index.embedder.encode([question])[0]
        assert [one.score for one in found] == pytest.approx(
            [float(index.vectors[row] @ vector) for row in rows_of(index, found)]
        )
    assert dense.settings == {"retriever": "dense", "index": index.hash, "kind": "exact"}
    assert not list(tmp_path.glob("dense*"))


def test_a_question_finds_the_same_whatever_it_is_asked_with(tmp_path: Path) -> None:
    dense = Dense(index_of(tmp_path))
    assert dense.search(QUESTIONS, 7) == [dense.search([one], 7)[0] for one in QUESTIONS]
    assert dense.search(QUESTIONS[::-1], 7) == dense.search(QUESTIONS, 7)[::-1]


@pytest.mark.parametrize("exact", [True, False])
def test_equals_come_in_the_order_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    monkeypatch.setattr(dense_module, "EXACT_UP_TO", 10**6 if exact else 10)
    text = "# The same\n\nsubject1 the very same words in each of them"
    same = [Document(f"same{at}", text) for at in range(9)]
    index = index_of(tmp_path, [*CORPUS[:20], *same, *CORPUS[20:]])
    for count in (1, 3, 8):
        found = Dense(index).search(["the very same words in each of them subject1"], count)[0]
        assert [one.chunk.document for one in found] == [f"same{at}" for at in range(count)]
        assert len({one.score for one in found}) == 1


def test_more_than_there_is_and_nothing_at_all(tmp_path: Path) -> None:
    index = index_of(tmp_path, CORPUS[:2])
    dense = Dense(index)
    found = dense.search(QUESTIONS[:2], 10**6)
    assert [len(some) for some in found] == [len(index.chunks)] * 2
    assert len(set(rows_of(index, found[0]))) == len(index.chunks)
    assert dense.search([], 3) == []
    assert dense.search(QUESTIONS[:2], 0) == [[], []]
    assert dense.search(["", "\x1b[31m 見 🙂"], 1)[1][0].chunk in index.chunks


def test_a_question_longer_than_the_window_is_said_once_a_call(tmp_path: Path) -> None:
    notes = Notes()
    dense = Dense(index_of(tmp_path), notes)
    whole, cut = " ".join(["word1"] * 62), " ".join(["word2"] * 63)
    assert [len(some) for some in dense.search([cut, "short", whole, cut + " more"], 2)] == [2, 2, 2, 2]
    expected = "2 of 4 questions are longer than the 64 tokens that words reads: passages are searched for by the beginning."
    assert notes.warnings == [expected]
    dense.search([whole, "short"], 2)
    assert notes.warnings == [expected]
    dense.search([cut], 2)
    assert notes.warnings[1].startswith("1 of 1 questions is longer")


def recalls(index: Index, questions: Sequence[str], found: Sequence[Sequence[Found]]) -> list[float]:
    """For each question the share of the ten exact ones that were found."""
    places = {(chunk.document, chunk.position): row for row, chunk in enumerate(index.chunks)}
    hits = [{places[one.chunk.document, one.chunk.position] for one in some} for some in found]
    return [len(some & set(by_hand(index, one, 10))) / 10 for one, some in zip(questions, hits, strict=True)]


@pytest.mark.usefixtures("large")
def test_a_large_index_finds_nearly_what_exact_search_finds_and_says_how_nearly(tmp_path: Path) -> None:
    notes = Notes()
    index = index_of(tmp_path, corpus(200))
    dense = Dense(index, notes)
    asked = pieces(index)
    settings = dense.settings
    assert settings["kind"] == "ivf_sq8"
    assert settings["nlist"] == lists_for(len(index.chunks)) == 128
    assert settings["nprobe"] < settings["nlist"] / 2
    record = json.loads((tmp_path / "dense.json").read_text())
    held_out = asked[len(asked) // 2 :]
    found = dense.search(held_out, 10)
    assert np.mean(recalls(index, held_out, found)) == pytest.approx(record["recall"], abs=0.02)
    assert record["recall"] > 0.92
    assert f"reads {settings['nprobe']} of 128 lists" in notes.info[-1]
    assert f"{record['recall']:.3f}" in notes.info[-1]
    # Scores are cosines, and not what the bytes in the lists make of them.
    for one, some in zip(held_out[:20], found[:20], strict=True):
        vector = index.embedder.encode([one])[0]
        exact = [float(index.vectors[row] @ vector) for row in rows_of(index, some)]
        assert [hit.score for hit in some] == pytest.approx(exact, abs=1e-6)
        assert exact == sorted(exact, reverse=True)


@pytest.mark.usefixtures("large")
def test_only_lists_that_are_not_read_can_hide_a_passage(tmp_path: Path) -> None:
    """With all lists read the search is exact: enough candidates are compared to make up for the rounding to a byte."""
    index = index_of(tmp_path, corpus(120))
    dense = Dense(index)
    dense.search(QUESTIONS[:1], 1)
    dense._inverted._faiss.nprobe = lists_for(len(index.chunks))  # type: ignore[union-attr]
    for question, found in zip(QUESTIONS, dense.search(QUESTIONS, 10), strict=True):
        assert rows_of(index, found) == by_hand(index, question, 10)


@pytest.mark.usefixtures("large")
def test_no_fewer_lists_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice by an independent count: one rung below it, the sample's lower bound misses the target."""
    index = index_of(tmp_path, corpus(200))
    dense = Dense(index)
    chosen = dense.settings["nprobe"]
    assert chosen > 1
    asked = pieces(index)[: inverted_module.PIECES]

    def lower_bound(nprobe: int) -> float:
        dense._inverted._faiss.nprobe = nprobe  # type: ignore[union-attr]
        each = recalls(index, asked, dense.search(asked, 10))
        return float(np.mean(each) - 2 * np.std(each) / np.sqrt(len(each)))

    rungs = list(inverted_module._ladder(128))
    assert rungs[:6] == [1, 2, 3, 4, 6, 8]
    assert rungs[-1] == 128
    assert lower_bound(chosen) >= 0.95 - 0.01
    assert lower_bound(rungs[rungs.index(chosen) - 1]) < 0.95 + 0.01


@pytest.mark.usefixtures("large")
def test_the_same_index_is_built_twice_over(tmp_path: Path) -> None:
    one, other = Dense(index_of(tmp_path / "a")), Dense(index_of(tmp_path / "b"))
    assert one.settings == other.settings
    assert one.search(QUESTIONS, 10) == other.search(QUESTIONS, 10)


@pytest.mark.usefixtures("large")
def test_what_is_built_is_opened_again_without_writing(tmp_path: Path) -> None:
    first = Dense(index_of(tmp_path))
    settings = first.settings
    before = state(tmp_path)
    again = Dense(index_of(tmp_path))
    assert again.settings == settings
    assert state(tmp_path) == before
    assert again.search(QUESTIONS, 5) == first.search(QUESTIONS, 5)


def centroids(folder: Path) -> NDArray[np.float32]:
    import faiss

    (path,) = folder.glob("dense-*.faiss")
    index: Any = faiss.read_index(str(path))
    found: NDArray[np.float32] = index.quantizer.reconstruct_n(0, index.nlist)
    return found


@pytest.mark.usefixtures("large")
def test_an_update_keeps_the_centroids_until_there_is_twice_as_much(tmp_path: Path) -> None:
    _ = Dense(index_of(tmp_path)).settings
    before = centroids(tmp_path)
    notes = Notes()
    index = index_of(tmp_path, [*CORPUS[7:], *corpus(10, 100)])
    dense = Dense(index, notes)
    asked = pieces(index)[:200]
    assert np.mean(recalls(index, asked, dense.search(asked, 10))) > 0.92
    assert not any(text.startswith("Training") for text in notes.info)
    np.testing.assert_array_equal(centroids(tmp_path), before)
    # A row of before is in its list, a new one in that of its nearest centroid: the same list, since vectors stay.
    import faiss

    (path,) = tmp_path.glob("dense-*.lists")
    lists = np.fromfile(path, dtype="<i4")
    np.testing.assert_array_equal(lists, (np.asarray(index.vectors) @ before.T).argmax(axis=1))
    stored: Any = faiss.read_index(str(path.with_suffix(".faiss")))
    assert stored.ntotal == len(index.chunks)
    notes = Notes()
    _ = Dense(index_of(tmp_path, corpus(130)), notes).settings
    assert notes.info[0].startswith("Training")
    assert len(list(tmp_path.glob("dense-*"))) == 3


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda folder: flip(next(folder.glob("dense-*.faiss")), 1000),
        lambda folder: next(folder.glob("dense-*.faiss")).unlink(),
        lambda folder: next(folder.glob("dense-*.lists")).write_bytes(b""),
        lambda folder: (folder / "dense.json").write_text("{"),
        lambda folder: (folder / "dense.json").unlink(),
        lambda folder: rewrite(folder / "dense.json", schema_version=2),
        lambda folder: rewrite(folder / "dense.json", stem="../../elsewhere"),
        lambda folder: rewrite(folder / "dense.json", nprobe=10**6),
        lambda folder: rewrite(folder / "dense.json", sha256={}),
    ],
)
def test_only_the_file_that_we_wrote_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Path], object]
) -> None:
    """FAISS parses files in C++: it is given none but the one whose hash is on record."""
    import faiss

    first = Dense(index_of(tmp_path))
    expected = first.search(QUESTIONS, 5)
    good = first.settings["faiss"]
    wrong(tmp_path)
    read = faiss.read_index
    given: list[str] = []

    def watched(path: str, *flags: int) -> Any:
        given.append(file_hash(Path(path)))
        return read(path, *flags)

    monkeypatch.setattr(faiss, "read_index", watched)
    again = Dense(index_of(tmp_path))
    assert again.search(QUESTIONS, 5) == expected
    assert given == [good]


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_exact_search_in_blocks_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_module, "COMPARED_AT_ONCE", 7)
    random = np.random.default_rng(3)
    vectors, questions = (random.standard_normal((count, 5)).astype(np.float32) for count in (45, 6))
    rows, least = nearest(vectors, questions, 10, ignore)
    scores = questions @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-scores, axis=1)[:, :10])
    np.testing.assert_allclose(least, -np.sort(-scores, axis=1)[:, 9], rtol=1e-6)
