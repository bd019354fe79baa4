"""Embeddings that were paid for while an index was being built: on disk block by block, so that a killed build loses at most one.

A build that ends puts them into the index's vectors and deletes this. One that was killed leaves it behind; the next one reads
it, whatever has become of the documents meanwhile, since a vector goes by the hash of its passage.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.rag.chunk_store import KEY, KEY_BYTES, mapped
from evals.records import SCHEMA_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embedded:
    """Keys and vectors in the order in which they were embedded. The log's first line says by which model; each further one
    closes a block: rows so far, and the CRC-32 of its vectors and keys."""

    def __init__(self, folder: Path, model: str, dimension: int) -> None:
        self.dimension = dimension
        self._head = {"schema_version": SCHEMA_VERSION, "model": model, "dimension": dimension}
        folder.mkdir(exist_ok=True)
        self._log, self._keys, self._vectors = folder / "log.jsonl", folder / "keys", folder / "vectors"
        self.rows = self._whole()
        self._cut()

    def append(self, keys: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> None:
        """Vectors (n, dimension) of n keys. When this returns, a kill loses none of them."""
        body = vectors.astype("<f4").tobytes()
        names = keys.tobytes()
        _append(self._vectors, body)
        _append(self._keys, names)
        self.rows += len(keys)
        line = {"rows": self.rows, "crc32": zlib.crc32(names, zlib.crc32(body))}
        # Last: a line stands for what is on the disk already.
        _append(self._log, (json.dumps(line) + "\n").encode())

    def keys(self) -> NDArray[np.bytes_]:
        found: NDArray[np.bytes_] = mapped(self._keys, KEY)
        return found

    def vectors(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = mapped(self._vectors, "<f4", self.dimension)
        return found

    def _whole(self) -> int:
        """Rows up to the first block that is torn, damaged or of another model; the log is cut there."""
        lines = self._log.read_bytes().split(b"\n")[:-1] if self._log.is_file() else []
        if not lines or _object(lines[0]) != self._head:
            self._log.write_bytes((json.dumps(self._head) + "\n").encode())
            return 0
        self._keys.touch()
        self._vectors.touch()
        most = min(self._keys.stat().st_size // KEY_BYTES, self._vectors.stat().st_size // (4 * self.dimension))
        rows, good = 0, len(lines[0]) + 1
        with self._keys.open("rb") as keys, self._vectors.open("rb") as vectors:
            for line in lines[1:]:
                block = _object(line)
                after = block.get("rows")
                if not isinstance(after, int) or not rows < after <= most:
                    break
                count = after - rows
                body, names = vectors.read(count * 4 * self.dimension), keys.read(count * KEY_BYTES)
                if zlib.crc32(names, zlib.crc32(body)) != block.get("crc32"):
                    break
                rows, good = after, good + len(line) + 1
        os.truncate(self._log, good)
        return rows

    def _cut(self) -> None:
        """Leave no torn block before the next one."""
        for path, width in ((self._keys, KEY_BYTES), (self._vectors, 4 * self.dimension)):
            path.touch()
            os.truncate(path, self.rows * width)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
