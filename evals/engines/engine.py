"""The protocol that every engine follows: requests known all at once in, responses out as they finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """A question to a model, decoded greedily. `id` is the example's."""

    id: str
    messages: tuple[Message, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Response:
    """`seconds` is this request's share of its batch's wall time; `truncated` when the answer hit `max_new_tokens`.

    `skipped` is a reason where the model could not be asked (a prompt longer than its context), else empty.
    """

    id: str
    text: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    truncated: bool = False
    skipped: str = ""


class Engine(Protocol):
    """What runs a model."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str:
        """Hash of weights, adapter, dtype and template: responses of equal fingerprints are interchangeable."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Responses in any order, each as soon as it is known, exactly one a request."""
        ...
