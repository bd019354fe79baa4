"""A vector database is searched as it is, its payloads are distrusted, and one that was filled by another model is refused."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rag.fusion import Hybrid
from baselines.rag.passages import shown_passages
from baselines.rag.qdrant import QdrantStore, open_qdrant
from baselines.rag.vector_store import MAX_CHARACTERS, Stored, StoreRetriever, chunk_of, open_store
from evals.engines.embed import Embedder
from evals.errors import AdvisorError
from evals.events import Event, Note
from evals.task.spec import QdrantSpec

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

KEY = "a-key-that-nobody-may-see"
TEXTS = [f"The {name} opens at 0{at % 10}:40, ask {name[::-1]}." for at, name in enumerate(["gym", "quay", "zoo", "inn"] * 5)]
TEXTS = [f"{text} Number {at}." for at, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


Payload = Mapping[str, Any] | None


def filled(
    embedder: Embedder,
    payloads: Sequence[Payload],
    *,
    vectors: Any = None,
    ids: Sequence[Any] | None = None,
    distance: models.Distance = models.Distance.COSINE,
) -> QdrantClient:
    """A collection "c" in this process: by default each vector is that of the payload's `text`."""
    if vectors is None:
        vectors = embedder.encode([str((one or {}).get("text")) for one in payloads])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config=models.VectorParams(size=len(vectors[0]), distance=distance))
    keys = ids or range(len(payloads))
    points = [
        models.PointStruct(id=key, vector=np.asarray(vector).tolist(), payload=dict(one) if one is not None else None)
        for key, vector, one in zip(keys, vectors, payloads, strict=True)
    ]
    client.upsert("c", points)
    return client


def plain(texts: Sequence[str] = TEXTS) -> list[Payload]:
    return [{"text": text, "document": f"docs/{at // 4}.md"} for at, text in enumerate(texts)]


def notes(events: Sequence[Event], level: str) -> list[str]:
    return [one.text for one in events if isinstance(one, Note) and one.level == level]


def test_the_nearest_are_those_of_exact_search(embedder: Embedder) -> None:
    events: list[Event] = []
    retriever = open_store(QdrantStore(filled(embedder, plain()), "c"), embedder, events.append)
    questions = ["Where is the zoo?", TEXTS[7], "opens at 03:40"]
    found = retriever.search(questions, 5)
    exact = embedder.encode(questions) @ embedder.encode(TEXTS).T
    for row, scores in zip(found, exact, strict=True):
        best = np.argsort(-scores, kind="stable")[:5]
        assert [one.chunk.text for one in row] == [TEXTS[at] for at in best]
        np.testing.assert_allclose([one.score for one in row], scores[best], atol=1e-5)
    first = found[1][0].chunk
    assert (first.document, first.title, first.position) == ("docs/1.md", "1", 7)
    assert retriever.name == "qdrant"
    assert "20 points in c" in notes(events, "info")[0]
    assert "is 1.000" in notes(events, "info")[0]


def test_more_questions_than_one_message_holds_keep_their_order(embedder: Embedder) -> None:
    retriever = StoreRetriever(QdrantStore(filled(embedder, plain()), "c"), embedder)
    found = retriever.search(TEXTS * 8, 1)
    assert [row[0].chunk.text for row in found] == TEXTS * 8
    assert retriever.search([], 3) == []
    assert retriever.search(["a", "b"], 0) == [[], []]
    assert len(retriever.search(["a"], 1000)[0]) == len(TEXTS)


@pytest.mark.parametrize("bad", [None, {}, {"text": None}, {"text": 5}, {"text": ["a"]}, {"text": {"a": "b"}}, {"text": " \n"}])
def test_points_without_a_text_are_passed_over_replaced_and_counted(embedder: Embedder, bad: Payload) -> None:
    payloads: list[Payload] = [*plain(), *[bad] * 12]
    question = TEXTS[0]
    # What holds no text is nearest of all: it must not take the places of the passages.
    vectors = np.concatenate([embedder.encode(TEXTS), np.repeat(embedder.encode([question]), 12, axis=0)])
    events: list[Event] = []
    retriever = StoreRetriever(QdrantStore(filled(embedder, payloads, vectors=vectors), "c"), embedder, events.append)
    (found,) = retriever.search([question], 3)
    scores = (embedder.encode([question]) @ embedder.encode(TEXTS).T)[0]
    assert [one.chunk.text for one in found] == [TEXTS[at] for at in np.argsort(-scores)[:3]]
    (said,) = notes(events, "warning")
    assert "12 points" in said
    assert "passed over" in said
    retriever.search([question], 3)
    assert len(notes(events, "warning")) == 1


def test_a_passage_that_is_there_twice_is_found_once(embedder: Embedder) -> None:
    twice = [TEXTS[0]] * 9 + TEXTS
    payloads = [{"text": text, "document": "a.md"} for text in twice]
    retriever = StoreRetriever(QdrantStore(filled(embedder, payloads), "c"), embedder)
    (found,) = retriever.search([TEXTS[0]], 4)
    assert len({one.chunk.text for one in found}) == 4
    # With the score of its best point, and the number of the first among equals.
    turned = [payloads[0]] * 4
    vectors = embedder.encode([TEXTS[1], TEXTS[0], TEXTS[0], TEXTS[2]])
    client = filled(embedder, turned, vectors=vectors, ids=[1, 9, 4, 2])
    ((best,),) = StoreRetriever(QdrantStore(client, "c"), embedder).search([TEXTS[0]], 4)
    assert best.chunk.position == 4
    assert best.score == pytest.approx(1, abs=1e-5)
    # The same words in two documents are two passages; equals come in the order of the documents.
    other = [{"text": TEXTS[0], "document": name} for name in ("b.md", "a.md")]
    (both,) = StoreRetriever(QdrantStore(filled(embedder, other), "c"), embedder).search([TEXTS[0]], 4)
    assert [one.chunk.document for one in both] == ["a.md", "b.md"]


def test_passages_of_one_document_and_one_length_stay_apart_in_a_fusion(embedder: Embedder) -> None:
    texts = [f"The quay opens at {hour:02}:15 today." for hour in range(10, 16)]
    payloads = [{"text": text, "document": "a.md"} for text in texts]
    retriever = StoreRetriever(QdrantStore(filled(embedder, payloads), "c"), embedder)
    (found,) = Hybrid((retriever, retriever), (1.0, 1.0)).search(texts[:1], 6)
    assert sorted(one.chunk.text for one in found) == texts
    # Nor are they taken for parts that overlap.
    assert sorted(one.chunk.text for one in shown_passages(found, None, 0)) == texts


def test_a_question_that_is_cut_is_told_of(embedder: Embedder) -> None:
    events: list[Event] = []
    retriever = StoreRetriever(QdrantStore(filled(embedder, plain()), "c"), embedder, events.append)
    retriever.search(["short", "long " * 200], 1)
    assert "1 of 2 questions is longer than the 256 tokens" in notes(events, "warning")[0]


def test_a_questions_cost_holds_the_exchange_and_forgets_nothing_embedded(embedder: Embedder) -> None:
    class Slow(QdrantStore):
        asked = 0

        def nearest(self, vectors: Any, count: int) -> Any:
            Slow.asked += len(vectors)
            time.sleep(0.02)
            return super().nearest(vectors, count)

    retriever = StoreRetriever(Slow(filled(embedder, plain()), "c"), embedder)
    assert retriever.seconds_each([]) == 0
    assert 0.02 < retriever.seconds_each(TEXTS) < 1
    asked = Slow.asked
    assert asked == 8
    assert retriever.seconds_each(TEXTS) > 0.02
    assert Slow.asked == asked


def test_keys_may_lead_into_mappings_and_a_source_may_lack(embedder: Embedder) -> None:
    payloads = [
        {"page_content": text, "metadata": {"source": f"{at}.md", "title": "The  \x1b[31mguide\n"} if at % 2 else None}
        for at, text in enumerate(TEXTS)
    ]
    client = filled(embedder, payloads, vectors=embedder.encode(TEXTS))
    store = QdrantStore(client, "c", text="page_content", document="metadata.source")
    found = open_store(store, embedder).search(TEXTS[:2], 1)
    assert [one.chunk.text for (one,) in found] == TEXTS[:2]
    assert (found[0][0].chunk.document, found[0][0].chunk.title) == ("c/0", "c")
    assert (found[1][0].chunk.document, found[1][0].chunk.title) == ("1.md", "The \x1b[31mguide")


def test_a_wrong_key_of_the_text_names_those_that_hold_texts(embedder: Embedder) -> None:
    payloads = [{"content": text, "meta": {"contents": text, "page": 3}} for text in TEXTS]
    with pytest.raises(AdvisorError, match="no payload holds a text under 'contnt'") as caught:
        open_store(QdrantStore(filled(embedder, payloads), "c", text="contnt"), embedder)
    assert "did you mean 'content'?" in caught.value.what
    assert "content, meta.contents." in caught.value.do


def test_vectors_of_another_model_are_refused_and_the_number_is_told(embedder: Embedder) -> None:
    random = np.random.default_rng(0).normal(size=(len(TEXTS), embedder.dimension))
    with pytest.raises(AdvisorError, match="another embedding model") as caught:
        open_store(QdrantStore(filled(embedder, plain(), vectors=random), "c"), embedder)
    told = float(caught.value.what.rsplit(" ", 1)[-1])
    store = QdrantStore(filled(embedder, plain(), vectors=random), "c")
    ours = embedder.encode([stored.text for stored, _ in store.sample()])
    theirs = np.stack([vector / np.linalg.norm(vector) for _, vector in store.sample()])
    assert told == pytest.approx(np.median(np.sum(ours * theirs, axis=1)), abs=6e-4)
    assert embedder.name in caught.value.do


def noisy(embedder: Embedder, cosine: float) -> Any:
    """The texts' vectors, each turned away until this is its cosine to what it was."""
    vectors = embedder.encode(TEXTS).astype(np.float64)
    aside = np.random.default_rng(1).normal(size=vectors.shape)
    aside -= np.sum(aside * vectors, axis=1, keepdims=True) * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return cosine * vectors + np.sqrt(1 - cosine**2) * aside


@pytest.mark.parametrize(("cosine", "outcome"), [(0.89, "error"), (0.91, "warning"), (0.98, "warning"), (0.995, "info")])
def test_where_the_lines_between_models_run(embedder: Embedder, cosine: float, outcome: str) -> None:
    events: list[Event] = []
    store = QdrantStore(filled(embedder, plain(), vectors=noisy(embedder, cosine)), "c")
    if outcome == "error":
        with pytest.raises(AdvisorError, match=rf"is {cosine:.3f}"):
            open_store(store, embedder, events.append)
        return
    open_store(store, embedder, events.append)
    (said,) = notes(events, outcome)
    assert f"{cosine:.3f}" in said


def test_vectors_of_texts_under_their_titles_are_recognised(embedder: Embedder) -> None:
    payloads = [{"text": text, "title": f"A long title of its own, {at}"} for at, text in enumerate(TEXTS)]
    vectors = embedder.encode([f"{one['title']}: {one['text']}" for one in payloads])
    events: list[Event] = []
    open_store(QdrantStore(filled(embedder, payloads, vectors=vectors), "c"), embedder, events.append)
    assert "is 1.000" in notes(events, "info")[0]


def test_another_size_is_refused_with_both_numbers(embedder: Embedder) -> None:
    store = QdrantStore(filled(embedder, plain(), vectors=np.ones((len(TEXTS), 48))), "c")
    with pytest.raises(AdvisorError, match=r"have 48 numbers, and those of the embedding model .* have 32"):
        open_store(store, embedder)


def test_an_empty_collection_is_refused(embedder: Embedder) -> None:
    client = filled(embedder, plain())
    client.delete("c", models.FilterSelector(filter=models.Filter()))
    with pytest.raises(AdvisorError, match="no passage with a vector"):
        open_store(QdrantStore(client, "c"), embedder)


def test_a_distance_that_is_no_cosine_is_refused(embedder: Embedder) -> None:
    store = QdrantStore(filled(embedder, plain(), distance=models.Distance.EUCLID), "c")
    with pytest.raises(AdvisorError, match="compared by Euclid"):
        store.check_vectors()
    QdrantStore(filled(embedder, plain(), distance=models.Distance.DOT), "c").check_vectors()


def test_long_vectors_under_a_dot_product_are_warned_of(embedder: Embedder) -> None:
    events: list[Event] = []
    unit = embedder.encode(TEXTS)
    QdrantStore(filled(embedder, plain(), distance=models.Distance.DOT), "c").check_lengths(events.append)
    assert events == []
    stretched = unit * np.linspace(1, 3, len(unit))[:, None]
    store = QdrantStore(filled(embedder, plain(), vectors=stretched, distance=models.Distance.DOT), "c")
    store.check_lengths(events.append)
    assert "lengths from 1.00 to 3.00" in notes(events, "warning")[0]
    # They are of our model all the same.
    open_store(store, embedder, events.append)
    assert "is 1.000" in notes(events, "info")[0]


def with_names(embedder: Embedder, *, many: bool = False) -> QdrantClient:
    client = filled(embedder, plain())
    client.delete_collection("c")
    size, cosine = embedder.dimension, models.Distance.COSINE
    several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM) if many else None
    config = {
        "dense": models.VectorParams(size=size, distance=cosine, multivector_config=several),
        "summary": models.VectorParams(size=7, distance=cosine),
    }
    client.create_collection("c", vectors_config=config)
    if not many:
        rows = zip(embedder.encode(TEXTS), plain(), strict=True)
        points = [
            models.PointStruct(id=at, vector={"dense": vector.tolist()}, payload=dict(one or {}))
            for at, (vector, one) in enumerate(rows)
        ]
        client.upsert("c", points)
    return client


def test_named_vectors_need_their_name(embedder: Embedder) -> None:
    client = with_names(embedder)
    with pytest.raises(AdvisorError, match="the vectors have names") as caught:
        QdrantStore(client, "c").check_vectors()
    assert "dense, summary" in caught.value.do
    with pytest.raises(AdvisorError, match=r"no vector 'dens' \(did you mean 'dense'\?\)"):
        QdrantStore(client, "c", vector="dens").check_vectors()
    with pytest.raises(AdvisorError, match="have no names"):
        QdrantStore(filled(embedder, plain()), "c", vector="dense").check_vectors()
    with pytest.raises(AdvisorError, match="many vectors"):
        QdrantStore(with_names(embedder, many=True), "c", vector="dense").check_vectors()
    # Points that lack the named vector can be neither compared nor found.
    with pytest.raises(AdvisorError, match="no passage with a vector"):
        open_store(QdrantStore(client, "c", vector="summary"), embedder)
    named = QdrantStore(client, "c", vector="dense")
    named.check_vectors()
    (found,) = open_store(named, embedder).search([TEXTS[3]], 1)
    assert found[0].chunk.text == TEXTS[3]


def test_settings_change_with_what_the_answers_depend_on(embedder: Embedder) -> None:
    def stamp(client: QdrantClient, **more: Any) -> str:
        return json.dumps(StoreRetriever(QdrantStore(client, "c", **more), embedder).settings, sort_keys=True)

    base = stamp(filled(embedder, plain()))
    assert stamp(filled(embedder, plain()), where="elsewhere", secret=KEY) == base
    other_text = plain([*TEXTS[:-1], "Another text."])
    turned = embedder.encode(TEXTS).copy()
    turned[0] = turned[1]
    changed = [
        stamp(filled(embedder, other_text, vectors=embedder.encode(TEXTS))),
        stamp(filled(embedder, plain()[:-1])),
        stamp(filled(embedder, plain(), vectors=turned)),
        stamp(filled(embedder, plain(), ids=range(100, 120))),
        stamp(filled(embedder, plain(), distance=models.Distance.DOT)),
        stamp(filled(embedder, plain()), document="source"),
    ]
    assert len({base, *changed}) == 1 + len(changed)
    assert json.loads(base)["points"] == 20


def test_the_sample_is_from_all_over_and_the_same_each_time(embedder: Embedder) -> None:
    texts = [f"{TEXTS[at % 20]} {at}" for at in range(400)]
    rough = np.random.default_rng(0).normal(size=(400, 32))
    numbers = {int(stored.id) for stored, _ in QdrantStore(filled(embedder, plain(texts), vectors=rough), "c").sample()}
    assert numbers == {start + at for start in (0, 100, 200, 300) for at in range(6)}
    uuids = [f"{at * 655 % 65536:04x}0000-0000-4000-8000-{at:012x}" for at in range(400)]
    client = filled(embedder, plain(texts), vectors=rough, ids=uuids)
    first, again = (QdrantStore(client, "c").sample() for _ in range(2))
    assert [one for one, _ in first] == [one for one, _ in again]
    assert {one.id[0] for one, _ in first} >= {"0", "4", "8", "c"}


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40), st.text(max_size=20), st.text(max_size=20), st.uuids().map(str) | st.integers(0, 2**64 - 1).map(str)
)
def test_whatever_a_payload_holds_becomes_a_chunk(text: str, document: str, title: str, key: str) -> None:
    chunk = chunk_of(Stored(key, text, document, title), "c")
    assert chunk == chunk_of(Stored(key, text, document, title), "c")
    assert chunk.text == text
    assert chunk.document == (document or f"c/{key}")
    assert chunk.title
    assert 0 <= chunk.position < 2**53
    assert not key.isdecimal() or int(key) >= 10**15 or chunk.position == int(key)


def test_texts_that_no_prompt_could_hold_and_broken_characters(embedder: Embedder) -> None:
    payloads = [{"text": "x" * (MAX_CHARACTERS + 1)}, {"text": "half a \ud83d pair", "document": True, "title": 7}]
    client = filled(embedder, payloads, vectors=embedder.encode(TEXTS[:2]))
    (found,) = StoreRetriever(QdrantStore(client, "c"), embedder).search(["half"], 5)
    assert [one.chunk.text for one in found] == ["half a ? pair"]
    assert (found[0].chunk.document, found[0].chunk.title) == ("c/1", "c")


# Over HTTP: what a server may answer.

Respond = Callable[[str, bytes, Mapping[str, str]], tuple[int, bytes]]


@contextmanager
def served(respond: Respond) -> Iterator[tuple[str, list[tuple[str, Mapping[str, str]]]]]:
    """A server on loopback: its address, and the paths and headers of what it was asked."""
    asked: list[tuple[str, Mapping[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers)))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = respond(self.path, body, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of_client(client: QdrantClient) -> Respond:
    """Qdrant's own routes over a collection in process."""

    def respond(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        route = path.partition("?")[0]
        if route == "/collections":
            return wrapped(client.get_collections())
        if route == "/collections/c":
            return wrapped(client.get_collection("c"))
        if route == "/collections/c/points/count":
            return wrapped(client.count("c", exact=True))
        if route == "/collections/c/points/scroll":
            wanted = models.ScrollRequest.model_validate_json(body)
            points, after = client.scroll(
                "c",
                limit=wanted.limit or 10,
                offset=wanted.offset,
                with_payload=wanted.with_payload,  # type: ignore[arg-type]
                with_vectors=wanted.with_vector,  # type: ignore[arg-type]
            )
            return wrapped(models.ScrollResult(points=points, next_page_offset=after))
        if route == "/collections/c/points/query/batch":
            batch = models.QueryRequestBatch.model_validate_json(body)
            return wrapped(*client.query_batch_points("c", requests=batch.searches), listed=True)
        return 404, b'{"status": {"error": "Not found: Collection doesn\'t exist!"}}'

    return respond


def wrapped(*results: Any, listed: bool = False) -> tuple[int, bytes]:
    bodies = [one.model_dump(mode="json") for one in results]
    return 200, json.dumps({"result": bodies if listed else bodies[0], "status": "ok", "time": 0.0}).encode()


def spec_of(url: str, **more: Any) -> QdrantSpec:
    return QdrantSpec.model_validate({"url": url, "collection": "c", "timeout": 1, **more})


def failure(url: str, embedder: Embedder, **more: Any) -> AdvisorError:
    with pytest.raises(AdvisorError) as caught:
        open_qdrant(spec_of(url, **more), embedder)
    assert KEY not in str(caught.value)
    assert url in caught.value.where
    return caught.value


def test_over_http_the_answers_are_those_of_the_process(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    client = filled(embedder, plain())
    monkeypatch.setenv("MY_KEY", KEY)
    with served(of_client(client)) as (url, asked):
        retriever = open_qdrant(spec_of(url, api_key_env="MY_KEY"), embedder)
        found = retriever.search(TEXTS[:3], 4)
        here = open_store(QdrantStore(client, "c"), embedder)
        assert [[one.chunk for one in row] for row in found] == [
            [one.chunk for one in row] for row in here.search(TEXTS[:3], 4)
        ]
        assert KEY not in json.dumps(retriever.settings)
        assert retriever.settings == here.settings
    assert {headers["api-key"] for _, headers in asked} == {KEY}
    # Nothing but the collection: no look at the server's version, no telemetry.
    assert all(path.startswith("/collections/c") for path, _ in asked)


def test_nothing_listens_there(embedder: Embedder) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        found = failure(url, embedder)
    assert "cannot be reached" in found.what
    assert "refused" in found.what
    assert "6333" in found.do


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_not_repeated(embedder: Embedder, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)

    def respond(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        return status, f"Invalid\x1b[31m key {headers['api-key']}".encode()

    with served(respond) as (url, _):
        found = failure(url, embedder)
    assert f"status {status}" in found.what
    assert "[key]" in found.what
    assert "\x1b" not in found.what
    assert "api_key_env" in found.do


def test_a_collection_that_is_not_there_is_named_with_its_neighbours(embedder: Embedder) -> None:
    client = filled(embedder, plain())
    for name in ("handbook", "archive"):
        client.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    with served(of_client(client)) as (url, _):
        found = failure(url, embedder, collection="hanbook")
    assert "no such collection (did you mean 'handbook'?)" in found.what
    assert "archive, c, handbook" in found.do
    with pytest.raises(AdvisorError, match="no such collection"):
        QdrantStore(client, "hanbook").check_vectors()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"<html>Not here</html>", "it lists none"),
        (200, b"<html>Welcome</html>", "no Qdrant that qdrant-client"),
        (200, b"", "no Qdrant that qdrant-client"),
        (200, b'{"result": {"status": "green"}}', "no Qdrant that qdrant-client"),
        (200, b"[" * 100_000, "no Qdrant that qdrant-client"),
        (200, b"\xff\xfe", "no Qdrant that qdrant-client"),
        (302, b"", "status 302"),
        (500, b'{"status": {"error": "disk full"}}', "status 500.*disk full"),
    ],
)
def test_what_answers_is_no_qdrant(embedder: Embedder, status: int, body: bytes, says: str) -> None:
    with served(lambda *_: (status, body)) as (url, _):
        found = failure(url, embedder)
    assert re.search(says, found.what), found.what


def test_a_server_that_hangs_is_left_after_the_timeout(embedder: Embedder) -> None:
    over = threading.Event()

    def respond(*_: Any) -> tuple[int, bytes]:
        over.wait(10)
        return 200, b"{}"

    with served(respond) as (url, _):
        started = time.monotonic()
        found = failure(url, embedder)
        took = time.monotonic() - started
        over.set()
    assert "cannot be reached, or broke off" in found.what
    assert "timeout" in found.do
    assert 0.9 < took < 5


def test_a_server_that_is_busy_for_a_moment_is_asked_again(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.rag.qdrant.WAITS", (0.01, 0.01))
    real, busy = of_client(filled(embedder, plain())), [0]

    def respond(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        if "query" in path and busy[0]:
            busy[0] -= 1
            return 503, b"not now"
        return real(path, body, headers)

    with served(respond) as (url, _):
        retriever = open_qdrant(spec_of(url), embedder)
        busy[0] = 2
        assert retriever.search(TEXTS[:1], 1)[0][0].chunk.text == TEXTS[0]
        busy[0] = 3
        with pytest.raises(AdvisorError, match=r"status 503.*not now"):
            retriever.search(TEXTS[:1], 1)


def test_a_key_over_plain_http_is_told_and_one_with_a_line_break_refused(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    events: list[Event] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AdvisorError, match="cannot be reached"):
            open_qdrant(spec_of("http://no-such-host.invalid"), embedder, events.append)
    (said,) = notes(events, "warning")
    assert "no-such-host.invalid over plain http" in said
    assert KEY not in said
    monkeypatch.setenv("QDRANT_API_KEY", f"{KEY}\nX: y")
    with pytest.raises(AdvisorError, match="no key has") as caught:
        open_qdrant(spec_of("http://localhost:1"), embedder)
    assert KEY not in str(caught.value)


def test_without_the_client_the_extra_is_named(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.rag.qdrant.find_spec", lambda name: None)
    with pytest.raises(AdvisorError) as caught:
        open_qdrant(spec_of("http://localhost:1"), embedder)
    assert "pip install 'finetune-advisor[qdrant]'" in caught.value.do
