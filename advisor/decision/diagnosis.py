"""What the probes say about why the model scores as it does: each an effect on the same items, with its interval and a sentence.

Nothing here decides: the effects say where a gain could come from (form, knowledge, retrieval, examples, sampling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from advisor.decision.compare import span_of
from evals.scores import Scores
from evals.statistics.paired import Interval, mean_interval, paired_difference
from evals.statistics.passes import pass_at_k


@dataclass(frozen=True)
class Effect:
    """A difference of scores (`behaviour`: a slope, in score per doubling) with its 95% interval on n items."""

    name: str
    difference: float
    low: float
    high: float
    n: int
    sentence: str


def diagnose(probes: Sequence[Scores], arms: Sequence[Scores], groups: Sequence[str] | None) -> tuple[Effect, ...]:
    """The effects that these probes carry, by their names (`baselines/probes.py`); `arms` are the real candidates on the same items."""
    by_name = {one.candidate: one for one in probes}
    retrieved = max((arm for arm in arms if arm.kind == "rag"), key=lambda arm: arm.mean, default=None)
    plain = by_name.get("shots_0") or next((arm for arm in arms if arm.candidate == "zero_shot"), None)
    found = [
        _format(plain, groups) if plain else None,
        _knowledge(by_name, groups),
        _retrieval(by_name, retrieved, groups) if retrieved else None,
        _behaviour(by_name, groups),
        _sampling([one for name, one in by_name.items() if name.startswith("sample_")], groups),
    ]
    return tuple(one for one in found if one)


def _effect(name: str, a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None, sentence: str) -> Effect:
    """`sentence` has a place for the difference in words."""
    found = paired_difference(a, b, groups)
    told = sentence.format(span_of(found.estimate, found.low, found.high, found.n))
    return Effect(name, found.estimate, found.low, found.high, found.n, told)


def _format(plain: Scores, groups: Sequence[str] | None) -> Effect:
    tolerant = [item.metrics.get("tolerant", item.score) for item in plain.items]
    sentence = f"Format: what {plain.candidate} said, read tolerantly instead of strictly, gains {{}}: that much is form, not substance."
    return _effect("format", tolerant, plain.values(), groups, sentence)


def _knowledge(probes: Mapping[str, Scores], groups: Sequence[str] | None) -> Effect | None:
    gold, irrelevant = probes.get("gold_passage"), probes.get("irrelevant_passage")
    if not (gold and irrelevant):
        return None
    sentence = (
        f"Knowledge: with the gold passage the model scores {gold.mean:.3f}, with an irrelevant one of equal length "
        f"{irrelevant.mean:.3f}: {{}}. Even with the gold passage {100 * (1 - gold.mean):.1f} points are missing."
    )
    return _effect("knowledge", gold.values(), irrelevant.values(), groups, sentence)


def _retrieval(probes: Mapping[str, Scores], retrieved: Scores, groups: Sequence[str] | None) -> Effect | None:
    perfect = probes.get("perfect_search")
    if perfect is not None:
        sentence = f"Retrieval loss: {retrieved.candidate} with the misses of its search mended, minus as it is: {{}}."
        return _effect("retrieval_loss", perfect.values(), retrieved.values(), groups, sentence)
    gold = probes.get("gold_passage")
    if gold is None:
        return None
    sentence = f"Retrieval loss: the gold passage minus what {retrieved.candidate} found: {{}}."
    return _effect("retrieval_loss", gold.values(), retrieved.values(), groups, sentence)


def _behaviour(probes: Mapping[str, Scores], groups: Sequence[str] | None) -> Effect | None:
    """The slope of each item's score over log2(1 + demonstrations), by least squares, then its mean over the items."""
    shown = sorted((int(name.removeprefix("shots_")), one) for name, one in probes.items() if name.startswith("shots_"))
    if len(shown) < 2:
        return None
    doublings = np.array([math.log2(1 + count) for count, _ in shown])
    away = doublings - doublings.mean()
    slopes = np.array([one.values() for _, one in shown]).T @ away / (away @ away)
    found: Interval = mean_interval([float(one) for one in slopes], groups)
    scores = ", ".join(f"{one.mean:.3f} with {count}" for count, one in shown)
    sentence = (
        f"Behaviour: the model scores {scores} demonstrations, "
        f"{span_of(found.estimate, found.low, found.high, found.n)} for each doubling."
    )
    return Effect("behaviour", found.estimate, found.low, found.high, found.n, sentence)


def _sampling(samples: Sequence[Scores], groups: Sequence[str] | None) -> Effect | None:
    if len(samples) < 2:
        return None
    scores = np.array([one.values() for one in samples]).T
    one, best = pass_at_k(scores, 1), pass_at_k(scores, len(samples))
    sentence = (
        f"Sampling: one draw scores {one.mean():.3f}, the best of {len(samples)} draws {best.mean():.3f}: {{}}. "
        "That is what voting, a verifier or reinforcement could find at most in them."
    )
    return _effect("sampling", best.tolist(), one.tolist(), groups, sentence)
