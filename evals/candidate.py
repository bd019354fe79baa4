"""Candidates: the ways to answer a task. A prompt, a retrieval pipeline, a classifier, a tuned model: all have this one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from evals.engines.engine import Engine, Message, Request
from evals.task.example import Example

Kind = Literal["trivial", "no_llm", "prompt", "rag", "tuned", "probe"]
Placement = Literal["system", "inline"]


@dataclass(frozen=True)
class Answer:
    """What a candidate says without asking a model."""

    text: str
    seconds: float = 0.0


class Candidate(Protocol):
    """One way to answer the task.

    `requests` turns examples into model requests (or answers that need no model), in the same order; `parse` turns a
    model's text into the answer that is scored. `settings` is everything that the answers depend on beside the
    examples, as JSON: it keys the stored scores.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def engine(self) -> Engine | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def requests(self, examples: Sequence[Example]) -> list[Request | Answer]: ...
    def parse(self, text: str) -> str: ...


@dataclass(frozen=True)
class PromptFormat:
    """How an instruction, demonstrations and an example become chat messages: the same for asking and for training.

    `placement` says where the instruction stands: as the system message, or before the input in the user's message
    (small models often follow the second better). Source of the shot layout: Brown et al. 2020, as alternating turns.
    """

    instruction: str
    placement: Placement = "system"

    def user(self, text: str) -> str:
        return f"{self.instruction}\n\n{text}" if self.placement == "inline" and self.instruction else text

    def messages(self, example: Example, shots: Sequence[Example] = (), *, context: Sequence[str] = ()) -> tuple[Message, ...]:
        """System (if any), then each shot's turns and its answer, then the example's own turns, ending with the user's.

        There is one system message at most, and it comes first, as chat templates demand: the instruction and the
        example's own one are joined, and those of the shots are left out.
        """
        system = [self.instruction] if self.placement == "system" and self.instruction else []
        system += [message.content for message in example.messages if message.role == "system"]
        turns = [Message("system", "\n\n".join(system))] if system else []
        for shot in shots:
            turns += [*self._dress(shot.messages, ()), Message("assistant", shot.target)]
        return (*turns, *self._dress(example.messages, context))

    def _dress(self, messages: Sequence[Message], context: Sequence[str]) -> list[Message]:
        """The turns with instruction and context written into the last of the user's."""
        dressed = [message for message in messages if message.role != "system"]
        last = max(index for index, message in enumerate(dressed) if message.role == "user")
        text = dressed[last].content
        if context:
            text = "\n\n".join([*context, text])
        dressed[last] = Message("user", self.user(text))
        return dressed


def first_line(text: str) -> str:
    """The first line with anything on it, stripped: small models talk on after the answer."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@dataclass(frozen=True)
class AnswerFormat:
    """How the task's answers look: what to cut from a model's text, and how long an answer may be (tokens)."""

    output_type: Literal["text", "label", "json", "number"]
    max_new_tokens: int
    labels: tuple[str, ...] = field(default=())

    def parse(self, text: str) -> str:
        return text.strip() if self.output_type == "json" else first_line(text)
