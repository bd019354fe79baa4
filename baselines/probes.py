"""Arms that nobody would ship, which the diagnosis needs: known passages, counts of demonstrations, repeated samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from baselines.prompts.prompt import Prompt, answer_format
from baselines.prompts.shots import pool_of, random_shots
from evals.candidate import AnswerFormat, Kind, PromptFormat
from evals.engines.engine import Engine, Request
from evals.events import OnEvent, ignore
from evals.metrics.text import containment
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

SHOTS = (0, 2, 8, 32)
SAMPLES = 5
TEMPERATURE = 0.7


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

    def requests(self, examples: Sequence[Example]) -> list[Request]:
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
    """For each example text of other groups that does not hold the answer, as long as its own passage.

    The passage of nearest length comes first; where it is shorter, the next ones follow until the length is reached.
    """
    passages = {example.id: "\n\n".join(example.gold_passages) for example in examples}
    chosen = {}
    for example in examples:
        length = len(passages[example.id])
        others = {
            passages[other.id]
            for other in examples
            if other.id != example.id
            and (other.group is None or other.group != example.group)
            and example.target.lower() not in passages[other.id].lower()
            and not containment(passages[other.id], example.target)
        }
        text = ""
        for other in sorted(others, key=lambda one: (abs(len(one) - length), one)):
            text = f"{text}\n\n{other}" if text else other
            if len(text) >= length:
                break
        chosen[example.id] = text[:length]
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


def shot_probes(task: Task, engine: Engine, on_event: OnEvent = ignore) -> list[Prompt]:
    """`shots_0` to `shots_32`: the same prompt with more and more of the same demonstrations, each set part of the next.

    Counts that the training rows do not have are left out; what does not fit the context is left out by the prompt, aloud.
    """
    rows = len(pool_of(task.train).rows)
    answers, system = answer_format(task, engine), PromptFormat(task.instruction, "system")
    return [
        Prompt(
            f"shots_{count}",
            engine,
            system,
            answers,
            kind="probe",
            shots=random_shots(task.train, count, task.spec.seed) if count else None,
            shot_settings={"choose": "random", "count": count, "seed": task.spec.seed, "pool": content_hash(task.train)},
            on_event=on_event,
        )
        for count in SHOTS
        if count <= rows
    ]


def sample_probes(prompt: Prompt, seed: int) -> list[Prompt]:
    """`sample_1` to `sample_5`: the same prompt drawn again and again, for pass@k."""
    return [
        replace(prompt, name=f"sample_{number + 1}", kind="probe", temperature=TEMPERATURE, seed=seed * SAMPLES + number)
        for number in range(SAMPLES)
    ]
