"""What the checks of a task's data find. A finding says what is wrong, shows the rows, and never changes anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "review", "info"]
# Where a text stands. `general`: the benchmarks that measure forgetting.
Pool = Literal["train", "dev", "test", "documents", "general"]


@dataclass(frozen=True)
class Place:
    """One row (or document): its pool, its id, where it stands (`line` 0: the whole file), and the text that is shown."""

    pool: Pool
    id: str
    file: str
    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """`check` names the check (`leak.exact`, `label_noise`, `personal_data` …), `message` is a sentence for people.

    `places` are the rows that it is about; of a leak both, first the one that a fix would take away (the train row of a
    train/test leak: the test stays whole). `value` is what was measured (Jaccard, ratio, cosine, probability, tokens).
    `drop`: whether `--fix` leaves the row of `places[0]` out. `details` is what else the record keeps, as JSON values.
    """

    check: str
    level: Level
    message: str
    places: tuple[Place, ...] = ()
    value: float | None = None
    drop: bool = False
    details: dict[str, Any] = field(default_factory=dict)
