"""Qdrant: passages that a team's database keeps already. Read only, over HTTP, and nothing is asked but the address given."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from baselines.rag.vector_store import Stored, StoreRetriever, open_store, usable
from evals.engines.embed import Embedder
from evals.errors import AdvisorError, did_you_mean
from evals.events import Note, OnEvent, ignore
from evals.records import content_hash
from evals.task.spec import QdrantSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Points are looked at from several ids on, for ids are numbers or UUIDs in order, and the first ones may all be of one document.
SAMPLED_AT_EACH = 6
UUIDS = tuple(f"{digit}0000000-0000-0000-0000-000000000000" for digit in "48c")
# A server that has answered before may be back in a moment; seconds between the attempts.
WAITS = (0.5, 2.0)
PASSING = {429, 502, 503, 504}


class QdrantStore:
    """One collection, as a VectorStore. `text` and `document` are keys of the payload; a dot leads into a mapping, as in
    Qdrant's own filters (`metadata.source`). A text `title` beside the document is the passage's title.

    `client` is a `qdrant_client.QdrantClient`, in process or of a server.
    """

    name = "qdrant"

    def __init__(
        self,
        client: Any,
        collection: str,
        *,
        text: str = "text",
        document: str = "document",
        vector: str | None = None,
        where: str = "",
        secret: str = "",
    ) -> None:
        self._client = client
        self.collection = collection
        self.text, self.document, self.vector = text, document, vector
        self.title = ".".join([*document.split(".")[:-1], "title"])
        self.where = where or f"collection {collection}"
        self._secret = secret
        self._answered = False

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """`content` is the hash of the collection's settings and of the sample.

        With the number of points, which the retriever adds, it cannot see a passage that was changed outside of the sample while
        that number stayed, nor an index that Qdrant builds anew (HNSW is approximate: neighbours of nearly equal score may change places).
        """
        sampled = [[stored, _largest(vector)] for stored, vector in self.sample()]
        return {
            "collection": self.collection,
            "text": self.text,
            "document": self.document,
            "vector": self.vector,
            "content": content_hash([self._described, sampled]),
        }

    @cached_property
    def _info(self) -> Any:
        return self._asked(lambda: self._client.get_collection(self.collection))

    @property
    def _described(self) -> dict[str, Any]:
        """What of the collection's settings decides which points are found."""
        config = self._info.config
        parts = {"vectors": config.params.vectors, "hnsw": config.hnsw_config, "quantization": config.quantization_config}
        return {name: _as_json(one) for name, one in parts.items()}

    def count(self) -> int:
        return int(self._asked(lambda: self._client.count(self.collection, exact=True)).count)

    def sample(self) -> Sequence[tuple[Stored, NDArray[np.float32]]]:
        return self._sample

    @cached_property
    def _sample(self) -> tuple[tuple[Stored, NDArray[np.float32]], ...]:
        """Raises AdvisorError where no point has a text under its key."""
        count = self.count()
        points: dict[str, Any] = {}
        for start in (None, *(count * part // 4 for part in (1, 2, 3)), *UUIDS):
            for one in self._scrolled(start):
                points[str(one.id)] = one
        stored = {key: self._stored(one) for key, one in points.items()}
        if points and not any(usable(one.text) for one in stored.values()):
            raise self._no_text([one.payload for one in points.values()])
        vectors = {key: _vector(one.vector, self.vector) for key, one in points.items()}
        return tuple((stored[key], vector) for key, vector in sorted(vectors.items()) if vector is not None)

    def _scrolled(self, start: int | str | None) -> list[Any]:
        """Points from an id on. All of the payload: where the text is not under its key, its keys are told."""
        points, _ = self._asked(
            lambda: self._client.scroll(
                self.collection,
                limit=SAMPLED_AT_EACH,
                offset=start,
                with_payload=True,
                with_vectors=[self.vector] if self.vector else True,
            )
        )
        return list(points)

    def nearest(self, vectors: NDArray[np.float32], count: int) -> list[list[tuple[Stored, float]]]:
        from qdrant_client import models

        requests = [
            models.QueryRequest(
                query=one.tolist(), using=self.vector, limit=count, with_payload=[self.text, self.document, self.title]
            )
            for one in vectors
        ]
        answers = self._asked(lambda: self._client.query_batch_points(self.collection, requests=requests))
        if len(answers) != len(requests):
            raise self._error(f"{len(requests)} questions were asked, and {len(answers)} answered", "see its log.")
        return [[(self._stored(one), float(one.score)) for one in answer.points[:count]] for answer in answers]

    def _stored(self, point: Any) -> Stored:
        payload = point.payload
        text, document, title = (_at(payload, key) for key in (self.text, self.document, self.title))
        if isinstance(document, int) and not isinstance(document, bool):
            document = str(document)
        return Stored(str(point.id), *(_plain(one) for one in (text, document, title)))

    def check_vectors(self) -> None:
        """Raises AdvisorError where the vectors cannot be searched by ours: which are there, and how they are compared."""
        vectors = self._info.config.params.vectors
        named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors is not None else {}
        if (self.vector or "") not in named:
            raise self._no_such_vector([name for name in named if name])
        chosen = named[self.vector or ""]
        if chosen.multivector_config is not None:
            raise self._error("each point there has many vectors, and we search by one", "name a vector that stands alone.")
        if str(chosen.distance) not in {"Cosine", "Dot"}:
            raise self._error(
                f"the vectors there are compared by {chosen.distance}, and ours mean something by their cosine",
                "search a collection (or a named vector) of distance Cosine or Dot.",
            )

    def check_lengths(self, on_event: OnEvent) -> None:
        """Warns where dot products are no cosines."""
        import numpy as np

        vectors = self._info.config.params.vectors
        chosen = vectors[self.vector] if isinstance(vectors, dict) else vectors
        lengths = [float(np.linalg.norm(vector)) for _, vector in self.sample()]
        if str(chosen.distance) == "Dot" and lengths and not all(0.99 < one < 1.01 for one in lengths):
            what = f"lengths from {min(lengths):.2f} to {max(lengths):.2f}: a long vector is found before a near one"
            on_event(Note(f"qdrant: vectors of {self.collection} are compared by dot product and have {what}", "warning"))

    def _no_such_vector(self, names: list[str]) -> AdvisorError:
        if not names and self.vector:
            return self._error(f"the vectors there have no names, and {self.vector!r} is asked for", "leave `vector` out.")
        if not names:
            return self._error("the collection has no dense vectors", "name a collection that has.")
        said = (
            f"there is no vector {self.vector!r}{did_you_mean(self.vector, names)}" if self.vector else "the vectors have names"
        )
        return self._error(said, f"name one in `rag: {{qdrant: {{vector: …}}}}`: {', '.join(sorted(names)[:10])}.")

    def _no_text(self, payloads: Sequence[Any]) -> AdvisorError:
        keys = sorted({key for payload in payloads for key in _paths(payload)})
        held = f"keys of texts there: {', '.join(keys[:20])}" if keys else "the payloads hold no texts"
        return self._error(
            f"no payload holds a text under {self.text!r}{did_you_mean(self.text, keys)}",
            f"name the key of the passage in `rag: {{qdrant: {{text: …}}}}`; {held}.",
        )

    def _asked(self, ask: Callable[[], T]) -> T:
        """Asks; again where a server that has answered before breaks off. Raises AdvisorError where nothing comes of it."""
        for wait in WAITS if self._answered else ():
            try:
                return ask()
            except Exception as error:
                if not _passing(error):
                    raise self._explained(error) from None
                time.sleep(wait)
        try:
            answer = ask()
        except Exception as error:
            raise self._explained(error) from None
        self._answered = True
        return answer

    def _explained(self, error: Exception) -> AdvisorError:
        status = getattr(error, "status_code", None)
        if status in {401, 403}:
            return self._error(
                f"the server does not let us in (status {status}): {self._words(error)}",
                "set the environment variable that `rag: {qdrant: {api_key_env: …}}` names to a key for this collection.",
            )
        if status == 404 or (isinstance(error, ValueError) and "not found" in str(error)):
            return self._no_such_collection()
        if status is not None:
            return self._error(
                f"the server refuses the request (status {status}): {self._words(error)}", "see the server's log."
            )
        if hasattr(error, "retry_after_s"):
            return self._error(f"the server wants fewer requests: {self._words(error)}", "try again later.")
        source = getattr(error, "source", error)
        if _is_transport(source):
            return self._error(
                f"the server cannot be reached, or broke off: {self._words(source)}",
                "start it, or mend `rag: {qdrant: {url: …}}` (port 6333 where it names none) or its `timeout`.",
            )
        return self._error(
            f"what answers there is no Qdrant that qdrant-client {_version()} can read ({type(source).__name__})",
            "check the address and its port, and that the versions of server and client are near each other.",
        )

    def _no_such_collection(self) -> AdvisorError:
        try:
            names = [str(one.name) for one in self._client.get_collections().collections]
        except Exception:  # an error within an error: whatever it is, this is what we can say
            return self._error(
                "the server has no such collection, or it is no Qdrant: it lists none", "check the address and the collection."
            )
        near = did_you_mean(self.collection, names)
        listed = f"it has {', '.join(sorted(names)[:10])}" if names else "it has none"
        return self._error(f"the server has no such collection{near}", f"name another; {listed}.")

    def _words(self, error: Exception) -> str:
        """The server's own words, or the error's: one line, without our key."""
        content = getattr(error, "content", None)
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else f"{type(error).__name__}: {error}"
        if self._secret:
            text = text.replace(self._secret, "[key]")
        return "".join(one if one.isprintable() else " " for one in " ".join(text.split())[:200]) or "no words"

    def _error(self, what: str, do: str) -> AdvisorError:
        return AdvisorError(what, where=self.where, do=do)


def open_qdrant(spec: QdrantSpec, embedder: Embedder, on_event: OnEvent = ignore) -> StoreRetriever:
    """The retriever over a team's collection. The key comes from the environment, and goes nowhere but to this address.

    Raises AdvisorError where the server or the collection is not there, lets nobody in, or keeps vectors that are not those of
    our embedding model. `timeout` bounds each step of an exchange (connecting, the next bytes), not all of it.
    """
    key = _key(spec)
    if key and urlsplit(spec.url).scheme == "http" and urlsplit(spec.url).hostname not in LOOPBACK:
        what = f"the key in {spec.api_key_env} travels to {urlsplit(spec.url).hostname} over plain http"
        on_event(Note(what, "warning"))
    store = QdrantStore(
        _client(spec, key),
        spec.collection,
        text=spec.text,
        document=spec.document,
        vector=spec.vector,
        where=f"{spec.url}, collection {spec.collection}",
        secret=key,
    )
    store.check_vectors()
    found = open_store(store, embedder, on_event)
    store.check_lengths(on_event)
    return found


def _client(spec: QdrantSpec, key: str) -> Any:
    if find_spec("qdrant_client") is None:
        raise AdvisorError(
            "Qdrant's client is not installed",
            where="rag.qdrant",
            do="pip install 'finetune-advisor[qdrant]', or leave `rag: {qdrant: …}` out of the task file.",
        )
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys over plain http, which we have told by then
        # Its look at the server's version would be one more request, in a thread of its own.
        return QdrantClient(url=spec.url, api_key=key or None, timeout=spec.timeout, check_compatibility=False)


def _key(spec: QdrantSpec) -> str:
    key = os.environ.get(spec.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise AdvisorError(
            "this environment variable holds characters that no key has", where=spec.api_key_env, do="set it again."
        )
    return key


def _is_transport(error: Exception) -> bool:
    from httpx import TransportError

    return isinstance(error, TransportError | OSError)


def _passing(error: Exception) -> bool:
    """Whether it may go well the next time: the line broke, or the server is busy."""
    busy = getattr(error, "status_code", None) in PASSING or hasattr(error, "retry_after_s")
    return busy or _is_transport(getattr(error, "source", error))


def _version() -> str:
    from importlib.metadata import version

    return version("qdrant-client")


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    return None if value is None else value.model_dump(mode="json", exclude_none=True)


def _at(payload: Any, path: str) -> Any:
    for key in path.split("."):
        payload = payload.get(key) if isinstance(payload, Mapping) else None
    return payload


def _paths(payload: Any, before: str = "", depth: int = 3) -> list[str]:
    """Where texts stand in a payload."""
    if not isinstance(payload, Mapping) or not depth:
        return [before] if isinstance(payload, str) and before else []
    return [path for key, one in payload.items() for path in _paths(one, f"{before}.{key}" if before else str(key), depth - 1)]


def _plain(value: Any) -> str:
    """A text that any encoder takes; nothing for what is no text."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _largest(vector: NDArray[np.float32]) -> list[int]:
    """Where the three largest numbers stand: other vectors have them elsewhere, and a last digit that a server rounds otherwise
    after it has moved a point changes nothing."""
    import numpy as np

    return [int(at) for at in np.argsort(-np.abs(vector), kind="stable")[:3]]


def _vector(found: Any, name: str | None) -> NDArray[np.float32] | None:
    """The vector of a point; None where it has none of that name, or it is no list of finite numbers."""
    import numpy as np

    if isinstance(found, Mapping):
        found = found.get(name or "")
    try:
        vector = np.asarray(found, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return vector if vector.ndim == 1 and len(vector) and bool(np.isfinite(vector).all()) else None
