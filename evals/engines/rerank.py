"""Cross-encoders: a question and a passage are read together, and one number says how well they fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engines.machine import bf16_units
from evals.engines.models import resolve_reranker, weights_fingerprint
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH = 32
# Above this many pairs, progress is shown.
MANY = 256

Pair = tuple[str, str]


class Reranker:
    """(question, passage) -> score, float32, higher is better: the model's logit, since a sigmoid makes equals of the best.

    Each distinct pair is read once: rankings of the same questions are asked for again and again while pipelines race.
    """

    def __init__(self, name: str, on_event: OnEvent = ignore) -> None:
        self.name = name
        self.on_event = on_event
        self._known: dict[Pair, float] = {}

    @cached_property
    def folder(self) -> Path:
        return resolve_reranker(self.name, self.on_event)

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.folder)

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder
        from torch.nn import Identity
        from transformers.utils import logging

        logging.disable_progress_bar()
        settings = {"use_safetensors": True}
        try:
            model = CrossEncoder(
                str(self.folder),
                trust_remote_code=False,
                local_files_only=True,
                activation_fn=Identity(),
                model_kwargs=settings,
            )
            labels = int(model.num_labels)
        except Exception as error:
            raise AdvisorError(
                f"the reranker cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
                where=str(self.folder),
                do="name a folder or Hub name of a cross-encoder that sentence-transformers can load.",
            ) from error
        if labels != 1:
            raise AdvisorError(
                f"this is no reranker: it gives {labels} scores for a pair, not one",
                where=str(self.folder),
                do="name a cross-encoder for ranking, such as cross-encoder/ms-marco-MiniLM-L6-v2.",
            )
        return model

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """The score of each pair. A pair longer than the model's window is cut at the longer side, mostly the passage."""
        import numpy as np

        # Neighbours in length share a batch, or padding would be most of the work.
        new = sorted(dict.fromkeys(pair for pair in pairs if pair not in self._known), key=lambda pair: sum(map(len, pair)))
        ticker = Ticker(self.on_event, "reranking passages", len(new), "passages") if len(new) > MANY else None
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._known.update(zip(batch, self._read(batch), strict=True))
            if ticker:
                ticker.advance(len(batch))
        return np.asarray([self._known[pair] for pair in pairs], dtype=np.float32)

    def _read(self, batch: Sequence[Pair]) -> list[float]:
        import torch

        quick = self._model.device.type == "cpu" and bool(bf16_units())
        with torch.autocast("cpu", dtype=torch.bfloat16) if quick else nullcontext():
            scores = self._model.predict(list(batch), batch_size=BATCH, show_progress_bar=False)
        return [float(score) for score in scores]


def find_reranker(name: str, on_event: OnEvent = ignore) -> Reranker | None:
    """The reranker of this name; None where it is not here and cannot be fetched, which is said aloud.

    Nothing is loaded yet: that its weights can be used shows when it first scores.
    """
    found = Reranker(name, on_event)
    try:
        found.folder  # noqa: B018
    except AdvisorError as error:
        on_event(Note(f"Reranking is skipped: {error.what} ({name}). {error.do[:1].upper()}{error.do[1:]}", "warning"))
        return None
    return found
