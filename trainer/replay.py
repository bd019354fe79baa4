"""Replay: general questions that the base itself has answered, mixed into training so that it keeps answering them.

The rows are the base's own replies (self-distillation: Yang et al. 2024, "Self-Distillation Bridges Distribution Gap in
Language Model Fine-Tuning"), so that they teach nothing new and hold the model where it was. The prompts were written for
this project; a test holds them apart from the general benchmarks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from evals.engines.engine import Engine, Message, Request
from evals.events import OnEvent, Ticker, ignore

PROMPTS = Path(__file__).resolve().parent / "replay_prompts.txt"
MAX_REPLY_TOKENS = 40


@dataclass(frozen=True)
class Replay:
    """A prompt and the base's reply. `finished`: the reply ended by itself, so its end is trained on too."""

    prompt: str
    reply: str
    finished: bool


def prompts() -> list[str]:
    """A prompt a line; `Answer:` goes on with the line before it."""
    return [
        prompt.replace("\\n", "\n")
        for prompt in PROMPTS.read_text(encoding="utf-8").replace("\nAnswer:", "\\nAnswer:").splitlines()
    ]


def rows_for(share: float, rows: int) -> int:
    """How many replay rows make up `share` of all rows beside `rows` of the task; no prompt is used twice."""
    return min(len(prompts()), round(rows * share / (1 - share)))


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
