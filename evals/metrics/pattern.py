"""Answers that match a regular expression. A pattern can take longer than the universe on a text of 40 letters, so it has a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from evals.child import Child, Ended, Late
from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from evals.metrics.metric import PROGRAMS
from evals.metrics.options import Regex
from evals.task.example import Example

SECONDS = 1.0
START_SECONDS = 30.0
MAX_LATE = 20


@dataclass(frozen=True)
class Pattern:
    """1 where the whole answer (whitespace around it aside), or with `search` a part of it, matches. Python's `re` syntax.

    Matching is done in another process. An answer that the pattern cannot decide within a second scores 0, which is said;
    raises AdvisorError where there are more than `MAX_LATE` of them.
    """

    options: Regex
    on_event: OnEvent

    @property
    def name(self) -> str:
        return self.options.label

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.options.model_dump(mode="json", exclude={"called"})

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        scores: list[float] = []
        late: list[str] = []
        while len(scores) < len(pairs):
            with ExitStack() as stack:
                child = stack.enter_context(Child(["-I", "-S"], PROGRAMS / "search.py"))
                self._start(child)
                try:
                    for _, answer in pairs[len(scores) :]:
                        scores.append(float(child.ask(answer.strip(), SECONDS)))
                except Late:
                    late.append(pairs[len(scores)][0].id)
                    scores.append(0.0)
                except Ended as error:
                    raise self._unusable(f"matching the answer to {pairs[len(scores)][0].id} ended the process") from error
            if len(late) > MAX_LATE:
                raise self._unusable(f"{len(late)} answers cannot be decided in {SECONDS:g} s each, the first is {late[0]}")
        if late:
            sentence = (
                f"{self.name}: {len(late)} answers could not be decided in {SECONDS:g} s and score 0, the first is {late[0]}"
            )
            self.on_event(Note(sentence, "warning"))
        return scores

    def _start(self, child: Child) -> None:
        try:
            child.ask([self.options.pattern, not self.options.search], START_SECONDS)
        except (Late, Ended) as error:
            raise self._unusable("the pattern cannot be compiled") from error

    def _unusable(self, what: str) -> AdvisorError:
        return AdvisorError(
            what,
            where=f"metric {self.name}, pattern {self.options.pattern[:80]!r}",
            do="make the pattern simpler: a repeat inside a repeat, such as (a+)+, can take for ever.",
        )
