"""Prompt candidates: an instruction, perhaps demonstrations, and a model as it is (or with a tuned adapter)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evals.candidate import AnswerFormat, Kind, PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Constraint, Engine, Request
from evals.events import OnEvent, ignore
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

SHOTS = 8
# Room for a sentence around the answer where the targets are short.
MIN_NEW_TOKENS = 24
Chooser = Callable[[Sequence[Example]], list[tuple[Example, ...]]]


@dataclass(frozen=True)
class Prompt:
    """`shots` chooses the demonstrations of each example; `shot_settings` says how, for the record's key.

    Answers are greedy at `temperature` 0; above it they are drawn with `seed`.
    """

    name: str
    engine: Engine
    prompt_format: PromptFormat
    answer_format: AnswerFormat
    kind: Kind = "prompt"
    shots: Chooser | None = None
    shot_settings: Mapping[str, Any] | None = None
    constraint: Constraint | None = None
    temperature: float = 0.0
    seed: int | None = None
    on_event: OnEvent = ignore

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "prompt": asdict(self.prompt_format),
            "answer": asdict(self.answer_format),
            "shots": dict(self.shot_settings or {}),
            "constraint": asdict(self.constraint) if self.constraint else None,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        shots = self.shots(examples) if self.shots else [()] * len(examples)
        return [
            Request(
                example.id,
                self.prompt_format.messages(example, chosen),
                self.answer_format.max_new_tokens,
                self.temperature,
                self.seed,
                constraint=self.constraint,
            )
            for example, chosen in zip(examples, shots, strict=True)
        ]

    def parse(self, text: str) -> str:
        return self.answer_format.parse(text)


def answer_format(task: Task, engine: Engine) -> AnswerFormat:
    """Answers may be a quarter longer than the longest training target, in the model's tokens."""
    longest = max(engine.count_tokens([example.target for example in task.train]))
    return task.answer_format(max(MIN_NEW_TOKENS, longest * 5 // 4 + 4))


def random_shots(train: Sequence[Example], count: int, seed: int) -> Chooser:
    """The same demonstrations for every question, so that their prefix is computed once."""
    chosen = tuple(random.Random(seed).sample(list(train), min(count, len(train))))
    return lambda examples: [chosen] * len(examples)


def nearest_shots(train: Sequence[Example], count: int, embedder: Embedder) -> Chooser:
    """The training rows nearest to each question by cosine, the nearest last (Liu et al. 2022)."""

    def choose(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
        import numpy as np

        pool = embedder.encode([example.text for example in train], "embedding the training rows")
        questions = embedder.encode([example.text for example in examples], "embedding the questions")
        order = np.argsort(-(questions @ pool.T), axis=1, kind="stable")
        return [
            tuple(train[int(index)] for index in row if train[int(index)].id != example.id)[:count][::-1]
            for row, example in zip(order, examples, strict=True)
        ]

    return choose


def affordable_shots(task: Task, engine: Engine, context_length: int, count: int) -> int:
    """How many demonstrations fit beside the instruction and the longest question, with room to answer."""
    rows = ["\n".join([*(message.content for message in one.messages), one.target]) for one in task.train]
    lengths = sorted(engine.count_tokens(rows), reverse=True)
    instruction = engine.count_tokens([task.instruction])[0]
    room = context_length - instruction - 2 * lengths[0] - 128
    fitting = 0
    for length in lengths[:count]:
        room -= length + 16
        if room < 0:
            break
        fitting += 1
    return fitting


def prompt_arms(task: Task, engine: Engine, embedder: Embedder, context_length: int) -> list[Prompt]:
    """Zero-shot with both placements, few-shot at random and by nearest neighbour."""
    answers = answer_format(task, engine)
    system, inline = PromptFormat(task.instruction, "system"), PromptFormat(task.instruction, "inline")
    arms = [Prompt("zero_shot", engine, system, answers)]
    if task.instruction:
        arms.append(Prompt("zero_shot_inline", engine, inline, answers))
    count = affordable_shots(task, engine, context_length, min(SHOTS, len(task.train)))
    if count:
        pool = content_hash(task.train)
        seed = task.spec.seed
        arms += [
            Prompt(
                f"few_shot_random_{count}",
                engine,
                system,
                answers,
                shots=random_shots(task.train, count, seed),
                shot_settings={"choose": "random", "count": count, "seed": seed, "pool": pool},
            ),
            Prompt(
                f"few_shot_nearest_{count}",
                engine,
                system,
                answers,
                shots=nearest_shots(task.train, count, embedder),
                shot_settings={"choose": "nearest", "count": count, "embeddings": embedder.fingerprint, "pool": pool},
            ),
        ]
    return arms
