"""Replay: general questions with answers, mixed into training so that the model keeps answering them.

The user's own rows (`data.replay`) with their targets; where there are none, prompts of ours with the base's own replies
(self-distillation: Yang et al. 2024, "Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning"), which teach nothing
new and hold the model where it was. The prompts were written for this project; a test holds them apart from the general benchmarks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.engine import Engine, Message, Request, ToolCall
from evals.events import OnEvent, Ticker, ignore
from evals.task.example import Example

PROMPTS = Path(__file__).resolve().parent / "replay_prompts.txt"
MAX_REPLY_TOKENS = 40


@dataclass(frozen=True)
class Replay:
    """A prompt and its reply, the base's or the user's. `finished`: the reply ended by itself, so its end is trained on too.

    `messages` are all turns before the reply where these are more than the prompt.
    """

    prompt: str
    reply: str
    finished: bool
    messages: tuple[Message, ...] = ()

    @staticmethod
    def of(record: Mapping[str, Any]) -> Replay:
        """A row as JSON has it."""
        turns = tuple(
            Message(**{**one, "tool_calls": tuple(ToolCall(**call) for call in one["tool_calls"])})
            for one in record["messages"]
        )
        return Replay(**{**record, "messages": turns})

    @property
    def turns(self) -> tuple[Message, ...]:
        return self.messages or (Message("user", self.prompt),)


def prompts() -> list[str]:
    """A prompt a line; `Answer:` goes on with the line before it."""
    return [
        prompt.replace("\\n", "\n")
        for prompt in PROMPTS.read_text(encoding="utf-8").replace("\nAnswer:", "\\nAnswer:").splitlines()
    ]


def wanted_rows(share: float, rows: int) -> int:
    """How many replay rows make up `share` of all rows beside `rows` of the task."""
    return round(rows * share / (1 - share))


def rows_for(share: float, rows: int, available: int | None = None) -> int:
    """As many of the `available` ones as are wanted; none is used twice (left out: our prompts)."""
    return min(len(prompts()) if available is None else available, wanted_rows(share, rows))


def drawn(rows: Sequence[Example], count: int, seed: int) -> tuple[Replay, ...]:
    """`count` rows of the user's set, drawn with a seed, with their own targets."""
    chosen = random.Random(seed).sample(list(rows), count)
    return tuple(Replay(row.text, row.target, True, row.messages) for row in chosen)


def base_replies(engine: Engine, count: int, seed: int, on_event: OnEvent = ignore) -> tuple[Replay, ...]:
    """The base's greedy replies to `count` prompts, drawn with a seed. Empty replies are left out."""
    chosen = random.Random(seed).sample(prompts(), count)
    requests = [Request(str(at), (Message("user", text),), MAX_REPLY_TOKENS) for at, text in enumerate(chosen)]
    ticker = Ticker(on_event, "replies of the base for replay", count, "prompts")
    replies = {}
    for response in engine.generate(requests):
        replies[response.id] = response
        ticker.advance()
    kept = [(text, replies[str(at)]) for at, text in enumerate(chosen)]
    return tuple(Replay(text, one.text, not one.truncated) for text, one in kept if one.text.strip())
