"""What every metric is, whatever it needs to know beside the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from evals.task.example import Example

# Programs that metrics run in processes of their own.
PROGRAMS = Path(__file__).parent / "children"


class Metric(Protocol):
    """Scores answers, many at once: (example, answer) pairs -> a score in [0, 1] each, in their order.

    `name` is what records and reports call it, unique within a task. `settings` is everything that its scores depend on
    beside the pairs, as JSON: it keys the stored scores. Raises AdvisorError where it cannot score at all.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]: ...
