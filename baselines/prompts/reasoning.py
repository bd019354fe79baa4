"""Reasons before the answer (Kojima et al. 2022, 2205.11916), and a vote among several such answers (Wang et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from baselines.prompts.prompt import Prompt, answer_format, most_tokens, seed_of
from evals.candidate import Answer, AnswerFormat, Exchange, Kind, PromptFormat
from evals.engines.engine import Engine, Request, Response
from evals.events import Note, OnEvent
from evals.metrics.label import normalise_label
from evals.metrics.number import parse_number
from evals.metrics.structured import NOTHING, parse_value
from evals.metrics.text import normalise
from evals.task.example import Example
from evals.task.load import Task

# Tokens for the reasons, beside those of the answer: a calculation takes more than the choice of a label.
ROOM = {"number": 256, "text": 256, "label": 96, "json": 96}
MARK = "Answer:"
ASKED = f'Think step by step. Then write the answer alone on the last line, after "{MARK}".'
TEMPERATURE = 0.7


def reason_then_answer(task: Task, engine: Engine, on_event: OnEvent) -> Prompt:
    """Zero-shot with reasons first: the task's instruction, and that the answer stands behind a mark on the last line.

    Both stand before the question, in the user's turn: the demo model set its mark there now and then, and never when it
    was asked to in a system message.

    The reasons have the tokens of `ROOM`, or what the context leaves of them.
    """
    asked = PromptFormat("\n\n".join(filter(None, [task.instruction, ASKED])), "inline")
    answers = with_reasons("reason_then_answer", answer_format(task, engine), asked, task, engine, on_event)
    return Prompt("reason_then_answer", engine, asked, answers, on_event=on_event)


def with_reasons(
    name: str, answers: AnswerFormat, asked: PromptFormat, task: Task, engine: Engine, on_event: OnEvent
) -> AnswerFormat:
    """The same answers behind a mark, with the tokens of ROOM for reasons before it, or what the longest question of train and
    dev leaves of them in the context: then it is said."""
    prompts = [asked.messages(one) for one in (*task.train, *task.dev)]
    left = engine.context_length - answers.max_new_tokens
    room = wanted = ROOM[task.output_type]
    if max(most_tokens(engine, prompts)) > left - wanted:
        room = max(0, min(wanted, left - max(engine.count_prompts(prompts))))
    if room < wanted:
        on_event(Note(f"{name}: the context leaves {room} of {wanted} tokens for reasons", "warning"))
    return replace(answers, after=MARK, max_new_tokens=answers.max_new_tokens + room)


@dataclass(frozen=True)
class SelfConsistency:
    """The majority among `samples` answers to `prompt`, each drawn at `TEMPERATURE` (Wang et al. 2022, 2203.11171).

    A sample's seed is of the task's `seed`, the example and the sample's number: the same in every run, while one example's
    luck is not the next one's, as intervals assume. The first seen wins a tie.
    """

    prompt: Prompt
    samples: int
    seed: int

    @property
    def name(self) -> str:
        return f"self_consistency_{self.samples}"

    @property
    def kind(self) -> Kind:
        return self.prompt.kind

    @property
    def engine(self) -> Engine:
        return self.prompt.engine

    @property
    def settings(self) -> Mapping[str, Any]:
        drawn = {"samples": self.samples, "temperature": TEMPERATURE, "seed": self.seed}
        return {**self.prompt.settings, "self_consistency": {**drawn, "prompt": self.prompt.name}}

    def requests(self, examples: Sequence[Example]) -> list[Exchange]:
        return [self._sampled(request) for request in self.prompt.requests(examples)]

    def parse(self, text: str) -> str:
        return self.prompt.parse(text)

    def _sampled(self, request: Request) -> Exchange:
        """One round with all samples, then the vote."""
        seeds = [seed_of(self.seed, request.id, number) for number in range(self.samples)]
        responses = yield [replace(request, temperature=TEMPERATURE, seed=seed) for seed in seeds]
        return voted(responses, self.prompt.answer_format)


def voted(responses: Sequence[Response], answers: AnswerFormat) -> Answer:
    """The answer that most of the responses give, with what was said with it first, and the votes, most first, as the trace.

    A skipped response has no vote, and one that cannot be read as an answer (no label, no JSON) has none where any other can.
    """
    heard = [one for one in responses if not one.skipped]
    if not heard:
        return Answer("", skipped=responses[0].skipped if responses else "no sample was drawn")
    parsed = [(answers.parse(one.text), one.text) for one in heard]
    keys = [comparable(text, answers) for text, _ in parsed]
    if all(key is None for key in keys):
        keys = [normalise(text) for text, _ in parsed]
    votes: dict[str, list[tuple[str, str]]] = {}
    for key, pair in zip(keys, parsed, strict=True):
        if key is not None:
            votes.setdefault(key, []).append(pair)
    # `sorted` is stable: of equally many votes the first seen stays first.
    ranked = sorted(votes.values(), key=len, reverse=True)
    text, said = ranked[0][0]
    trace = [{"answer": pairs[0][0], "votes": len(pairs)} for pairs in ranked]
    return Answer(text, said="" if said == text else said, trace=trace)


def comparable(text: str, answers: AnswerFormat) -> str | None:
    """What two answers have in common that say the same; None where the text is no answer of the type.

    Labels as `normalise_label` has them, numbers by value, JSON with sorted keys (1 equals 1.0), other text normalised.
    """
    if answers.output_type == "label":
        label, known = normalise_label(text), {normalise_label(one) for one in answers.labels}
        return label if label and (label in known or not known) else None
    if answers.output_type == "number":
        number = parse_number(text)
        return None if number is None else repr(number + 0.0)
    if answers.output_type == "json":
        value = parse_value(text)
        return None if value is NOTHING else json.dumps(_canonical(value), sort_keys=True)
    return normalise(text) or None


def _canonical(value: Any) -> Any:
    """The value with whole floats as integers."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
