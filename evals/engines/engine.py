"""The protocol that every engine follows: requests known all at once in, responses out as they finish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant asks for. `arguments` is the JSON text of an object; `id` is empty where none was given."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user, assistant or tool; a tool's turn answers the call `tool_call_id` of the tool `name`."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def turn(self, *, arguments_as_text: bool = False) -> dict[str, Any]:
        """As chat templates take it, without what is empty; servers want the arguments of calls as text."""
        body: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            body["tool_calls"] = [
                {
                    "type": "function",
                    **({"id": call.id} if call.id else {}),
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if arguments_as_text else json.loads(call.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            body["tool_call_id"] = self.tool_call_id
        if self.name:
            body["name"] = self.name
        return body


@dataclass(frozen=True)
class Constraint:
    """A form that an answer cannot leave, enforced token by token while the model decodes.

    `source` is, by kind: a JSON schema as JSON text; a regular expression that the whole answer matches; a JSON list of
    the strings that may be answered.
    """

    kind: Literal["json_schema", "regex", "choice"]
    source: str


@dataclass(frozen=True)
class Request:
    """A question to a model. `id` is the example's.

    Decoding is greedy at temperature 0. Above it tokens are drawn from softmax(logits / temperature): with a `seed` the
    same ones each time (on the same engine and dtype), without one they are new each time, and are never kept in a cache.
    The answer ends before the first of the strings in `stop`. `logprob` asks for the answer's log-probability. `tools` are
    the functions that may be called, each as the JSON text of OpenAI's `{"type": "function", "function": {…}}`.
    """

    id: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logprob: bool = False
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Response:
    """`seconds` is this request's share of its batch's wall time; `truncated` when the answer hit `max_new_tokens`.

    `skipped` is a reason where the model could not be asked (a prompt longer than its context), else empty. `logprob` is
    the summed log-probability (natural) of the answer's tokens under the model, its end mark included, where it was asked
    for and is known. `calls` are the tool calls that the model made (only where the request offered tools); `text` is then
    what it said beside them. `cached_tokens` are those of the prompt tokens that were not computed again, since another request
    begins alike: what a server with prefix caching bills at a lower price (0 where the server does not tell).
    """

    id: str
    text: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    truncated: bool = False
    skipped: str = ""
    logprob: float | None = None
    calls: tuple[ToolCall, ...] = ()
    cached_tokens: int = 0


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is each of these answers? For engines that have the weights."""

    id: str
    messages: tuple[Message, ...]
    continuations: tuple[str, ...]


class Engine(Protocol):
    """What runs a model."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str:
        """Hash of weights, adapter, dtype and template: responses of equal fingerprints are interchangeable."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        ...

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template (or the server) has a place for `Request.tools`."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each chat as it would be sent; an estimate on the high side where the tokeniser is elsewhere."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Responses in any order, each as soon as it is known, exactly one a request."""
        ...
