"""Chunks and documents of an index on disk: read where they lie, never all in memory.

`chunks.jsonl` holds one chunk a line in the order of the documents, `offsets` (int64) where each line begins, `keys` (16 bytes
each) the hash of what is embedded of each chunk, and `documents.jsonl` each document's id, sha256, first row and number of rows.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from baselines.rag.chunks import Chunk
from baselines.rag.sealed import Seal, SealedFile
from evals.errors import AdvisorError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY = "S16"
KEY_BYTES = 16
FILES = ("chunks.jsonl", "offsets", "keys", "documents.jsonl")


def passage_key(passage: str) -> bytes:
    """16 bytes that stand for what is embedded. Two passages of one key are one passage: with a hundred million of them the
    odds of a wrong match are 1 in 10^22."""
    return hashlib.blake2b(passage.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def document_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Indexed:
    """A document of an index: its chunks are the rows from `first` to `first + count`."""

    id: str
    sha256: str
    first: int
    count: int


class Chunks(Sequence[Chunk]):
    """The chunks of an index: each is read from the disk when it is asked for. Raises AdvisorError where a line is damaged."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "chunks.jsonl"
        self._offsets = mapped(folder / "offsets", "<i8")
        self._lines = _bytes(self._path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, at: int) -> Chunk: ...
    @overload
    def __getitem__(self, at: slice) -> list[Chunk]: ...
    def __getitem__(self, at: int | slice) -> Chunk | list[Chunk]:
        if isinstance(at, slice):
            return [self._read(row) for row in range(*at.indices(len(self)))]
        row = at + len(self) if at < 0 else at
        if not 0 <= row < len(self):
            raise IndexError(at)
        return self._read(row)

    def lines(self, first: int, after: int) -> memoryview:
        """The lines of the rows from `first` to before `after`, as they stand."""
        return memoryview(self._lines)[int(self._offsets[first]) : int(self._offsets[after])]

    def ends(self, first: int, after: int) -> NDArray[np.int64]:
        """Where the line of each of these rows ends, in bytes after the beginning of the first."""
        ends: NDArray[np.int64] = self._offsets[first + 1 : after + 1] - self._offsets[first]
        return ends

    def _read(self, row: int) -> Chunk:
        line = bytes(self.lines(int(row), int(row) + 1))
        try:
            return Chunk(**json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, TypeError, RecursionError) as error:
            raise AdvisorError(
                "this chunk of the index is damaged",
                where=f"{self._path}:{int(row) + 1}",
                do="delete the folder of the index; it is built again from the documents.",
            ) from error


class Rows:
    """Keys -> the first row that each stands in: a sorted copy of the keys, searched by bisection (32 bytes a key)."""

    def __init__(self, keys: NDArray[np.bytes_]) -> None:
        import numpy as np

        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """The row of each key, -1 where it is unknown."""
        import numpy as np

        if not len(self._sorted) or not len(keys):
            return np.full(len(keys), -1, dtype=np.int64)
        # In order, so that a bisection finds the memory that the one before it has read.
        order = np.argsort(keys, kind="stable")
        at = np.minimum(np.searchsorted(self._sorted, keys[order]), len(self._sorted) - 1)
        found = np.empty(len(keys), dtype=np.int64)
        found[order] = np.where(self._sorted[at] == keys[order], self._order[at], -1)
        return found


class ChunkWriter:
    """Writes the files of a new version, one document after another."""

    def __init__(self, folder: Path) -> None:
        self.rows = self.documents = 0
        self._files = {name: SealedFile(folder / name) for name in FILES}
        self._hash = hashlib.sha256()
        self._files["offsets"].write((0).to_bytes(8, "little"))

    def write(self, document: str, sha256: str, chunks: Iterable[Chunk]) -> None:
        """A document that is new, or not as it was."""
        lines, ends, keys, end = [], [], [], 0
        for chunk in chunks:
            line = (json.dumps(asdict(chunk), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            end += len(line)
            lines.append(line)
            ends.append(end)
            keys.append(passage_key(chunk.passage))
        self._document(document, sha256, len(ends))
        self._rows(b"".join(lines), ends, b"".join(keys))

    def copy(self, kept: Indexed, chunks: Chunks, keys: NDArray[np.bytes_]) -> None:
        """A document that is as it was, from where its chunks lie."""
        after = kept.first + kept.count
        self._document(kept.id, kept.sha256, kept.count)
        self._rows(chunks.lines(kept.first, after), chunks.ends(kept.first, after), keys[kept.first : after].tobytes())

    def _document(self, name: str, sha256: str, count: int) -> None:
        line = json.dumps(asdict(Indexed(name, sha256, self.rows, count)), ensure_ascii=False) + "\n"
        self._files["documents.jsonl"].write(line.encode("utf-8", "surrogatepass"))
        self.documents += 1
        self.rows += count

    def _rows(self, lines: bytes | memoryview, ends: Any, keys: bytes) -> None:
        import numpy as np

        begin = self._files["chunks.jsonl"].size
        self._files["chunks.jsonl"].write(lines)
        self._hash.update(lines)
        self._files["offsets"].write((np.asarray(ends, dtype="<i8") + begin).astype("<i8").tobytes())
        self._files["keys"].write(keys)

    def close(self) -> tuple[dict[str, Seal], str]:
        """The seal of each file, and the sha256 of all chunks."""
        return {name: file.close() for name, file in self._files.items()}, self._hash.hexdigest()

    def abandon(self) -> None:
        for file in self._files.values():
            file.abandon()


class Documents:
    """The documents of an index in order, read anew each time. Raises AdvisorError where a line is damaged."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "documents.jsonl"
        # Kept open: another process may bring the index up to date and remove this version.
        self._lines = _bytes(self._path)

    def __iter__(self) -> Iterator[Indexed]:
        return (one for one, _ in self._read(0))

    def at(self, place: int) -> Indexed:
        """The document whose line begins at `place`, as `places` says."""
        return next(self._read(place))[0]

    def places(self, skipped: int = 0) -> dict[str, int]:
        """Where the line of each document stands by its id, but for the first `skipped`. A million ids take 200 MB: the
        records themselves would take three times as much."""
        return {one.id: place for one, place in islice(self._read(0), skipped, None)}

    def _read(self, at: int) -> Iterator[tuple[Indexed, int]]:
        while at < len(self._lines):
            end = self._lines.find(b"\n", at) + 1 or len(self._lines)
            try:
                yield Indexed(**json.loads(self._lines[at:end].decode("utf-8", "surrogatepass"))), at
            except (ValueError, TypeError, RecursionError) as error:
                raise AdvisorError(
                    "this record of the index is damaged",
                    where=f"{self._path}, byte {at:,}",
                    do="delete the folder of the index; it is built again from the documents.",
                ) from error
            at = end


def mapped(path: Path, kind: str, width: int = 0) -> Any:
    """A file as an array (n,), or (n, width), of which only what is used is read. An empty file cannot be mapped."""
    import numpy as np

    if not path.stat().st_size:
        return np.zeros((0, width) if width else 0, dtype=kind)
    flat = np.memmap(path, dtype=kind, mode="r")
    return flat.reshape(-1, width) if width else flat


def _bytes(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
