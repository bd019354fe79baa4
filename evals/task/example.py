"""One row of a task's data."""

from __future__ import annotations

from dataclasses import dataclass

from evals.engines.engine import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Example:
    """`messages` in (ending with the user's or a tool's), `target` out.

    `gold_passages` are literal texts from the task's documents that hold the answer; `group` names the cluster of related
    rows (same document, near-duplicates) that statistics and splits keep together; `time` (a number or an ISO 8601 date)
    orders rows for a test that lies in the future of its training rows. `paraphrases` are other wordings of the last user
    turn. `images` are paths or addresses, kept and not yet read.

    Preference data: `rejected` is the answer that lost against `target`; `desirable` says whether the answer was liked
    (False: `target` is what not to say). Tools: `tools` holds the JSON text of each tool that was offered, `calls` what the
    target calls; a target of calls alone is their JSON (`calls_as_text`).
    """

    id: str
    messages: tuple[Message, ...]
    target: str
    gold_passages: tuple[str, ...] = ()
    group: str | None = None
    time: str | None = None
    paraphrases: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    rejected: str | None = None
    desirable: bool | None = None
    tools: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """The last user turn: what nearest neighbours and classifiers look at."""
        return next(message.content for message in reversed(self.messages) if message.role == "user")


def calls_as_text(calls: tuple[ToolCall, ...]) -> str:
    """Calls as the JSON list that a target of calls alone is scored as."""
    body = ", ".join(f'{{"name": {_quoted(call.name)}, "arguments": {call.arguments}}}' for call in calls)
    return f"[{body}]"


def _quoted(name: str) -> str:
    import json

    return json.dumps(name, ensure_ascii=False)
