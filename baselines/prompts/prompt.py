"""Prompt candidates: an instruction, perhaps demonstrations, and a model as it is (or with a tuned adapter)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evals.candidate import AnswerFormat, Kind, PromptFormat
from evals.engines.engine import Constraint, Engine, Message, Request
from evals.events import Note, OnEvent, ignore
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task

if TYPE_CHECKING:
    from baselines.prompts.shots import Chooser

# Room for a sentence around the answer where the targets are short.
MIN_NEW_TOKENS = 24
# Prompts that are tokenised at once to be counted.
COUNTED = 256


@dataclass(frozen=True)
class Prompt:
    """`shots` chooses the demonstrations of each example; `shot_settings` says how, for the record's key.

    A prompt that does not fit the context loses demonstrations from the front, the least near, and says so. Answers are
    greedy at `temperature` 0; above it they are drawn, each example with a seed of its own that `seed` begins: drawn with one
    seed, all rows would share their luck, and intervals take it to be independent.
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
        return [
            Request(
                example.id,
                self.prompt_format.messages(example, chosen),
                self.answer_format.max_new_tokens,
                self.temperature,
                None if self.seed is None else seed_of(self.seed, example.id),
                constraint=self.constraint,
            )
            for example, chosen in zip(examples, self._shots(examples), strict=True)
        ]

    def parse(self, text: str) -> str:
        return self.answer_format.parse(text)

    def _shots(self, examples: Sequence[Example]) -> list[tuple[Example, ...]]:
        """The demonstrations of each example, as many as its prompt has room for."""
        if self.shots is None:
            return [()] * len(examples)
        chosen = self.shots(examples)
        room = self.engine.context_length - self.answer_format.max_new_tokens
        lost = dropped_shots(self.engine, self.prompt_format, room, examples, chosen)
        if any(lost):
            self.on_event(Note(self._said(lost), "warning"))
        return [shots[drop:] for shots, drop in zip(chosen, lost, strict=True)]

    def _said(self, lost: Sequence[int]) -> str:
        some = sorted(filter(None, lost))
        each = f"{some[0]}" if some[0] == some[-1] else f"{some[0]} to {some[-1]}"
        return (
            f"{self.name}: {len(some)} of {len(lost)} prompts lost demonstrations ({each} each, {sum(some)} in all), since "
            f"they do not fit the context of {self.engine.context_length:,} tokens with {self.answer_format.max_new_tokens:,} "
            "for the answer"
        )


def seed_of(seed: int, example: str, number: int = 0) -> int:
    """The seed of an example's draw: the same in every run, and no other example's."""
    return int(content_hash([seed, example, number])[:8], 16) % 2**31


def dropped_shots(
    engine: Engine, prompt_format: PromptFormat, room: int, examples: Sequence[Example], shots: Sequence[Sequence[Example]]
) -> list[int]:
    """How many demonstrations each prompt must lose from the front to have at most `room` tokens: all, if that is not enough.

    What cannot be too long is not counted; the rest are counted as they would be sent, and halved until they just fit.
    """

    def prompt(at: int, drop: int) -> tuple[Message, ...]:
        return prompt_format.messages(examples[at], shots[at][drop:])

    bounds = most_tokens(engine, [prompt(at, 0) for at in range(len(examples))])
    doubtful = [at for at, bound in enumerate(bounds) if bound > room]
    counted = _counted(engine, [prompt(at, 0) for at in doubtful])
    # Between the least that may be enough and what is enough (or all there are).
    least = {at: 1 for at, tokens in zip(doubtful, counted, strict=True) if tokens > room}
    lost = {at: len(shots[at]) for at in least}
    while searched := [at for at in least if least[at] < lost[at]]:
        middle = {at: (least[at] + lost[at]) // 2 for at in searched}
        counted = _counted(engine, [prompt(at, middle[at]) for at in searched])
        for at, tokens in zip(searched, counted, strict=True):
            if tokens > room:
                least[at] = middle[at] + 1
            else:
                lost[at] = middle[at]
    return [lost.get(at, 0) for at in range(len(examples))]


def most_tokens(engine: Engine, prompts: Sequence[Sequence[Message]]) -> list[float]:
    """What each prompt has at most, cheaply: a token for each byte of the turns, and the chat template's own around them.

    Those are counted once for each sequence of roles. Tokens cover a byte at least (but where a tokeniser writes out rare
    ligatures; the engine then skips the prompt with a reason). Infinite where turns hold more than text.
    """
    plain = [all(turn.role != "tool" and not turn.tool_calls for turn in turns) for turns in prompts]
    shapes = [tuple(turn.role for turn in turns) for turns in prompts]
    distinct = list(dict.fromkeys(shape for shape, bare in zip(shapes, plain, strict=True) if bare))
    marks = dict(zip(distinct, _counted(engine, [[Message(role, "x") for role in shape] for shape in distinct]), strict=True))
    return [
        marks[shape] + sum(len(turn.content.encode("utf-8", "surrogatepass")) for turn in turns) if bare else float("inf")
        for turns, shape, bare in zip(prompts, shapes, plain, strict=True)
    ]


def _counted(engine: Engine, prompts: Sequence[Sequence[Message]]) -> list[int]:
    return [
        tokens for start in range(0, len(prompts), COUNTED) for tokens in engine.count_prompts(prompts[start : start + COUNTED])
    ]


def answer_format(task: Task, engine: Engine) -> AnswerFormat:
    """Answers may be a quarter longer than the longest training target, in the model's tokens."""
    longest = max(engine.count_tokens([example.target for example in task.train]))
    return task.answer_format(max(MIN_NEW_TOKENS, longest * 5 // 4 + 4))
