"""How passages are put before a question: quoted, so that what documents say stays data, and in one of three wordings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from baselines.rag.citations import defused
from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.metrics.quoting import CONTROL
from evals.metrics.text import containment
from evals.task.example import Example

if TYPE_CHECKING:
    from baselines.prompts.shots import Chooser

Variant = Literal["plain", "cited", "grounded"]
TOLD: Mapping[Variant, str] = {
    "plain": "",
    "cited": "Answer from the numbered passages, and end with the number in square brackets of the passage that says so.",
    "grounded": "Answer from the passages only, with the shortest words of theirs that answer the question.",
}
# Beside the control marks of chat templates, those of reasoning, tool calls and files: <think>, <tool_call>, <file_sep>.
MARK = re.compile(rf"{CONTROL.pattern}|<(?=/?(?:think|[A-Za-z0-9]+(?:_[A-Za-z0-9]+){{1,4}})>)")
# Least quotation marks of a fence, and most of a run in a passage: what is longer is a rule drawn across a page.
FENCE, LONGEST_RUN = 3, 8
RUN = re.compile('"{2,}')


def quoted(passages: Sequence[str], numbers: Sequence[int] = ()) -> list[str]:
    """Each passage between two lines of quotation marks, behind a line with its number where there are numbers.

    No passage can end its quotation: the lines have more marks than any of the passages has in a row, which is how Markdown
    fences code, so that nothing is taken out of a text (but that a run of more than eight is cut to eight). Control marks get
    a space behind their first sign: tokenisers read them as the beginning of a turn wherever they stand, and none takes a
    space away. Numbered passages keep their own numbers in round brackets (`defused`).

    Of the ways to quote that were tried with SmolLM2-135M on the handbook, this and a pair of tags read best.
    """
    texts = [RUN.sub(lambda run: run[0][:LONGEST_RUN], MARK.sub(r"\g<0> ", one)).strip() for one in passages]
    longest = max((len(run) for one in texts for run in RUN.findall(one)), default=0)
    fence = '"' * max(FENCE, longest + 1)
    if not numbers:
        return [f"{fence}\n{one}\n{fence}" for one in texts]
    return [f"[{number}]\n{fence}\n{defused(one)}\n{fence}" for number, one in zip(numbers, texts, strict=True)]


@dataclass(frozen=True)
class Demonstration:
    """A training row with a passage of its own, the number that it is shown under, and the passage's number in the answer."""

    example: Example
    passage: str
    number: int

    @property
    def holds(self) -> bool:
        """Whether the answer stands in the passage."""
        return containment(self.passage, self.example.target) > 0


def demonstration(row: Example, found: Sequence[str], number: int) -> Demonstration:
    """A training row with the best passage found that holds its answer, so that it teaches reading; else with the best one."""
    best = next((one for one in found if containment(one, row.target) > 0), found[0] if found else "")
    return Demonstration(row, best, number)


@dataclass(frozen=True)
class RagPrompt:
    """The wording of a question with passages: `plain` is the task's instruction, the passages, the question.

    `cited` numbers the passages and asks for the number beside the answer; `grounded` asks for words of the passages.
    `shots` chooses demonstrations, which are shown with a passage each; `shot_settings` says how, for the record's key.
    """

    variant: Variant
    instruction: str
    shots: Chooser | None = None
    shot_settings: Mapping[str, Any] | None = None

    @property
    def format(self) -> PromptFormat:
        return PromptFormat("\n\n".join(filter(None, [self.instruction, TOLD[self.variant]])), "inline")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "variant": self.variant,
            "format": asdict(self.format),
            "quoting": [*quoted([""], [1]), MARK.pattern],
            "shots": dict(self.shot_settings or {}),
        }

    @property
    def cites(self) -> bool:
        return self.variant == "cited"

    def messages(self, example: Example, passages: Sequence[str], shots: Sequence[Demonstration] = ()) -> tuple[Message, ...]:
        """The chat. `passages` in the order in which they are shown, the best one last; passage n of `cited` is the n-th."""
        return self.format.messages(
            example,
            [self._answered(one) for one in shots],
            context=quoted(passages, range(1, len(passages) + 1) if self.cites else ()),
            shot_contexts=[self._context(one) for one in shots],
        )

    def _context(self, shot: Demonstration) -> list[str]:
        return quoted([shot.passage], [shot.number] if self.cites else ()) if shot.passage else []

    def _answered(self, shot: Demonstration) -> Example:
        """The row as it is answered: a number only where the passage holds the answer, since nothing else is to be learnt."""
        if not (self.cites and shot.holds):
            return shot.example
        return replace(shot.example, target=f"{shot.example.target} [{shot.number}]")
