"""What happens during a run, as one stream of small frozen events. The command line, the app and `events.jsonl` all read it.

A stage takes `on_event`, calls it, and knows nothing of who listens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """The root of all events. `at` is seconds since the epoch."""

    at: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class StageStarted(Event):
    stage: str
    title: str


@dataclass(frozen=True)
class StageFinished(Event):
    """`reused` is true where the stage's record was there already and nothing was run."""

    stage: str
    seconds: float
    summary: str
    reused: bool = False


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` `unit`s of `task`; `rate` in units per second and `eta` in seconds, both 0 while unknown."""

    task: str
    done: int
    total: int
    unit: str
    rate: float = 0.0
    eta: float = 0.0


@dataclass(frozen=True)
class Note(Event):
    """A sentence for people. `level` is info or warning."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class CandidateScored(Event):
    candidate: str
    split: str
    metric: str
    mean: float
    n: int
    seconds: float
    reused: bool = False


@dataclass(frozen=True)
class TrainingStep(Event):
    """One optimiser step. `loss` is the training loss; memory in MiB (peak). None but where they were measured at this step: `dev_loss`,
    `dev_score` (the task's own metric, of answers that the model wrote to a sample of dev), and `kl`, how far the answers to general
    questions have moved from those before training (nats a token).
    """

    purpose: str
    step: int
    total_steps: int
    loss: float | None
    dev_loss: float | None
    learning_rate: float
    tokens_per_second: float
    eta: float
    memory_mib: float
    dev_score: float | None = None
    kl: float | None = None


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that does nothing."""


def to_json(event: Event) -> dict[str, Any]:
    return {"event": type(event).__name__, **asdict(event)}


def broadcast(listeners: Sequence[OnEvent]) -> OnEvent:
    """One listener that passes each event on to all; one that raises never stops the run or the others."""

    def listen(event: Event) -> None:
        for listener in listeners:
            with suppress(Exception):
                listener(event)

    return listen


class Ticker:
    """Turns 'one more is done' into `Progress` events with a rate and an ETA, at most about ten a second."""

    def __init__(self, on_event: OnEvent, task: str, total: int, unit: str, *, done: int = 0) -> None:
        self.on_event, self.task, self.total, self.unit = on_event, task, total, unit
        self.done = self.first = done
        self.started = time.monotonic()
        self.shown = 0.0
        self._emit()

    def advance(self, by: int = 1) -> None:
        self.done += by
        if self.done >= self.total or time.monotonic() - self.shown > 0.1:
            self._emit()

    def _emit(self) -> None:
        self.shown = time.monotonic()
        elapsed = self.shown - self.started
        rate = (self.done - self.first) / elapsed if elapsed > 0 and self.done > self.first else 0.0
        eta = (self.total - self.done) / rate if rate else 0.0
        self.on_event(Progress(self.task, self.done, self.total, self.unit, rate, eta))


@contextmanager
def waiting(on_event: OnEvent, task: str) -> Iterator[None]:
    """Marks a step whose length is not known (a download, loading a model)."""
    on_event(Progress(task, 0, 0, ""))
    yield
    on_event(Progress(task, 1, 1, ""))
