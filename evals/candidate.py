"""Candidates: the ways to answer a task. A prompt, a retrieval pipeline, a classifier, a tuned model: all have this one shape."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from evals.engines.engine import Engine, Message, Request, Response
from evals.task.example import Example

Kind = Literal["trivial", "no_llm", "prompt", "optimised", "tools", "rag", "tuned", "probe"]
Placement = Literal["system", "inline"]


@dataclass(frozen=True)
class Answer:
    """What a candidate says: without asking a model, or at the end of an exchange with one.

    `seconds` are the candidate's own, without the model's. `said` is the whole text that the answer was read from, where it
    is more than the answer. `trace` tells how the answer came about (tool calls and their results, votes), as JSON values.
    `skipped` is a reason where there is no answer.
    """

    text: str
    seconds: float = 0.0
    said: str = ""
    trace: Sequence[Mapping[str, Any]] = ()
    skipped: str = ""


# A candidate that asks a model more than once about an example: it yields requests (their ids do not matter), is sent the
# responses in the requests' order, and returns the answer.
Exchange: TypeAlias = Generator[Sequence[Request], Sequence[Response], Answer]
Step: TypeAlias = Request | Answer | Exchange


class Candidate(Protocol):
    """One way to answer the task.

    `requests` turns examples into what is done about each, in the same order: a request to the model, an exchange with it,
    or an answer that needs no model; `parse` turns the model's text of a lone request into the answer that is scored.
    `settings` is everything that the answers depend on beside the examples, as JSON: it keys the stored scores.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def engine(self) -> Engine | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def requests(self, examples: Sequence[Example]) -> Sequence[Step]: ...
    def parse(self, text: str) -> str: ...


# Where the input of an example goes in a frame.
INPUT = "{{input}}"


@dataclass(frozen=True)
class PromptFormat:
    """How an instruction, demonstrations and an example become chat messages: the same for asking and for training.

    `placement` says where the instruction stands: as the system message, or before the input in the user's message
    (small models often follow the second better). `frame` is the text around an input, which stands for its `INPUT` mark.
    Source of the shot layout: Brown et al. 2020, as alternating turns.
    """

    instruction: str
    placement: Placement = "system"
    frame: str = INPUT

    def user(self, text: str) -> str:
        text = self.frame.replace(INPUT, text)
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
    """How the task's answers look: what to cut from a model's text, and how long an answer may be (tokens).

    `after` is a mark that the answer stands behind, such as "Answer:" behind reasons.
    """

    output_type: Literal["text", "label", "json", "number"]
    max_new_tokens: int
    labels: tuple[str, ...] = field(default=())
    after: str = ""

    def parse(self, text: str) -> str:
        return text.strip() if self.output_type == "json" else first_line(text)
