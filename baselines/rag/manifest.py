"""The record of an index: what it is of, where it lies, and how to tell that its files are whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.rag.chunk_store import KEY_BYTES
from baselines.rag.sealed import Seal
from evals.errors import AdvisorError
from evals.records import read_json

VERSION = re.compile(r"v[1-9][0-9]{0,8}")
AGAIN = "delete the folder of the index; it is built again from the documents."


@dataclass(frozen=True)
class Manifest:
    """What an index is of and where it lies. `files` are the seals of the version's files by their names."""

    model: str
    fingerprint: str
    dimension: int
    chunking: Mapping[str, Any]
    version: str
    hash: str
    documents: int
    chunks: int
    files: Mapping[str, Seal]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises AdvisorError where the record is torn, foreign or of a newer version."""
        try:
            record = read_json(path)
            if not VERSION.fullmatch(record["version"]):
                raise ValueError("no version")
            names = ("model", "fingerprint", "version", "hash")
            texts = {name: str(record[name]) for name in names}
            numbers = {name: int(record[name]) for name in ("dimension", "documents", "chunks")}
            files = {str(name): Seal.read(seal) for name, seal in record["files"].items()}
            found = cls(**texts, **numbers, chunking=dict(record["chunking"]), files=files)  # type: ignore[arg-type]
            _check_sizes(found)
        except AdvisorError as error:
            raise AdvisorError(error.what, where=str(path), do=AGAIN) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AdvisorError("this record is damaged", where=str(path), do=AGAIN) from error
        return found


def _check_sizes(found: Manifest) -> None:
    """Raises ValueError or KeyError where the sizes of the files do not follow from the counts."""
    expected = {
        "offsets": 8 * (found.chunks + 1),
        "keys": KEY_BYTES * found.chunks,
        "vectors": 4 * found.dimension * found.chunks,
    }
    if any(found.files[name].size != size for name, size in expected.items()):
        raise ValueError("sizes and counts differ")
    if not {"chunks.jsonl", "documents.jsonl"} <= set(found.files):
        raise ValueError("a file is missing")
