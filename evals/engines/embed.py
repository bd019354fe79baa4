"""Sentence embeddings: the one place where sentence-transformers is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engines.models import resolve_embeddings, weights_fingerprint
from evals.errors import AdvisorError
from evals.events import OnEvent, Ticker, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def encode(self, texts: Sequence[str], task: str = "embedding") -> NDArray[np.float32]:
        import numpy as np

        new = sorted({text for text in texts if text not in self._known}, key=len)
        ticker = Ticker(self.on_event, task, len(new), "texts") if len(new) > 64 else None
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            vectors = self._model.encode(batch, normalize_embeddings=True, show_progress_bar=False)
            self._known.update(zip(batch, np.asarray(vectors, dtype=np.float32), strict=True))
            if ticker:
                ticker.advance(len(batch))
        if not texts:
            return np.zeros((0, int(self._model.get_sentence_embedding_dimension() or 0)), dtype=np.float32)
        return np.stack([self._known[text] for text in texts])
