"""Arms that nobody would ship, which the diagnosis needs: the gold passage, and an irrelevant one of about equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from baselines.prompts.prompt import answer_format
from evals.candidate import Answer, AnswerFormat, Kind, PromptFormat
from evals.engines.engine import Engine, Request
from evals.metrics.text import containment
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task


@dataclass(frozen=True)
class GivenPassage:
    """Each question with a passage chosen beforehand."""

    name: str
    engine: Engine
    passages: Mapping[str, str]
    prompt_format: PromptFormat
    answer_format: AnswerFormat
    kind: Kind = "probe"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "prompt": asdict(self.prompt_format),
            "answer": asdict(self.answer_format),
            "passages": content_hash(self.passages),
        }

    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]:
        return [
            Request(
                example.id,
                self.prompt_format.messages(example, context=[self.passages[example.id]]),
                self.answer_format.max_new_tokens,
            )
            for example in examples
        ]

    def parse(self, text: str) -> str:
        return self.answer_format.parse(text)


def irrelevant_passages(examples: Sequence[Example]) -> dict[str, str]:
    """For each example the passage of nearest length that belongs to another group and does not hold the answer."""
    passages = {example.id: "\n\n".join(example.gold_passages) for example in examples}
    chosen = {}
    for example in examples:
        own = passages[example.id]
        others = [
            passages[other.id]
            for other in examples
            if other.id != example.id
            and (other.group is None or other.group != example.group)
            and example.target.lower() not in passages[other.id].lower()
            and not containment(passages[other.id], example.target)
        ]
        chosen[example.id] = min(others, key=lambda text: abs(len(text) - len(own)), default="")
    return chosen


def knowledge_probes(task: Task, engine: Engine, split: str = "dev") -> list[GivenPassage]:
    """`gold_passage` and `irrelevant_passage` where every row of the split has gold passages, else none."""
    examples = task.split(split)
    if not all(example.gold_passages for example in examples):
        return []
    answers = answer_format(task, engine)
    inline = PromptFormat(task.instruction, "inline")
    gold = {example.id: "\n\n".join(example.gold_passages) for example in examples}
    return [
        GivenPassage("gold_passage", engine, gold, inline, answers),
        GivenPassage("irrelevant_passage", engine, irrelevant_passages(examples), inline, answers),
    ]
