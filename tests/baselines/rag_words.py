"""An embedding model without weights, and what tests of an index look at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.engines.embed import Embedder
from evals.events import Event, Note

WIDTH = 16


@cache
def direction(word: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


class WordsEmbedder(Embedder):
    """The unit sum of a direction for each word: texts are alike that share words. `asked` is every text it embedded in bulk."""

    fingerprint = "0" * 64  # type: ignore[assignment]
    dimension = WIDTH  # type: ignore[assignment]
    window = 64  # type: ignore[assignment]

    def __init__(self, name: str = "words") -> None:
        super().__init__(name)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return self._embed(texts)

    def _embed(self, batch: Sequence[str]) -> NDArray[np.float32]:
        sums = [np.sum([direction(word) for word in re.findall(r"\w+", text)] or [direction("")], axis=0) for text in batch]
        return np.stack([one / np.linalg.norm(one) for one in sums]).astype(np.float32)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in re.finditer(r"\S+", text)]

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0] * min(len(text.split()), self.window - 2) for text in texts]


class Notes:
    """A listener that keeps what is said to people."""

    def __init__(self) -> None:
        self.info: list[str] = []
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            (self.warnings if event.level == "warning" else self.info).append(event.text)


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder: its inode, size and time of change."""
    every = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): (one.st_ino, one.st_size, one.st_mtime_ns) for path, one in every.items()}
