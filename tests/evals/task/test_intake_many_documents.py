"""Documents that memory does not hold: they lie on disk, and are the same documents."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import ProblemsError
from evals.task.checks.quality import repeated_documents
from evals.task.load import load_task
from evals.task.reading import documents as limits
from evals.task.reading.documents import Document, Documents, Shelf, documents_hash, read_documents

# Letters of one to four bytes, and half of a surrogate pair.
texts = st.text(st.sampled_from("ab ø潮🚢\ud83d\n"), max_size=12)
some_documents = st.lists(st.builds(Document, texts, texts), max_size=8)


def shelved(documents: list[Document]) -> Documents:
    shelf = Shelf()
    for one in documents:
        shelf.put(one)
    return shelf.close()


def on_disk(documents: Documents) -> bool:
    return not isinstance(documents._held, bytes)


@settings(max_examples=150, deadline=None)
@given(some_documents, st.sampled_from([0, 10, 10**6]), st.sampled_from([0, 7]), st.integers(-9, 9), st.integers(-9, 9))
def test_they_are_the_same_wherever_they_lie(
    documents: list[Document], in_memory: int, at_once: int, start: int, end: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "IN_MEMORY", in_memory)
        patch.setattr(limits, "WRITTEN_AT_ONCE", at_once)
        found = shelved(documents)
    size = sum(len((one.id + one.text).encode("utf-8", "surrogatepass")) for one in documents)
    assert on_disk(found) == (size > in_memory)
    assert list(found) == documents
    assert (len(found), found) == (len(documents), documents)
    assert found[start:end] == documents[start:end]
    assert [found[at] for at in range(-len(documents), len(documents))] == documents * 2
    assert found != [*documents, Document("", "")]
    assert found.hash == documents_hash(documents) == documents_hash(tuple(documents))
    for at in (len(documents), -len(documents) - 1):
        with pytest.raises(IndexError):
            found[at]


@given(some_documents, some_documents)
def test_the_hash_tells_documents_apart(some: list[Document], others: list[Document]) -> None:
    assert (documents_hash(some) == documents_hash(others)) == (some == others)
    assert (shelved(some) == shelved(others)) == (some == others)


def test_a_folder_and_its_rows_give_the_same_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {f"{at:03}.md": f"# Ship {at}\n\n{'Ünï 潮 ' * at}x" for at in range(60)}
    (tmp_path / "docs").mkdir()
    for name, text in bodies.items():
        (tmp_path / "docs" / name).write_text(text)
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in bodies.items())
    (tmp_path / "docs.jsonl").write_text(rows)
    here, problems = read_documents(tmp_path / "docs")
    assert (problems, on_disk(here)) == ([], False)
    monkeypatch.setattr(limits, "IN_MEMORY", 1000)
    for path in (tmp_path / "docs", tmp_path / "docs.jsonl"):
        there, problems = read_documents(path)
        assert (problems, on_disk(there)) == ([], True)
        assert there == here == [Document(name, text) for name, text in bodies.items()]


def test_a_file_of_rows_may_be_larger_than_a_table_and_its_lines_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "word " * 400_000
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate([long, "short"])))
    for most in (limits.MAX_TABLE_BYTES, 1000):
        monkeypatch.setattr(limits, "MAX_TABLE_BYTES", most)
        documents, problems = read_documents(path)
        assert (problems, [one.text for one in documents]) == ([], [long, "short"])
    monkeypatch.setattr(limits, "MAX_BYTES", 1000)
    documents, (problem,) = read_documents(path)
    assert ([one.text for one in documents], problem.line) == (["short"], 1)
    assert "longer than 1,000 characters" in problem.message
    monkeypatch.setattr(limits, "MAX_BYTES", 10**7)
    monkeypatch.setattr(limits, "MAX_LINES_BYTES", 1000)
    assert "larger than" in read_documents(path)[1][0].message
    monkeypatch.setattr(limits, "MAX_LINES_BYTES", 10**8)
    monkeypatch.setattr(limits, "MAX_ROWS", 1)
    documents, (problem,) = read_documents(path)
    assert (len(documents), "more than 1" in problem.message) == (1, True)


def test_a_full_disk_is_one_problem_that_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": at, "text": "x" * 50}) + "\n" for at in range(40)))
    monkeypatch.setattr(limits, "IN_MEMORY", 100)
    monkeypatch.setattr(limits, "WRITTEN_AT_ONCE", 100)
    made = tempfile.TemporaryFile

    def full(**options: object):  # type: ignore[no-untyped-def]
        made(**options).close()  # type: ignore[call-overload]
        return open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(limits.tempfile, "TemporaryFile", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    documents, (problem,) = read_documents(path)
    assert len(documents) == 0
    assert problem.key == "data.documents"
    assert f"do not fit into {tmp_path} (No space left on device)" in problem.message
    assert "TMPDIR" in problem.message


def test_no_file_is_left_behind_or_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(limits, "IN_MEMORY", 0)
    documents = shelved([Document("a", "text")])
    assert on_disk(documents)
    assert os.listdir(tmp_path) == []
    assert list(documents) == [Document("a", "text")]


def test_texts_that_were_cut_short_are_an_error_and_no_shorter_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IN_MEMORY", 0)
    documents = shelved([Document("a", "first"), Document("b", "second")])
    os.truncate(documents._held.fileno(), 8)  # type: ignore[union-attr]
    assert documents[0].text == "first"
    with pytest.raises(OSError, match="cut short"):
        documents[1]


def test_a_task_is_the_same_wherever_its_documents_lie(
    make_task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {name: f"{name}.jsonl" for name in ("train", "dev", "test")} | {"documents": "docs"}
    files = {f"docs/{at}.md": f"# Ship {at}\n\nIt is blue." for at in range(4)}
    folder = make_task(tmp_path / "t", files=files, data=data)
    here = load_task(folder)
    monkeypatch.setattr(limits, "IN_MEMORY", 10)
    there = load_task(folder)
    assert on_disk(there.documents)  # type: ignore[arg-type]
    assert here.documents == there.documents
    assert here.hash() == there.hash() == replace(here, documents=tuple(here.documents)).hash()
    assert here.hash() != replace(here, documents=here.documents[:-1]).hash()
    assert here.hash() != replace(here, documents=here.documents[::-1]).hash()
    (folder / "docs" / "4.md").write_text("# Ship 3\n\nIt is blue.")
    more = load_task(folder)
    assert more.hash() != here.hash()
    assert [place.id for place in repeated_documents(more.documents)[0].places] == ["4.md", "3.md"]
    (folder / "docs" / "5.md").write_bytes(b"\xff")
    with pytest.raises(ProblemsError, match="not UTF-8"):
        load_task(folder)
