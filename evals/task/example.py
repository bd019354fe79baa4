"""One row of a task's data."""

from __future__ import annotations

from dataclasses import dataclass

from evals.engines.engine import Message


@dataclass(frozen=True)
class Example:
    """`messages` in (ending with the user's), `target` out.

    `gold_passages` are literal texts from the task's documents that hold the answer; `group` names the cluster of
    related rows (same document, near-duplicates) that statistics and splits keep together.
    """

    id: str
    messages: tuple[Message, ...]
    target: str
    gold_passages: tuple[str, ...] = ()
    group: str | None = None

    @property
    def text(self) -> str:
        """The last user turn: what nearest neighbours and classifiers look at."""
        return next(message.content for message in reversed(self.messages) if message.role == "user")
