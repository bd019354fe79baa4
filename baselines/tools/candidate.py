"""Tool candidates: a model that may call functions, and is shown what they gave, until it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from baselines.tools.lookup import Lookup
from baselines.tools.protocol import LAST, STOP, NoCall, calls_in_text, description, in_json
from baselines.tools.run import Outcome, Toolbox
from evals.candidate import Answer, AnswerFormat, Exchange, Kind, PromptFormat
from evals.engines.engine import Engine, Message, Request, Response, ToolCall
from evals.events import Note, OnEvent, ignore
from evals.records import content_hash
from evals.task.example import Example, calls_as_text
from evals.task.reading.strict_json import JsonError, compact, parse
from evals.task.tools import Tool, ToolsSpec, row_tools

# Tokens that a call may have at least; a demonstration with a longer one makes room for its like.
CALL_TOKENS = 96
# Tokens that a result is reckoned at before it is known, when the demonstrations that fit are counted.
RESULT_TOKENS = 64
# Characters that results are shortened to, the oldest first, where a conversation outgrows the context.
SHORTENED = (400, 60)
# Of a model's text that tried to be a call.
FAILED_CALL = 400


@dataclass(frozen=True)
class ToolCandidate:
    """Asks, runs the calls that come back, shows their results, and asks again: `spec.max_turns` calls at most, then once
    more for an answer without tools. A call of a declared tool ends the exchange and is the answer.

    `native` says that the calls go through the chat template (or the server); else they are JSON in the text
    (`baselines.tools.protocol`). `shots` are rows whose messages hold calls, shown in the same form. A row may offer
    tools of its own beside `tools`; those are declared ones.
    """

    name: str
    engine: Engine
    prompt_format: PromptFormat
    answer_format: AnswerFormat
    tools: tuple[Tool, ...]
    spec: ToolsSpec
    folder: Path
    native: bool
    shots: tuple[Example, ...] = ()
    lookup: Lookup | None = None
    kind: Kind = "tools"
    on_event: OnEvent = ignore

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "prompt": asdict(self.prompt_format),
            "answer": asdict(self.answer_format),
            "tools": [asdict(one) for one in self.tools],
            "limits": self.spec.model_dump(exclude={"functions"}),
            "native": self.native,
            "shots": content_hash(self.shots),
            "lookup": dict(self.lookup.settings) if self.lookup else None,
        }

    def requests(self, examples: Sequence[Example]) -> list[Exchange]:
        visit = _Visit(self, len(examples))
        return [_Talk(self, example, visit).exchange() for example in examples]

    def parse(self, text: str) -> str:
        return self.answer_format.parse(text)

    def offered(self, example: Example) -> dict[str, Tool]:
        """The task's tools, and those of the row that have other names."""
        return {one.name: one for one in (*row_tools(example.tools), *self.tools)}

    def opening(self, example: Example, shots: Sequence[Example]) -> list[Message]:
        """The instruction (with the tools, where the template has no place for them), demonstrations, and the question."""
        told = self.prompt_format
        tools = self.offered(example)
        if not self.native and tools:
            told = replace(told, instruction="\n\n".join(filter(None, [told.instruction, description(list(tools.values()))])))
        asked = told.messages(example)
        bare = PromptFormat("", frame=told.frame)
        shown = []
        for shot in shots:
            turns = bare.messages(shot)
            shown += [*(one for one in turns if one.role != "system"), _ending(shot)]
        start = 1 if asked[0].role == "system" else 0
        return [*asked[:start], *shown, *asked[start:]]

    def count(self, talk: Sequence[Message], tools: Sequence[str]) -> int:
        """Tokens of a conversation as it is sent, with its tools."""
        tokens = self.engine.count_prompts([talk if self.native else in_json(talk)])[0]
        return tokens + (sum(self.engine.count_tokens(tools)) if self.native and tools else 0)

    @property
    def call_tokens(self) -> int:
        """Room for a call or an answer."""
        calls = [call.name + call.arguments for shot in self.shots for one in shot.messages for call in one.tool_calls]
        longest = max(self.engine.count_tokens(calls), default=0)
        return max(CALL_TOKENS, longest * 5 // 4 + 24, self.answer_format.max_new_tokens)


def _ending(shot: Example) -> Message:
    """The target, as calls where it is calls alone."""
    called = bool(shot.calls) and shot.target == calls_as_text(shot.calls)
    return Message("assistant", "" if called else shot.target, shot.calls if called else ())


class _Visit:
    """What the exchanges of one batch share: the process with the user's functions, and what there is to say at the end."""

    def __init__(self, candidate: ToolCandidate, exchanges: int) -> None:
        find = candidate.lookup.find if candidate.lookup else None
        spec = candidate.spec
        self.box = Toolbox(candidate.tools, candidate.folder, spec.timeout, spec.memory_mib, find)
        self.candidate = candidate
        self.call_tokens = candidate.call_tokens
        self.open = self.exchanges = exchanges
        self.fewer_shots = 0
        self.shortened = 0

    def leave(self, talk: _Talk) -> None:
        """An exchange is over. With the last one the tools are put away."""
        self.fewer_shots += len(talk.shots) < sum(one.id != talk.example.id for one in self.candidate.shots)
        self.shortened += any("shown" in one for one in talk.trace)
        self.open -= 1
        if self.open:
            return
        self.box.close()
        told = [
            f"{count} of {self.exchanges} prompts lost {what}"
            for count, what in ((self.fewer_shots, "demonstrations"), (self.shortened, "parts of tool results"))
            if count
        ]
        if told:
            self.candidate.on_event(Note(f"{self.candidate.name}: {' and '.join(told)} to fit the context", "warning"))


@dataclass
class _Talk:
    """One example's conversation: `head` up to the question, `turns` behind it as the model sees them, `trace` as recorded."""

    candidate: ToolCandidate
    example: Example
    visit: _Visit
    shots: list[Example] = field(default_factory=list)
    head: list[Message] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)
    # Of the turns: which ones are results, and the entries of the trace they belong to.
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def exchange(self) -> Exchange:
        try:
            self.tools = self.candidate.offered(self.example)
            self.begin()
            while True:
                left = self.candidate.spec.max_turns - len(self.trace)
                (response,) = yield [self.request(last=left <= 0)]
                if response.skipped:
                    return Answer("", self.seconds, trace=self.trace, skipped=response.skipped)
                calls = self.calls(response) if left > 0 else ()
                if isinstance(calls, NoCall):
                    self.refuse(response.text, calls)
                    continue
                if not calls:
                    return self.answer(response.text)
                declared = tuple(one for one in calls if one.name in self.tools and self.tools[one.name].kind == "declared")
                if declared:
                    return self.called(declared, response.text)
                self.run(calls[:left], response.text if self.candidate.native else "")
        finally:
            self.visit.leave(self)

    def begin(self) -> None:
        """As many demonstrations as leave room for the calls and their results; the first ones go first."""
        self.shots = [one for one in self.candidate.shots if one.id != self.example.id]
        self.head = self.candidate.opening(self.example, self.shots)
        room = self.visit.call_tokens + self.candidate.spec.max_turns * RESULT_TOKENS
        while self.shots and not self.fits(room, self.schemas()):
            self.drop_shot()

    def schemas(self) -> tuple[str, ...]:
        return tuple(one.schema for one in self.tools.values()) if self.candidate.native else ()

    def request(self, *, last: bool) -> Request:
        candidate = self.candidate
        new = candidate.answer_format.max_new_tokens if last else self.visit.call_tokens
        schemas = () if last else self.schemas()
        if last and self.trace and not candidate.native:
            self.turns.append(Message("user", LAST))
        self.fit(new, schemas)
        talk = (*self.head, *self.turns)
        if candidate.native:
            return Request(self.example.id, talk, new, tools=schemas)
        return Request(self.example.id, in_json(talk), new, stop=STOP)

    def fits(self, new: int, schemas: Sequence[str]) -> bool:
        candidate = self.candidate
        return candidate.count([*self.head, *self.turns], schemas) + new <= candidate.engine.context_length

    def fit(self, new: int, schemas: Sequence[str]) -> None:
        """Shorten long results, then drop demonstrations, then shorten more, until all fits (or the engine says it does not)."""
        long, short = SHORTENED
        self.shorten(long, new, schemas)
        while self.shots and not self.fits(new, schemas):
            self.drop_shot()
        self.shorten(short, new, schemas)

    def shorten(self, most: int, new: int, schemas: Sequence[str]) -> None:
        """The oldest first, and only as many as it takes."""
        for at, entry in self.results.items():
            if self.fits(new, schemas):
                return
            text = self.turns[at].content
            if len(text) > most:
                self.turns[at] = replace(self.turns[at], content=f"{text[:most]} …")
                # Characters of the result that the model saw at last.
                entry["shown"] = most

    def drop_shot(self) -> None:
        del self.shots[0]
        self.head = self.candidate.opening(self.example, self.shots)

    def calls(self, response: Response) -> tuple[ToolCall, ...] | NoCall:
        if self.candidate.native:
            return response.calls
        return calls_in_text(response.text, self.tools)

    def refuse(self, text: str, why: NoCall) -> None:
        """A call that cannot be read counts as one, so that the exchange ends."""
        self.trace.append({"tool": "", "arguments": text.strip()[:FAILED_CALL], "error": why.message, "seconds": 0.0})
        self.turns += [Message("assistant", text.strip()[:FAILED_CALL]), Message("user", f"Error: {why.message}")]

    def run(self, calls: Sequence[ToolCall], said: str) -> None:
        named = [replace(one, id=one.id or f"call{len(self.trace) + at:05d}") for at, one in enumerate(calls)]
        # A template reads the arguments as JSON: what is none is shown as an empty object, beside the error.
        self.turns.append(Message("assistant", said, tuple(replace(one, arguments=_object(one.arguments)) for one in named)))
        for call in named:
            outcome = self.visit.box.run(call)
            self.seconds += outcome.seconds
            entry = _entry(call, outcome)
            self.trace.append(entry)
            self.results[len(self.turns)] = entry
            self.turns.append(Message("tool", _shown(outcome), tool_call_id=call.id, name=call.name))

    def called(self, calls: tuple[ToolCall, ...], said: str) -> Answer:
        """Nobody runs a declared tool: its call is the answer."""
        plain = tuple(replace(one, arguments=_object(one.arguments)) for one in calls)
        self.trace += [{"tool": one.name, "arguments": _json(one.arguments), "seconds": 0.0} for one in calls]
        text = calls_as_text(plain)
        return Answer(text, self.seconds, said=said if said.strip() and said != text else "", trace=self.trace)

    def answer(self, said: str) -> Answer:
        text = self.candidate.parse(said)
        return Answer(text, self.seconds, said="" if said == text else said, trace=self.trace)


def _shown(outcome: Outcome) -> str:
    return f"error: {outcome.text}" if outcome.error else outcome.text


def _entry(call: ToolCall, outcome: Outcome) -> dict[str, Any]:
    told = {"error" if outcome.error else "result": outcome.text}
    return {"tool": call.name, "arguments": _json(call.arguments), **told, "seconds": round(outcome.seconds, 6)}


def _json(arguments: str) -> Any:
    """The arguments as values, or as they were written where they are no JSON."""
    try:
        return parse(arguments)
    except JsonError:
        return arguments


def _object(arguments: str) -> str:
    body = _json(arguments)
    return compact(body) if isinstance(body, dict) else "{}"
