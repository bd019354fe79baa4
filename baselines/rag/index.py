"""The index of a task's documents: their chunks and the vectors of these, kept on disk and brought up to date.

A folder holds `manifest.json`, which names one version folder (`v1`, `v2`, ...), and that folder the chunks, their keys, the
documents and the vectors. A new version is built beside the old one and the manifest switches to it in one step, so that no
half-built index is ever read. Vectors go by the hash of their passage: what was embedded once is embedded never again, in
whatever document it stands.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.rag.chunk_store import (
    KEY,
    KEY_BYTES,
    Chunks,
    ChunkWriter,
    Documents,
    Indexed,
    Rows,
    document_hash,
    mapped,
)
from baselines.rag.chunks import Chunk, Chunking, around
from baselines.rag.embedded import Embedded
from baselines.rag.manifest import AGAIN, VERSION, Manifest
from baselines.rag.sealed import Seal, SealedFile, damage, whole_parts
from evals.engines.embed import Embedder
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker, ignore
from evals.records import content_hash, jsonable, write_json
from evals.task.reading.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Passages that are embedded together: what a kill may cost, some seconds.
EMBEDDED_AT_ONCE = 2048
COPIED_AT_ONCE = 8192
MANIFEST = "manifest.json"


class Index:
    """Chunks in the order of their documents, and a unit vector of each. All of it is memory-mapped: an index that is open
    stays as it is, whatever another process does to the folder."""

    def __init__(self, folder: Path, manifest: Manifest, chunking: Chunking, embedder: Embedder) -> None:
        self.folder = folder
        self.manifest = manifest
        self.chunking = chunking
        self.embedder = embedder
        # Of chunks, chunking and embedding model.
        self.hash = manifest.hash
        here = folder / manifest.version
        self.chunks = Chunks(here)
        self.keys: NDArray[np.bytes_] = mapped(here / "keys", KEY)
        self.vectors: NDArray[np.float32] = mapped(here / "vectors", "<f4", manifest.dimension)
        self.documents = Documents(here)

    def around(self, chunk: Chunk, reach: int) -> Chunk:
        """The chunk joined with up to `reach` neighbours on each side, within its document.

        Raises KeyError where the chunk's document is not of this index.
        """
        here = self.documents.at(self._places[chunk.document]).first + chunk.position
        rows = range(max(0, here - reach), min(len(self.chunks), here + reach + 1))
        return around([one for one in map(self.chunks.__getitem__, rows) if one.document == chunk.document])

    @cached_property
    def _places(self) -> dict[str, int]:
        return self.documents.places()


def open_index(
    folder: Path, documents: Iterable[Document], chunking: Chunking, embedder: Embedder, on_event: OnEvent = ignore
) -> Index:
    """The index in `folder` of exactly these documents; it is built, or brought up to date, where it is not.

    Documents go by `id` and the hash of their text: one that is as it was keeps its chunks and vectors. Where nothing has
    changed nothing is written. The documents are read once, one after another. A killed build goes on where it stopped.

    Raises AdvisorError where the folder is the index of another embedding model or another chunking, where its manifest is
    damaged or of a newer version, and where nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, on_event):
            old = _opened(folder, chunking, embedder, on_event)
            _sweep(folder, old)
            new = _Build(folder, old, chunking, embedder, on_event).run(documents)
            _sweep(folder, new)
            _settle(new, built=new is not old)
            return new
    except OSError as error:
        raise AdvisorError(
            f"the index cannot be built: {error.strerror or error}",
            where=str(folder),
            do="free some disk space, then run the same command again; what was embedded is kept.",
        ) from error


@contextmanager
def alone(folder: Path, on_event: OnEvent) -> Iterator[None]:
    """No other process reads or writes the folder meanwhile; waits until none does."""
    with (folder / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_event(Note(f"Another process is at work on the index in {folder}: waiting until it has ended."))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(folder: Path, chunking: Chunking, embedder: Embedder, on_event: OnEvent) -> Index | None:
    """The index as it lies there; None where there is none, or one whose files are damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = Manifest.read(path)
    _check_identity(folder, manifest, chunking, embedder)
    here = folder / manifest.version
    wrong = [found for name, seal in manifest.files.items() if (found := damage(here / name, seal))]
    if not wrong:
        return Index(folder, manifest, chunking, embedder)
    kept = _salvage(folder, manifest)
    what = f"{'; '.join(wrong)}. It is built again; {kept:,} of {manifest.chunks:,} vectors are whole and kept."
    on_event(Note(f"The index in {folder} is damaged: {what}", level="warning"))
    path.unlink()
    return None


def _check_identity(folder: Path, manifest: Manifest, chunking: Chunking, embedder: Embedder) -> None:
    do = f"name another folder for this one, or {AGAIN}"
    if manifest.fingerprint != embedder.fingerprint:
        what = f"this index was built with another embedding model ({manifest.model}) than {embedder.name}"
        if manifest.model == embedder.name:
            what = f"this index was built with other weights of the embedding model {embedder.name}"
        raise AdvisorError(what, where=str(folder), do=do)
    if dict(manifest.chunking) != jsonable(chunking.settings):
        what = f"this index was built with another chunking ({manifest.chunking}) than {chunking.settings}"
        raise AdvisorError(what, where=str(folder), do=do)


def _salvage(folder: Path, manifest: Manifest) -> int:
    """Put the vectors that are whole by their checksums among those already embedded; how many."""
    import numpy as np

    here = folder / manifest.version
    whole = np.ones(manifest.chunks, dtype=bool)
    for name, width in (("keys", KEY_BYTES), ("vectors", 4 * manifest.dimension)):
        bytes_whole = np.zeros(manifest.chunks, dtype=np.int64)
        for start, end in whole_parts(here / name, manifest.files[name]):
            # A row may lie in two blocks.
            first, last = start // width, -(-end // width)
            at = np.arange(first, last) * width
            bytes_whole[first:last] += np.minimum(at + width, end) - np.maximum(at, start)
        whole &= bytes_whole == width
    rows = np.flatnonzero(whole)
    if not len(rows):
        return 0
    keys = _leading(here / "keys", KEY, 0)
    vectors = _leading(here / "vectors", "<f4", manifest.dimension)
    embedded = _embedded(folder, manifest.fingerprint, manifest.dimension)
    for start in range(0, len(rows), COPIED_AT_ONCE):
        some = rows[start : start + COPIED_AT_ONCE]
        embedded.append(keys[some], vectors[some])
    return len(rows)


def _leading(path: Path, kind: str, width: int) -> Any:
    """The whole rows of a file that may have been cut short (or grown)."""
    import numpy as np

    rows = path.stat().st_size // (np.dtype(kind).itemsize * (width or 1))
    return np.memmap(path, dtype=kind, mode="r", shape=(rows, width) if width else (rows,))


def _embedded(folder: Path, fingerprint: str, dimension: int) -> Embedded:
    return Embedded(folder / "embedded", fingerprint, dimension)


def _sweep(folder: Path, current: Index | None) -> None:
    """Remove what other versions, and builds that were killed, have left behind."""
    keep = current.manifest.version if current else ""
    for path in folder.iterdir():
        if VERSION.fullmatch(path.name) and path.name != keep:
            shutil.rmtree(path, ignore_errors=True)


def _settle(index: Index, *, built: bool) -> None:
    """Remove what was embedded on the way. Where nothing had to be built, only if all of it is in the index: what a killed
    build embedded of documents that have gone may be wanted again."""
    path = index.folder / "embedded" / "keys"
    if built or not path.is_file() or (Rows(index.keys).find(_leading(path, KEY, 0)) >= 0).all():
        shutil.rmtree(path.parent, ignore_errors=True)


@dataclass(frozen=True)
class _Build:
    """One bringing up to date: chunks are written, new passages embedded, vectors put in order, and the manifest switched."""

    folder: Path
    old: Index | None
    chunking: Chunking
    embedder: Embedder
    on_event: OnEvent

    def run(self, documents: Iterable[Document]) -> Index:
        coming = iter(documents)
        same, first = self._same(coming)
        if self.old is not None and not first and same == self.old.manifest.documents:
            return self.old
        total = len(documents) if isinstance(documents, Sized) else 0
        here = self.folder / self._next()
        here.mkdir()
        written, files, digest = self._chunks(here, same, chain(first, coming), total)
        vectors, dimension, said = self._vectors(here)
        manifest = Manifest(
            model=self.embedder.name,
            fingerprint=self.embedder.fingerprint,
            dimension=dimension,
            chunking=self.chunking.settings,
            version=here.name,
            hash=content_hash([digest, self.chunking.settings, self.embedder.fingerprint]),
            documents=written.documents,
            chunks=written.rows,
            files={**files, "vectors": vectors},
        )
        write_json(self.folder / MANIFEST, manifest)
        where = f"{written.rows:,} passages of {written.documents:,} documents"
        self.on_event(Note(f"Index of {where} ({self.chunking.name}): {said}."))
        return Index(self.folder, replace(manifest, chunking=jsonable(manifest.chunking)), self.chunking, self.embedder)

    def _same(self, coming: Iterator[Document]) -> tuple[int, list[Document]]:
        """How many documents are as they were, in their places, and the first that is not."""
        before = iter(self.old.documents) if self.old else iter(())
        same = 0
        for document in coming:
            kept = next(before, None)
            if kept is None or kept.id != document.id or kept.sha256 != document_hash(document.text):
                return same, [document]
            same += 1
        return same, []

    def _next(self) -> str:
        return f"v{int(self.old.manifest.version[1:]) + 1 if self.old else 1}"

    def _chunks(self, here: Path, same: int, rest: Iterator[Document], total: int) -> tuple[ChunkWriter, dict[str, Seal], str]:
        """Write chunks, keys and documents: those that are as they were copied, the others cut anew."""
        writer = ChunkWriter(here)
        ticker = Ticker(self.on_event, "cutting the documents into passages", total, "documents") if total else None
        try:
            for kept in islice(self.old.documents, same) if self.old else ():
                self._copy(writer, kept)
            known = self.old.documents.places(same) if self.old else {}
            if ticker:
                ticker.advance(same)
            for document in rest:
                sha256 = document_hash(document.text)
                before = self._before(known.get(document.id))
                if before and before.sha256 == sha256:
                    self._copy(writer, before)
                else:
                    writer.write(document.id, sha256, self.chunking.split(document, self.embedder))
                if ticker:
                    ticker.advance()
            files, digest = writer.close()
        except BaseException:
            writer.abandon()
            raise
        return writer, files, digest

    def _before(self, place: int | None) -> Indexed | None:
        return self.old.documents.at(place) if self.old and place is not None else None

    def _copy(self, writer: ChunkWriter, kept: Indexed) -> None:
        if self.old is not None:
            writer.copy(kept, self.old.chunks, self.old.keys)

    def _vectors(self, here: Path) -> tuple[Seal, int, str]:
        """Embed what is new, and put all vectors in the order of the chunks; the file's seal, its width, and what was done."""
        import numpy as np

        keys: NDArray[np.bytes_] = mapped(here / "keys", KEY)
        dimension = self.old.manifest.dimension if self.old and len(self.old.chunks) else self.embedder.dimension
        embedded = _embedded(self.folder, self.embedder.fingerprint, dimension)
        kept = Rows(self.old.keys).find(keys) if self.old else np.full(len(keys), -1, dtype=np.int64)
        missing = np.flatnonzero(kept < 0)
        # Each distinct passage once, at its first place.
        _, firsts = np.unique(keys[missing], return_index=True)
        missing = missing[np.sort(firsts)]
        new = missing[Rows(embedded.keys()).find(keys[missing]) < 0]
        earlier = len(missing) - len(new)
        if earlier:
            self.on_event(Note(f"Going on where an earlier build stopped: {earlier:,} passages are embedded already."))
        self._embed(here, keys, new, embedded)
        seal = self._gather(here, keys, kept, embedded, dimension)
        return seal, dimension, self._said(keys, kept, len(new), earlier)

    def _embed(self, here: Path, keys: NDArray[np.bytes_], rows: NDArray[np.int64], embedded: Embedded) -> None:
        import numpy as np

        if not len(rows):
            return
        chunks = Chunks(here)
        ticker = Ticker(self.on_event, "embedding the passages", len(rows), "passages")
        for start in range(0, len(rows), EMBEDDED_AT_ONCE):
            some = rows[start : start + EMBEDDED_AT_ONCE]
            vectors = np.asarray(self.embedder.embed([readable(chunks[row].passage) for row in some]), dtype=np.float32)
            if vectors.shape != (len(some), embedded.dimension) or not np.isfinite(vectors).all():
                raise AdvisorError(
                    f"the embedding model gave vectors of shape {vectors.shape}, some perhaps not finite, for {len(some)} passages",
                    where=self.embedder.name,
                    do="name another embedding model in the task file (`embeddings`).",
                )
            embedded.append(keys[some], vectors)
            ticker.advance(len(some))

    def _gather(
        self, here: Path, keys: NDArray[np.bytes_], kept: NDArray[np.int64], embedded: Embedded, dimension: int
    ) -> Seal:
        """Write `vectors`: each row from the old version (`kept`, -1 where it is not there) or from what was embedded."""
        import numpy as np

        file = SealedFile(here / "vectors")
        known, vectors = Rows(embedded.keys()), embedded.vectors()
        for start in range(0, len(keys), COPIED_AT_ONCE):
            old = kept[start : start + COPIED_AT_ONCE]
            block = np.empty((len(old), dimension), dtype="<f4")
            is_new = old < 0
            if self.old is not None:
                block[~is_new] = self.old.vectors[old[~is_new]]
            block[is_new] = vectors[known.find(keys[start : start + len(old)][is_new])]
            file.write(block.tobytes())
        return file.close()

    def _said(self, keys: NDArray[np.bytes_], kept: NDArray[np.int64], new: int, earlier: int) -> str:
        import numpy as np

        unchanged = int((kept >= 0).sum())
        gone = int((Rows(keys).find(np.asarray(self.old.keys)) < 0).sum()) if self.old else 0
        equal = len(keys) - unchanged - new - earlier
        words = [f"{unchanged:,} kept", f"{new:,} embedded"]
        words += [f"{earlier:,} embedded earlier"] if earlier else []
        words += [f"{equal:,} equal to others"] if equal else []
        return ", ".join([*words, f"{gone:,} removed"])


def readable(passage: str) -> str:
    """A lone surrogate, which JSON can hold and no tokeniser reads, becomes a question mark."""
    return passage.encode("utf-8", "replace").decode()
