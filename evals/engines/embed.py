"""Sentence embeddings: the one place where sentence-transformers is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engines.machine import bf16_units
from evals.engines.models import resolve_embeddings, weights_fingerprint
from evals.errors import AdvisorError
from evals.events import OnEvent, Ticker, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Texts by which the cost of embedding is measured.
TIMED = 64


class Embedder:
    """Texts -> unit vectors (n, d) in float32, so that a dot product is the cosine. Each distinct text is embedded once."""

    def __init__(self, name: str, on_event: OnEvent = ignore) -> None:
        self.name = name
        self.on_event = on_event
        self._known: dict[str, NDArray[np.float32]] = {}

    @cached_property
    def folder(self) -> Path:
        return resolve_embeddings(self.name, self.on_event)

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.folder)

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            return SentenceTransformer(str(self.folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise AdvisorError(
                f"the embedding model cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
                where=str(self.folder),
                do="name a folder or Hub name that sentence-transformers can load.",
            ) from error

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The word pieces of each text, as the model reads them, without the marks at its ends."""
        return [[piece for piece, special in some if not special] for some in self._pieces(texts)]

    def piece_vectors(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Unit vectors (n, d) of the n word pieces of each text."""
        import numpy as np

        found = []
        for start in range(0, len(texts), 64):
            batch = list(texts[start : start + 64])
            read = self._model.encode(batch, output_value="token_embeddings", convert_to_numpy=False, show_progress_bar=False)
            for vectors, some in zip(read, self._pieces(batch), strict=True):
                plain = [at for at, (_, special) in enumerate(some) if not special]
                pieces = np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)[plain]
                found.append(pieces / np.maximum(np.linalg.norm(pieces, axis=1, keepdims=True), 1e-12))
        return found

    def _pieces(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """(word piece, 1 where it is a mark and no word) of each text."""
        if not texts:
            return []
        model = self._model
        read = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, return_special_tokens_mask=True)
        return [list(zip(*one, strict=True)) for one in zip(read["input_ids"], read["special_tokens_mask"], strict=True)]

    def seconds_each(self, texts: Sequence[str]) -> float:
        """Seconds that one of these texts costs, as up to `TIMED` of them take when they are embedded together, anew.

        Texts are remembered here, so that whoever comes second to the same questions would seem to embed them in no time.
        """
        some = list(dict.fromkeys(texts[:: max(1, len(texts) // TIMED)]))[:TIMED]
        if not some:
            return 0.0
        self._embed(some[:1])  # loads the weights where they are not, which is no cost of a question
        started = time.perf_counter()
        self._embed(some)
        return (time.perf_counter() - started) / len(some)

    def _embed(self, batch: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        with _one_thread() if len(batch) == 1 else nullcontext():
            found = self._model.encode(list(batch), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `encode`, in bulk: nothing is remembered, and matrix products are in bfloat16 where the processor has units for
        it (2.4 times the speed; cosines to the exact vectors were 0.9999 and more)."""
        import numpy as np
        import torch

        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        quick = self._model.device.type == "cpu" and bool(bf16_units())
        with torch.autocast("cpu", dtype=torch.bfloat16) if quick else nullcontext():
            vectors = np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32)
        unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or 0)

    @property
    def window(self) -> int:
        """Tokens of a text that the model reads, its marks at the ends among them; the rest of a longer one is not seen."""
        return int(self._model.max_seq_length or self._model.tokenizer.model_max_length)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of the whole text stands, (from, to) in characters, without the marks at the ends."""
        read = self._model.tokenizer(
            text,
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [(start, end) for start, end in read["offset_mapping"] if end > start]

    def encode(self, texts: Sequence[str], task: str = "embedding") -> NDArray[np.float32]:
        import numpy as np

        new = sorted({text for text in texts if text not in self._known}, key=len)
        ticker = Ticker(self.on_event, task, len(new), "texts") if len(new) > 64 else None
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            self._known.update(zip(batch, self._embed(batch), strict=True))
            if ticker:
                ticker.advance(len(batch))
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.stack([self._known[text] for text in texts])


@contextmanager
def _one_thread() -> Iterator[None]:
    """A short text has nothing to share out: more threads wait for each other, and for those of other libraries that spin."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
