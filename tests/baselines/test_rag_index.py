"""An index holds exactly its documents, however it came to that; what was embedded is never lost and never wrong."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rag import embedded as embedded_module
from baselines.rag import index as index_module
from baselines.rag import sealed
from baselines.rag.chunk_store import passage_key
from baselines.rag.chunks import Chunking
from baselines.rag.dense import Dense
from baselines.rag.embedded import Embedded
from baselines.rag.index import Index, alone, open_index
from evals.engines.embed import Embedder
from evals.errors import AdvisorError
from evals.events import ignore
from evals.task.reading.documents import Document
from tests.baselines.rag_words import WIDTH, Notes, WordsEmbedder, state

CHUNKING = Chunking("tokens", 8)
FILES = ("chunks.jsonl", "offsets", "keys", "documents.jsonl", "vectors")


def document(name: str, number: int, words: int = 30) -> Document:
    """A title of its own, and words in an order of its own."""
    random = np.random.default_rng(number)
    body = " ".join(random.choice(["tide", "rope", "quay", "ship", "06:40", "søndag"], words))
    return Document(name, f"# Part {number}\n\nAbout {number}: {body}.")


DOCUMENTS = [document(f"d{at}", at) for at in range(12)]


def opened(
    folder: Path, documents: Sequence[Document] = DOCUMENTS, embedder: Embedder | None = None
) -> tuple[Index, list[str], Notes]:
    """The index, the passages that were embedded for it, and what was said."""
    notes, words = Notes(), WordsEmbedder()
    index = open_index(folder, iter(documents), CHUNKING, embedder or words, notes)
    return index, words.asked, notes


def contents(index: Index) -> dict[str, bytes]:
    return {name: (index.folder / index.manifest.version / name).read_bytes() for name in FILES}


def passages(documents: Sequence[Document]) -> list[str]:
    return [chunk.passage for one in documents for chunk in CHUNKING.split(one, WordsEmbedder())]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents are many blocks."""
    monkeypatch.setattr(index_module, "EMBEDDED_AT_ONCE", 7)
    monkeypatch.setattr(index_module, "COPIED_AT_ONCE", 5)
    monkeypatch.setattr(sealed, "BLOCK", 100)
    # No test cuts the power, and the disk may be slow.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_every_chunk_is_there_with_its_own_vector(tmp_path: Path) -> None:
    index, embedded, _ = opened(tmp_path / "index")
    expected = [chunk for one in DOCUMENTS for chunk in CHUNKING.split(one, WordsEmbedder())]
    assert len(expected) > 36
    assert list(index.chunks) == expected
    assert index.chunks[-1] == expected[-1]
    assert index.chunks[3:5] == expected[3:5]
    assert index.vectors.shape == (len(expected), WIDTH)
    assert index.vectors.dtype == np.float32
    for chunk, vector in zip(expected, index.vectors, strict=True):
        np.testing.assert_array_equal(vector, WordsEmbedder().embed([chunk.passage])[0])
    assert sorted(embedded) == sorted({chunk.passage for chunk in expected})
    assert isinstance(index.vectors, np.memmap)
    with pytest.raises(IndexError):
        index.chunks[len(expected)]


def test_where_nothing_has_changed_nothing_is_written(tmp_path: Path) -> None:
    first, _, _ = opened(tmp_path)
    before = state(tmp_path)
    again, embedded, notes = opened(tmp_path)
    assert state(tmp_path) == before
    assert embedded == []
    assert (notes.info, notes.warnings) == ([], [])
    assert again.hash == first.hash


some_documents = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=7, unique_by=lambda one: one[0]).map(
    lambda some: [document(f"d{name}", number) for name, number in some]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(some_documents, min_size=2, max_size=4))
def test_brought_up_to_date_is_the_same_as_built_anew(versions: list[list[Document]]) -> None:
    with TemporaryDirectory() as folder:
        known: set[str] = set()
        for number, documents in enumerate(versions):
            index, embedded, _ = opened(Path(folder) / "kept", documents)
            fresh, _, _ = opened(Path(folder) / f"fresh{number}", documents)
            assert contents(index) == contents(fresh)
            assert index.hash == fresh.hash
            now = set(passages(documents))
            assert sorted(embedded) == sorted(now - known)
            known = now


def test_the_hash_tells_documents_chunkings_and_models_apart(tmp_path: Path) -> None:
    other = WordsEmbedder()
    other.fingerprint = "1" * 64
    hashes = [
        opened(tmp_path / "a")[0].hash,
        opened(tmp_path / "b", DOCUMENTS[1:])[0].hash,
        opened(tmp_path / "c", DOCUMENTS[::-1])[0].hash,
        open_index(tmp_path / "d", DOCUMENTS, Chunking("tokens", 9), WordsEmbedder()).hash,
        open_index(tmp_path / "e", DOCUMENTS, CHUNKING, other).hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert opened(tmp_path / "f")[0].hash == hashes[0]


def test_what_was_done_is_said(tmp_path: Path) -> None:
    opened(tmp_path)
    changed = [*DOCUMENTS[1:5], document("d5", 99), *DOCUMENTS[6:], Document("copy", DOCUMENTS[3].text)]
    index, embedded, notes = opened(tmp_path, changed)
    kept = len(passages([*DOCUMENTS[1:5], *DOCUMENTS[6:], DOCUMENTS[3]]))
    gone = len(set(passages(DOCUMENTS)) - set(passages(changed)))
    assert len(embedded) == len(passages([document("d5", 99)]))
    words = f"Index of {len(index.chunks)} passages of 12 documents (tokens_8): {kept} kept, {len(embedded)} embedded, {gone} removed."
    assert notes.info == [words]


def test_equal_passages_are_embedded_once_wherever_they_stand(tmp_path: Path) -> None:
    three = [Document(name, DOCUMENTS[0].text) for name in ("a", "b", "c")]
    index, embedded, notes = opened(tmp_path, three)
    once = passages(three[:1])
    assert embedded == once
    assert f"{2 * len(once)} equal to others" in notes.info[0]
    np.testing.assert_array_equal(index.vectors[: len(once)], index.vectors[len(once) : 2 * len(once)])


def test_a_document_that_moved_costs_no_embedding(tmp_path: Path) -> None:
    opened(tmp_path)
    renamed = [Document(f"new/{one.id}", one.text) for one in DOCUMENTS]
    for moved in (renamed, renamed[::-1]):
        index, embedded, _ = opened(tmp_path, moved)
        assert embedded == []
        assert list(dict.fromkeys(chunk.document for chunk in index.chunks)) == [one.id for one in moved]


def killed_at(step: int, folder: Path, documents: Sequence[Document]) -> bool:
    """Open the index in a process that is killed before its `step`-th write that lasts; whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **named):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return function(*arguments, **named)

        return call

    try:
        os.fsync, os.replace, os.truncate = counted(os.fsync), counted(os.replace), counted(os.truncate)
        embedded_module._append = counted(embedded_module._append)
        open_index(folder, documents, CHUNKING, WordsEmbedder())
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """First while the index is built, then while it is brought up to date."""
    first = DOCUMENTS[:4]
    later = [*first[:2], *(document(f"n{at}", 50 + at) for at in range(3)), first[3]]
    fresh = {tuple(some): opened(tmp_path / name, some)[0] for name, some in (("a", first), ("b", later))}
    for documents, before in ((first, []), (later, first)):
        kills = 0
        for step in range(1, 200):
            folder = tmp_path / f"{len(before)}-{step}"
            if before:
                opened(folder, before)
            if not killed_at(step, folder, documents):
                break
            kills += 1
            manifest, log = folder / "manifest.json", folder / "embedded" / "log.jsonl"
            switched = manifest.is_file() and json.loads(manifest.read_text())["documents"] == len(documents)
            lines = log.read_text().splitlines()[1:] if log.is_file() else []
            missing = set(passages(documents)) - set(passages(before))
            expected = 0 if switched else len(missing) - (json.loads(lines[-1])["rows"] if lines else 0)
            index, embedded, _ = opened(folder, documents)
            assert contents(index) == contents(fresh[tuple(documents)])
            assert len(embedded) == expected
            # And nothing is left over.
            names = {path.name for path in folder.iterdir() if not path.name.startswith(".manifest")}
            assert names == {"manifest.json", ".lock", index.manifest.version}
        assert kills > 10


def test_a_build_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stops(WordsEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]
            if len(self.asked) >= 21:
                raise KeyboardInterrupt
            return super().embed(texts)

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, embedder=Stops())
    _, embedded, notes = opened(tmp_path)
    assert len(embedded) == len(set(passages(DOCUMENTS))) - 21
    assert notes.info[0] == "Going on where an earlier build stopped: 21 passages are embedded already."
    assert "21 embedded earlier" in notes.info[1]


@pytest.mark.parametrize(
    ("damage", "rows"),
    [
        (lambda log, keys, vectors: os.truncate(vectors, vectors.stat().st_size - 3), 7),
        (lambda log, keys, vectors: os.truncate(keys, 100), 0),
        (lambda log, keys, vectors: os.truncate(log, log.stat().st_size - 3), 7),
        (lambda log, keys, vectors: log.write_bytes(log.read_bytes() + b'{"rows": 21, "cr'), 14),
        (lambda log, keys, vectors: log.write_bytes(log.read_bytes() + b'{"rows": 10000000000000, "crc32": 1}\n'), 14),
        (lambda log, keys, vectors: flip(vectors, 5), 0),
        (lambda log, keys, vectors: flip(keys, -1), 7),
        (lambda log, keys, vectors: flip(log, 3), 0),
        (lambda log, keys, vectors: vectors.unlink(), 0),
    ],
)
def test_of_what_was_embedded_only_whole_blocks_count(tmp_path: Path, damage, rows: int) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    keys = np.array([passage_key(str(at)) for at in range(14)], dtype="S16")
    vectors = random.standard_normal((14, 3)).astype(np.float32)
    first = Embedded(tmp_path, "model", 3)
    first.append(keys[:7], vectors[:7])
    first.append(keys[7:], vectors[7:])
    damage(*(tmp_path / name for name in ("log.jsonl", "keys", "vectors")))
    again = Embedded(tmp_path, "model", 3)
    assert again.rows == rows
    # And goes on after the last whole block.
    again.append(keys[rows:], vectors[rows:])
    last = Embedded(tmp_path, "model", 3)
    np.testing.assert_array_equal(last.keys(), keys)
    np.testing.assert_array_equal(last.vectors(), vectors)
    assert Embedded(tmp_path, "another model", 3).rows == 0


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("name", "wrong", "again"),
    [
        ("vectors", lambda path: os.truncate(path, path.stat().st_size // 2), "half"),
        ("vectors", lambda path: flip(path, 0), "block"),
        ("vectors", lambda path: path.unlink(), "all"),
        ("keys", lambda path: path.unlink(), "all"),
        ("keys", lambda path: path.write_bytes(path.read_bytes() + b"x"), "none"),
        ("offsets", lambda path: flip(path, 9), "none"),
        ("chunks.jsonl", lambda path: os.truncate(path, 500), "none"),
        ("chunks.jsonl", lambda path: flip(path, 20), "none"),
        ("documents.jsonl", lambda path: path.unlink(), "none"),
    ],
)
def test_a_damaged_file_is_said_and_mended_from_what_is_whole(tmp_path: Path, name: str, wrong, again: str) -> None:  # type: ignore[no-untyped-def]
    index, embedded, _ = opened(tmp_path / "index")
    fresh, count = contents(index), len(index.chunks)
    distinct = len(embedded)
    assert distinct == count
    wrong(tmp_path / "index" / index.manifest.version / name)
    mended, embedded, notes = opened(tmp_path / "index")
    assert contents(mended) == fresh
    assert "is damaged" in notes.warnings[0]
    assert name in notes.warnings[0]
    # A row of 64 bytes lies in the blocks of 100 that hold any of it.
    half = count - (count * 64 // 2 // 100 * 100) // 64
    assert len(embedded) == {"none": 0, "all": count, "block": 2, "half": half}[again]
    assert f"{count - len(embedded)} of {count} vectors are whole" in notes.warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 2}',
        '{"schema_version": 1}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_torn_foreign_or_newer_is_an_error(tmp_path: Path, body: str) -> None:
    opened(tmp_path)
    (tmp_path / "manifest.json").write_text(body)
    before = state(tmp_path)
    with pytest.raises(AdvisorError, match="delete the folder of the index"):
        opened(tmp_path)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "../elsewhere"),
        ("version", 3),
        ("chunks", 10**9),
        ("dimension", 0),
        ("dimension", "many"),
        ("files", {}),
        ("files", []),
        ("chunking", 1),
    ],
)
def test_a_manifest_that_contradicts_itself_is_an_error(tmp_path: Path, key: str, value: object) -> None:
    opened(tmp_path)
    record = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(AdvisorError, match="damaged"):
        opened(tmp_path)


def test_an_index_of_another_model_or_chunking_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    before = state(tmp_path)
    other = WordsEmbedder("other")
    other.fingerprint = "1" * 64
    with pytest.raises(AdvisorError, match=r"another embedding model \(words\) than other"):
        open_index(tmp_path, DOCUMENTS, CHUNKING, other)
    with pytest.raises(AdvisorError, match="another chunking"):
        open_index(tmp_path, DOCUMENTS, Chunking("tokens", 9), WordsEmbedder())
    retrained = WordsEmbedder()
    retrained.fingerprint = "1" * 64
    with pytest.raises(AdvisorError, match="other weights of the embedding model words"):
        open_index(tmp_path, DOCUMENTS, CHUNKING, retrained)
    assert state(tmp_path) == before


@pytest.mark.parametrize("documents", [[], [Document("empty", ""), Document("blank", " \n\n")]])
def test_an_index_of_nothing_finds_nothing(tmp_path: Path, documents: list[Document]) -> None:
    for _ in range(2):
        index, embedded, _ = opened(tmp_path, documents)
        assert (len(index.chunks), index.vectors.shape[0], embedded) == (0, 0, [])
        assert Dense(index).search(["Where?", "Who?"], 3) == [[], []]
    filled, _, _ = opened(tmp_path)
    assert len(filled.chunks) == len(passages(DOCUMENTS))
    assert len(opened(tmp_path, documents)[0].chunks) == 0


def test_vectors_that_are_no_vectors_are_an_error(tmp_path: Path) -> None:
    class Broken(WordsEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]
            return np.full((len(texts), WIDTH), np.nan, dtype=np.float32)

    with pytest.raises(AdvisorError, match="not finite"):
        opened(tmp_path, embedder=Broken())
    _, embedded, _ = opened(tmp_path)
    assert len(embedded) == len(set(passages(DOCUMENTS)))


def test_neighbours_are_those_of_the_same_document(tmp_path: Path) -> None:
    index, _, _ = opened(tmp_path)
    at = next(row for row, chunk in enumerate(index.chunks) if chunk.document == "d3")
    first, second, third = index.chunks[at : at + 3]
    wide = index.around(second, 1)
    text = DOCUMENTS[3].text
    assert (wide.document, wide.start, wide.end) == ("d3", first.start, third.end)
    assert wide.text == text[first.start : third.end]
    assert index.around(first, 1).end == second.end
    assert index.around(first, 1).start == first.start
    last = [chunk for chunk in index.chunks if chunk.document == "d11"][-1]
    assert index.around(last, 100).end == last.end
    assert index.around(second, 0) == second
    with pytest.raises(KeyError):
        index.around(CHUNKING.split(document("unknown", 1), WordsEmbedder()).__next__(), 1)


def test_an_open_index_stays_as_it_is_while_another_process_changes_the_folder(tmp_path: Path) -> None:
    index, _, _ = opened(tmp_path)
    expected, hits = list(index.chunks), Dense(index).search(["tide rope"], 5)
    opened(tmp_path, DOCUMENTS[:2])
    assert not (tmp_path / index.manifest.version).exists()
    assert list(index.chunks) == expected
    assert Dense(index).search(["tide rope"], 5) == hits
    assert index.around(expected[1], 1).document == "d0"


def test_one_process_waits_for_the_other(tmp_path: Path) -> None:
    notes = Notes()
    thread = threading.Thread(target=open_index, args=(tmp_path, DOCUMENTS, CHUNKING, WordsEmbedder(), notes))
    with alone(tmp_path, ignore):
        thread.start()
        for _ in range(500):
            if notes.info:
                break
            thread.join(0.01)
        assert notes.info[0].startswith("Another process is at work on the index")
        assert not (tmp_path / "manifest.json").exists()
    thread.join()
    assert (tmp_path / "manifest.json").exists()


def test_a_full_disk_is_an_error_that_keeps_what_was_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "write_json", full)
        with pytest.raises(AdvisorError, match="No space left on device"):
            opened(tmp_path)
    _, embedded, _ = opened(tmp_path)
    assert embedded == []


def test_documents_are_read_one_after_another_and_once(tmp_path: Path) -> None:
    read: list[str] = []

    def streamed() -> Iterator[Document]:
        for one in DOCUMENTS:
            read.append(one.id)
            yield one

    open_index(tmp_path, streamed(), CHUNKING, WordsEmbedder())
    assert read == [one.id for one in DOCUMENTS]


def test_a_text_with_half_a_character_is_indexed(tmp_path: Path) -> None:
    odd = Document("odd", "# Half\n\nA \ud800 here and an escape \x1b and a break\u2028there.")
    index, embedded, _ = opened(tmp_path, [odd])
    assert index.chunks[0].text in odd.text
    assert "\ud800" in index.chunks[0].text
    assert all("\ud800" not in passage for passage in embedded)
    assert opened(tmp_path, [odd])[1] == []


def test_a_real_model_serves(tmp_path: Path, tiny_embeddings: Path) -> None:
    embedder = Embedder(str(tiny_embeddings))
    index = open_index(tmp_path, DOCUMENTS[:3], Chunking("tokens", 64), embedder)
    assert index.vectors.shape == (len(index.chunks), 32)
    exact = embedder.encode([chunk.passage for chunk in index.chunks])
    assert float((index.vectors * exact).sum(axis=1).min()) > 0.999
    again = open_index(tmp_path, DOCUMENTS[:3], Chunking("tokens", 64), Embedder(str(tiny_embeddings)))
    assert again.hash == index.hash
    notes = Notes()
    # One token a character, and no marks.
    assert [len(some) for some in Dense(index, notes).search(["x" * 256, "x \ud800"], 2)] == [2, 2]
    assert notes.warnings == []
    Dense(index, notes).search(["x" * 256, "x" * 257], 2)
    assert notes.warnings[0].startswith("1 of 2 questions is longer than the 256 tokens")
