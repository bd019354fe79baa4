"""Label noise: a tenth of banking77's labels flipped, and how many of the flips stand at the top of the list."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
from harness import Bench, bench_data
from numpy.typing import NDArray

from evals.engines.embed import Embedder
from evals.engines.engine import Message
from evals.engines.models import EMBEDDING_MODEL
from evals.task.checks.findings import Finding
from evals.task.checks.label_noise import label_noise
from evals.task.example import Example
from evals.task.reading.formats import Row

SHARE = 0.1
GOAL = 0.6
SECONDS = 25.0
FAST_ROWS = 2500
SHOWN = 10


def planted_flips(bench: Bench, fast: bool) -> None:
    """Flip a tenth of the training labels, twice: to any other label, and to the likeliest wrong one (nearest centroid)."""
    path = bench_data() / "banking77" / "train.jsonl"
    if not path.is_file():
        bench.lacks("planted label flips: banking77 is not in the data folder")
        return
    bodies = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if fast:
        # Whole classes, so that each keeps its rows.
        kept = sorted({body["output"] for body in bodies})[: 77 * FAST_ROWS // len(bodies)]
        bodies = [body for body in bodies if body["output"] in kept]
    texts, labels = [body["input"] for body in bodies], [body["output"] for body in bodies]
    started = time.perf_counter()
    vectors = Embedder(EMBEDDING_MODEL).encode(texts)
    bench.figure(
        "label_noise", {"rows": len(texts), "labels": len(set(labels)), "embedding_seconds": time.perf_counter() - started}
    )
    natural = label_noise(_rows(texts, labels), vectors, 0)
    doubted = {int(one.places[0].id) for one in natural if one.places}
    bench.figure("label_noise_unplanted", {"flagged": len(doubted), "estimated_share": natural[-1].value or 0.0})
    for how, others in (("random", _any_other(labels)), ("look_alike", _look_alike(labels, vectors))):
        planted = np.random.default_rng(0).choice(len(labels), round(SHARE * len(labels)), replace=False)
        given = list(labels)
        for at in planted:
            given[at] = others[at]
        started = time.perf_counter()
        found = label_noise(_rows(texts, given), vectors, 0)
        _report(bench, how, found, set(planted.tolist()), doubted, time.perf_counter() - started)
        if how == "random":
            _natural(found, texts, set(planted.tolist()))


def _report(bench: Bench, how: str, found: Sequence[Finding], planted: set[int], doubted: set[int], seconds: float) -> None:
    ranked = [int(one.places[0].id) for one in found if one.places]
    top = ranked[: len(planted)]
    others = set(ranked) - planted
    precision = len(planted & set(top)) / max(1, len(top))
    bench.figure(
        f"label_flips_{how}",
        {
            "planted": len(planted),
            "flagged": len(ranked),
            "precision_at_100": len(planted & set(ranked[:100])) / 100,
            "precision_top_as_many_as_planted": precision,
            "precision_of_flagged": len(planted & set(ranked)) / max(1, len(ranked)),
            "recall_of_flagged": len(planted & set(ranked)) / len(planted),
            # Rows that are doubted with their own labels too: noise that the data came with.
            "others_doubted_unplanted": len(others & doubted) / max(1, len(others)),
            "estimated_share": found[-1].value or 0.0,
            "seconds": seconds,
        },
    )
    bench.goal(f"label flips ({how}): precision among the top flips", GOAL, precision, precision >= GOAL)
    if how == "random" and not bench.fast:
        bench.goal("label noise of 10,000 rows (seconds)", SECONDS, seconds, seconds < SECONDS)


def _natural(found: Sequence[Finding], texts: Sequence[str], planted: set[int]) -> None:
    """What stands high on the list and was not planted, for a reader: banking77 has label noise of its own."""
    others = [one for one in found if one.places and int(one.places[0].id) not in planted][:SHOWN]
    print(f"the first {len(others)} of the list that were not planted:")
    for one in others:
        print(f"  {texts[int(one.places[0].id)][:100]!r}: given {one.details['given']}, suggested {one.details['suggested']}")


def _rows(texts: Sequence[str], labels: Sequence[str]) -> list[Row]:
    return [
        Row(Example(str(at), (Message("user", text),), label), "train.jsonl", at + 1)
        for at, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def _any_other(labels: Sequence[str]) -> list[str]:
    names = sorted(set(labels))
    steps = np.random.default_rng(1).integers(1, len(names), len(labels))
    return [names[(names.index(label) + int(step)) % len(names)] for label, step in zip(labels, steps, strict=True)]


def _look_alike(labels: Sequence[str], vectors: NDArray[np.float32]) -> list[str]:
    """For each row the label, other than its own, whose rows' mean is nearest to it: the flip that a tired annotator makes."""
    names, own = np.unique(list(labels), return_inverse=True)
    means = np.stack([vectors[own == at].mean(axis=0) for at in range(len(names))])
    likeness = vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    likeness[np.arange(len(own)), own] = -np.inf
    return [str(names[at]) for at in likeness.argmax(axis=1)]
