"""All that was measured on dev before anything is recommended, and what can still be bought to know more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from advisor.decision.raced import Left
from evals.scores import Scores
from evals.task.spec import PricesSpec, TrafficSpec


@dataclass(frozen=True)
class Trained:
    """Weights that were trained on `rows` rows and then asked about every dev item.

    `full`: the recommended recipe on all rows, whose adapter is the one that would be used; else a short run, a point of the
    learning curve. `retrieving` are the same weights asked with retrieved passages, where there is retrieval. `seconds` of training.
    """

    rows: int
    seed: int
    full: bool
    scores: Scores
    retrieving: Scores | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainingPlan:
    """What training would take, by the trainer's estimate: `full_seconds` for all `rows`, and (rows, seconds) of each point of
    the learning curve that could be bought, the smallest first. Nested: a smaller subset is part of every larger one."""

    rows: int
    full_seconds: float
    subsets: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Purchase:
    """Evidence that is worth its price: probes by their name, or a training on `rows` rows (all of them where `full`)."""

    what: Literal["knowledge", "shots", "samples", "obedience", "perfect_search", "training"]
    because: str
    rows: int = 0
    seed: int = 0
    full: bool = False


@dataclass(frozen=True)
class Evidence:
    """`arms` are the candidates with unchanged weights that came through the race, on all dev items; `probes` what the diagnosis
    rests on; `trained` the trainings that were bought.

    `groups` names each item's cluster (None: every item is its own). `target` is the score that is good enough, `min_gain` the
    gain that training must bring at least. `plan` is None where training cannot be tried (`served`: the weights are on a
    server). `left` are those that left the race. `verifiable`: a program decides whether an answer is right; `preferences`
    counts pairs. `bought` names what was bought, whether or not it gave anything; `retrieval` tells in sentences what
    retrieval finds.
    """

    arms: tuple[Scores, ...]
    train_rows: int
    groups: tuple[str, ...] | None = None
    min_gain: float = 0.03
    target: float | None = None
    prices: PricesSpec = field(default_factory=PricesSpec)
    traffic: TrafficSpec | None = None
    probes: tuple[Scores, ...] = ()
    trained: tuple[Trained, ...] = ()
    plan: TrainingPlan | None = None
    served: bool = False
    verifiable: bool = False
    preferences: int = 0
    retrieval: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    bought: tuple[Purchase, ...] = ()
    spent: dict[str, float] = field(default_factory=dict)
