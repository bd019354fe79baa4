"""Scores of probes with a planted cause, and with none: for the tests of the diagnosis, and for benchmarks on real probes.

An item's difficulty is shared by all that answer it, and in part by its cluster, as in real ones: candidates are right on much
the same items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from advisor.decision.diagnosis import Cause, Diagnosis, diagnose
from baselines.probes import HOLDS_ANSWER
from evals.scores import Score, Scores

DRAWS = 5
WRONG_ANSWERS = 4
# The correlation of two candidates on an item (of latent normals), and of two items of a cluster.
SHARED, CLUSTERED = 0.6, 0.3
# How far a draw strays from what the model answers greedily, in standard deviations of an item's difficulty.
STRAY = 0.6

Rate = tuple[float, float]


@dataclass(frozen=True)
class Plant:
    """`rates`: each candidate's (strict, tolerant) score; names as in `baselines/probes.py`, `zero_shot`, `few_shot`, `rag`, `trivial`.
    `drawn`: the rate that draws lean to, where they are made. `holding`: the gold passages hold the answers word for word."""

    rates: Mapping[str, Rate]
    drawn: float | None = None
    holding: bool = True


def same(*names: str, rate: float, tolerant: float | None = None) -> dict[str, Rate]:
    return dict.fromkeys(names, (rate, rate if tolerant is None else tolerant))


def shots(*rates: float | Rate) -> dict[str, Rate]:
    """`shots_0`, 2, 8 and 32, `zero_shot` as the first and `few_shot` as the third."""
    pairs = [one if isinstance(one, tuple) else (one, one) for one in rates]
    named = {f"shots_{count}": one for count, one in zip((0, 2, 8, 32), pairs, strict=True)}
    return named | {"zero_shot": pairs[0], "few_shot": pairs[2]}


BLIND = same("trivial", rate=0.05)
# What a real run would show of each cause, every probe bought; small differences elsewhere are no cause.
PLANTS: Mapping[Cause, Plant] = {
    "format": Plant(
        {**BLIND, **shots((0.25, 0.55), (0.40, 0.56), (0.50, 0.57), (0.55, 0.58))}
        | {"gold_passage": (0.27, 0.58), "irrelevant_passage": (0.24, 0.54)},
        drawn=0.50,
        holding=False,
    ),
    "knowledge": Plant(
        {**BLIND, **shots(0.22, 0.22, 0.24, 0.24), **same("rag", rate=0.62), **same("perfect_search", rate=0.68)}
        | same("gold_passage", rate=0.72)
        | same("irrelevant_passage", rate=0.20),
        drawn=0.24,
    ),
    "retrieval": Plant(
        {**BLIND, **shots(0.22, 0.22, 0.24, 0.24), **same("rag", rate=0.30), **same("perfect_search", rate=0.66)}
        | same("gold_passage", rate=0.70)
        | same("irrelevant_passage", rate=0.20),
        drawn=0.24,
    ),
    "behaviour": Plant(
        {**BLIND, **shots(0.20, 0.30, 0.42, 0.50)} | same("gold_passage", rate=0.24) | same("irrelevant_passage", rate=0.20),
        drawn=0.42,
        holding=False,
    ),
    "context_use": Plant(
        {**BLIND, **shots(0.20, 0.20, 0.22, 0.22), **same("rag", rate=0.26), **same("perfect_search", rate=0.30)}
        | same("gold_passage", rate=0.30)
        | same("irrelevant_passage", rate=0.20),
        drawn=0.22,
    ),
    "sampling": Plant({**BLIND, **shots(0.38, 0.40, 0.42, 0.42)}, drawn=0.64),
}


@dataclass(frozen=True)
class Items:
    """What the candidates are asked: the difficulty of each item (standard normal) and its cluster."""

    difficulty: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    groups: tuple[str, ...] | None


def items(chance: np.random.Generator, n: int, cluster: int = 1) -> Items:
    """n items, in clusters of `cluster` that share a part of their difficulty."""
    if cluster == 1:
        return Items(chance.normal(size=n), None)
    codes = np.arange(n) // cluster
    shared = chance.normal(size=codes[-1] + 1)[codes]
    difficulty = np.sqrt(CLUSTERED) * shared + np.sqrt(1 - CLUSTERED) * chance.normal(size=n)
    return Items(difficulty, tuple(f"g{code}" for code in codes))


def grown(
    plant: Plant, asked: Items, chance: np.random.Generator, *, graded: bool = False
) -> tuple[list[Scores], list[Scores]]:
    """(probes, arms) of one run in which that is planted."""
    found = [_answered(name, rates, asked, chance, plant, graded=graded) for name, rates in plant.rates.items()]
    if plant.drawn is not None:
        found += _draws(plant.drawn, asked, chance, graded=graded)
    return [one for one in found if one.kind == "probe"], [one for one in found if one.kind != "probe"]


KINDS = {"zero_shot": "prompt", "few_shot": "prompt", "rag": "rag", "trivial": "trivial"}


def _answered(name: str, rates: Rate, asked: Items, chance: np.random.Generator, plant: Plant, *, graded: bool) -> Scores:
    latent = _latent(asked, chance)
    strict, tolerant = (_scored(latent, rate, graded=graded) for rate in rates)
    trace: list[dict[str, object]] = [{HOLDS_ANSWER: True}] if name == "gold_passage" and plant.holding else []
    return _scores(name, KINDS.get(name, "probe"), strict, tolerant, chance, trace)


def _draws(rate: float, asked: Items, chance: np.random.Generator, *, graded: bool) -> list[Scores]:
    """Draws of one prompt stray from one another, around what it leans to on each item."""
    leaning = _latent(asked, chance)
    found = []
    for number in range(1, DRAWS + 1):
        strayed = (leaning + STRAY * chance.normal(size=len(leaning))) / np.sqrt(1 + STRAY**2)
        values = _scored(strayed, rate, graded=graded)
        found.append(_scores(f"sample_{number}", "probe", values, values, chance, []))
    return found


def _latent(asked: Items, chance: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    own = chance.normal(size=len(asked.difficulty))
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.sqrt(SHARED) * asked.difficulty + np.sqrt(1 - SHARED) * own
    return found


def _scored(latent: np.ndarray[tuple[int, ...], np.dtype[np.float64]], rate: float, *, graded: bool) -> list[float]:
    """0 or 1 with mean `rate`; graded: two steps between, with the same mean."""
    middle = NormalDist().inv_cdf(rate)
    steps = [0.0] if not graded else [-0.8, 0.0, 0.8]
    # Shifted thresholds would move the mean but for the middle one; they are set by their own rates around it.
    shares = [rate] if not graded else [rate + (1 - rate) * rate * step / 2 for step in steps]
    values = np.mean([latent < NormalDist().inv_cdf(share) for share in shares], axis=0) if graded else latent < middle
    return [round(float(one), 4) for one in values]


def _scores(
    name: str,
    kind: str,
    strict: Sequence[float],
    tolerant: Sequence[float],
    chance: np.random.Generator,
    trace: list[dict[str, object]],
) -> Scores:
    """Wrong answers differ, as real ones do: a vote does not gather them."""
    wrong = chance.integers(WRONG_ANSWERS, size=len(strict))
    said = [f"right {one}" if one > 0 else f"wrong {wrong[at]}" for at, one in enumerate(strict)]
    found = tuple(
        Score(f"q{at}", one, said[at], metrics={"tolerant": max(one, tolerant[at])}, trace=list(trace))
        for at, one in enumerate(strict)
    )
    return Scores(name, kind, "dev", "accuracy", found)


# For real probes as well.


def resampled(
    some: Sequence[Scores], groups: Sequence[str] | None, chance: np.random.Generator, count: int | None = None
) -> tuple[list[Scores], tuple[str, ...] | None]:
    """The same candidates on items (whole clusters) drawn with replacement, about `count` of them; each drawn anew is its own cluster."""
    n = len(some[0].items)
    members: dict[str, list[int]] = {}
    for at, name in enumerate(groups or map(str, range(n))):
        members.setdefault(name, []).append(at)
    names = list(members)
    places: list[int] = []
    codes: list[str] = []
    while len(places) < (count or n):
        drawn = members[names[int(chance.integers(len(names)))]]
        codes += [f"drawn {len(places)}"] * len(drawn)
        places += drawn
    found = [
        replace(one, items=tuple(replace(one.items[at], id=f"{number}") for number, at in enumerate(places))) for one in some
    ]
    return found, (None if groups is None else tuple(codes))


def without_cause(some: Sequence[Scores], chance: np.random.Generator) -> list[Scores]:
    """The same answers with nothing to find in them (A/A): on each item the candidates' answers change places at random, are read
    strictly, and all draws of an item say the same, so that no candidate, reading or vote is better than another.

    Traces go, so that no passage is known to hold an answer: that a passage which holds it changes nothing is a cause.
    """
    names = [one.candidate for one in some]
    bare = [[_bare(item) for item in one.items] for one in some]
    mixed = [[bare[int(at)][place] for at in chance.permutation(len(some))] for place in range(len(some[0].items))]
    first = next((at for at, name in enumerate(names) if name.startswith("sample_")), 0)
    source = [first if name.startswith("sample_") else at for at, name in enumerate(names)]
    return [replace(one, items=tuple(row[source[at]] for row in mixed)) for at, one in enumerate(some)]


def _bare(item: Score) -> Score:
    return replace(item, metrics={**item.metrics, "tolerant": item.score}, trace=[])


@dataclass(frozen=True)
class Tally:
    """How often each cause was named, in `runs` runs."""

    runs: int
    causes: Mapping[Cause, int] = field(default_factory=dict)

    def share(self, cause: Cause) -> float:
        return self.causes.get(cause, 0) / self.runs

    @property
    def mislabelled(self) -> float:
        """The share in which any cause was named: an error where there is none."""
        return (self.runs - self.causes.get("none", 0)) / self.runs


def tallied(found: Iterable[Diagnosis]) -> Tally:
    causes: dict[Cause, int] = {}
    for one in found:
        causes[one.cause] = causes.get(one.cause, 0) + 1
    return Tally(sum(causes.values()), causes)


def planted_runs(cause: Cause, runs: int, n: int, seed: int, cluster: int = 1, *, graded: bool = False) -> Tally:
    chance = np.random.default_rng([seed, *map(ord, cause)])
    found = []
    for _ in range(runs):
        asked = items(chance, n, cluster)
        found.append(diagnose(*grown(PLANTS[cause], asked, chance, graded=graded), asked.groups))
    return tallied(found)


def null_runs(rate: float, runs: int, n: int, seed: int, cluster: int = 1, *, graded: bool = False) -> Tally:
    """A/A: every probe and arm at the same rate, whatever is trivial among them too; draws stray from the answer that is voted."""
    names = ("zero_shot", "few_shot", "rag", "trivial", "shots_0", "shots_2", "shots_8", "shots_32", "perfect_search")
    plant = Plant(same(*names, "gold_passage", "irrelevant_passage", rate=rate), drawn=rate, holding=False)
    chance = np.random.default_rng([seed, round(1000 * rate), n, cluster, graded])
    found = []
    for _ in range(runs):
        asked = items(chance, n, cluster)
        found.append(diagnose(*grown(plant, asked, chance, graded=graded), asked.groups))
    return tallied(found)
