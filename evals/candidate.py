"""Candidates: the ways to answer a task. A prompt, a retrieval pipeline, a classifier, a tuned model: all have this one shape."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from evals.engines.engine import Engine, Message, Request, Response
from evals.metrics.number import MENTIONED
from evals.metrics.structured import MAX_STARTS, START
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

    def messages(
        self,
        example: Example,
        shots: Sequence[Example] = (),
        *,
        context: Sequence[str] = (),
        shot_contexts: Sequence[Sequence[str]] = (),
    ) -> tuple[Message, ...]:
        """System (if any), then each shot's turns and its answer, then the example's own turns, ending with the user's.

        There is one system message at most, and it comes first, as chat templates demand: the instruction and the
        example's own one are joined, and those of the shots are left out. So are the tool calls of the shots, and their
        results: nothing is shown to a model that it cannot do. `context` stands before the input; `shot_contexts` are
        those of the shots, where these have any.
        """
        system = [self.instruction] if self.placement == "system" and self.instruction else []
        system += [message.content for message in example.messages if message.role == "system"]
        turns = [Message("system", "\n\n".join(system))] if system else []
        for shot, own in zip(shots, shot_contexts or [()] * len(shots), strict=True):
            shown = [one for one in shot.messages if one.role != "tool" and not one.tool_calls]
            turns += [*self._dress(shown, own), Message("assistant", shot.target)]
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


def last_line(text: str) -> str:
    """The last line with anything on it, stripped: where a conclusion stands."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


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
        """The answer in a model's text: all of it for JSON, else its first line (or a label of several). Never raises.

        With `after`, of the text behind the last such mark that anything follows: in any case, emphasised or not
        (`**Answer:** red`, `**Answer: red**`), with "is" before its colon or without; JSON may stand in a code fence there.
        Where there is no mark the answer is the last number, the last JSON object, or the last line (of "The answer is
        red." what follows "is").
        """
        if self.after:
            text = _concluded(text, self.after, self.output_type)
        whole = text.strip()
        if self.output_type == "json" or (self.output_type == "label" and whole in {one.strip() for one in self.labels}):
            return whole
        return first_line(text)


FENCED = re.compile(r"(`{3,}+|~{3,}+)[^\S\n]*(?:json)?[^\S\n]*\n(.*?)\n?[^\S\n]*\1[`~]*", re.DOTALL | re.IGNORECASE)


def _concluded(text: str, after: str, output_type: str) -> str:
    """The part of a text with reasons that the answer is read from."""
    marks = list(_mark(after).finditer(text))
    for mark in reversed(marks):
        behind = text[mark.end() :].strip()
        if behind:
            wrap = "" if mark["inside"] or mark["closed"] else mark["wrap"]
            return _unwrapped(behind, wrap, output_type)
    if marks:
        text = text[: marks[0].start()]
    if output_type == "json":
        return _last_object(text)
    if output_type == "number":
        return _last_number(text)
    line = last_line(text)
    said = list(re.finditer(rf"\b{_words(after)}\s+is\b", line, re.IGNORECASE))
    return (line[said[-1].end() :].strip() if said else "") or line


def _words(after: str) -> str:
    """A pattern for the mark without its colon; any white space stands between its words."""
    return r"\s+".join(map(re.escape, after.rstrip(":： ").split()))


def _mark(after: str) -> re.Pattern[str]:
    """`wrap` is the emphasis that begins before the mark; it may end before (`inside`) or after (`closed`) its colon."""
    colon = r"(?:\s+is)?(?P<inside>(?P=wrap))?\s*[:：](?P<closed>(?P=wrap))?" if after.rstrip().endswith((":", "：")) else ""
    colon = colon or r"(?P<inside>(?P=wrap))?(?P<closed>(?P=wrap))?"
    # Not inside a word; an underscore before it is emphasis.
    start = r"(?<![^\W_])" if after[:1].isalnum() else ""
    return re.compile(rf"{start}(?P<wrap>[*_`]{{0,3}}){_words(after)}{colon}", re.IGNORECASE)


def _unwrapped(text: str, wrap: str, output_type: str) -> str:
    """Without the emphasis that began before the mark, and for JSON without the code fence around it."""
    if output_type == "json":
        text = text.removesuffix(wrap).strip()
        fenced = FENCED.match(text)
        return fenced[2] if fenced else text
    first, *rest = text.splitlines()
    return "\n".join([first.rstrip().removesuffix(wrap), *rest])


def _last_number(text: str) -> str:
    """The last number as it is written, else the last line."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    found = [match[0] for match in MENTIONED.finditer(plain)]
    return found[-1] if found else last_line(text)


def _last_object(text: str) -> str:
    """The text of the last JSON object that stands in no other, else all of the text."""
    decoder = json.JSONDecoder(strict=False)
    found, end = text, 0
    # Each failure costs the length of the text, hence the limit.
    for start in [one.start() for one in START.finditer(text)][-MAX_STARTS:]:
        if start < end:
            continue
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found = text[start:end]
    return found
