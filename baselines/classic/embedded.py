"""What it costs to embed a question that was never seen."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

from evals.engines.embed import Embedder

TIMED = 64


def seconds_to_embed(embedder: Embedder, texts: Sequence[str]) -> float:
    """Seconds for one of these texts, as up to `TIMED` of them take when they are embedded together.

    The embedder remembers texts, so that a second arm over the same questions would seem to embed them in no time;
    hence a copy of it (of the same loaded weights) that remembers nothing.
    """
    some = list(dict.fromkeys(texts[:: max(1, len(texts) // TIMED)]))[:TIMED]
    if not some:
        return 0.0
    forgetful = copy.copy(embedder)
    forgetful._known = {}
    forgetful.encode(some[:1])  # loads the weights where they are not, which is no cost of a question
    forgetful._known = {}
    started = time.perf_counter()
    forgetful.encode(some)
    return (time.perf_counter() - started) / len(some)
