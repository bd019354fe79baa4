"""The race on dev: many ways to ask the model, of which only the best few are asked about every item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advisor.decision.raced import ALPHA, COME_THROUGH, ROUNDS, Left, Race, raced
from advisor.flow.run import reuse
from advisor.flow.session import Session
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.events import Event, Note, OnEvent, Ticker
from evals.records import content_hash, write_json
from evals.scores import Scores
from evals.task.load import Task


def race(
    task: Task,
    arms: Sequence[Candidate],
    session: Session,
    path: Path,
    on_event: OnEvent,
    *,
    come_through: int = COME_THROUGH,
) -> Race:
    """`raced` over `arms`, asked on dev. Written to `path`, and read from there where it was run on the same arms and rows by the
    same rules."""
    rules = ["e-values and schedule", ROUNDS, ALPHA, come_through]
    key = content_hash(
        [task.hash(), rules, [[arm.name, arm.settings, arm.engine.fingerprint if arm.engine else ""] for arm in arms]]
    )
    kept = reuse(path, key)
    if kept:
        left = tuple(Left(**one) for one in kept["left"])
        return Race(tuple(kept["through"]), left, kept["items"], kept["spent"], tuple(kept["equal"]), kept["answered"])
    asked = _Asked(task, arms, session, path.parent / "race", on_event)
    found = raced(
        [arm.name for arm in arms],
        [arm.kind for arm in arms],
        asked.tokens,
        asked,
        len(task.dev),
        come_through=come_through,
        seed=task.spec.seed,
        groups=[one.group for one in task.dev],
    )
    asked.done(found.spent)
    write_json(path, {"input_hash": key, **asdict(found)})
    return found


class _Asked:
    """Asks arms about more and more of dev, and tells how far it is."""

    def __init__(self, task: Task, arms: Sequence[Candidate], session: Session, folder: Path, on_event: OnEvent) -> None:
        self.task, self.arms, self.session, self.folder, self.on_event = task, arms, session, folder, on_event
        self.rows: list[int] = []
        self.last: dict[int, Scores] = {}
        self.ticker: Ticker | None = None

    def __call__(self, alive: Sequence[int], rows: Sequence[int]) -> NDArray[np.float64]:
        if self.ticker is None:
            self.ticker = Ticker(self.on_event, "the race on dev", ROUNDS * len(self.task.dev), "answers")
        self.rows += rows
        # All that were asked so far: the answers to the earlier ones are kept by the engine's cache.
        some = self.task.with_split("dev", [self.task.dev[at] for at in self.rows])
        for at in alive:
            self.last[at] = evaluate(some, self.arms[at], "dev", self.folder, _only_notes(self.on_event), self.session.metrics)
            self.ticker.advance(len(rows))
        return np.array([self.last[at].values()[-len(rows) :] for at in alive])

    def tokens(self, at: int) -> float:
        """Seconds would let noise choose."""
        return self.last[at].average("prompt_tokens") + self.last[at].average("output_tokens")

    def done(self, spent: int) -> None:
        """The race may end before its budget does."""
        if self.ticker is not None:
            self.ticker.advance(self.ticker.total - spent)


def _only_notes(on_event: OnEvent) -> OnEvent:
    """The race has a progress of its own, and a mean on few items is no result."""

    def told(event: Event) -> None:
        if isinstance(event, Note):
            on_event(event)

    return told
