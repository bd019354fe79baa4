"""Asking a model until every example has its answer: single requests and exchanges of several rounds, batched together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from evals.candidate import Answer, Exchange, Step
from evals.engines.engine import Engine, Request, Response
from evals.errors import AdvisorError


@dataclass(frozen=True)
class Answered:
    """An example's answer with what it took: tokens in (of them cached) and out, and seconds (the model's and the candidate's),
    of all rounds."""

    id: str
    answer: Answer
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0


@dataclass
class _Open:
    """An exchange that waits for the responses to `asked`."""

    id: str
    exchange: Exchange
    asked: Sequence[Request] = ()
    found: dict[int, Response] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0

    def go_on(self, responses: Sequence[Response] | None) -> Answered | None:
        """Send the responses (None: begin); the answer where the exchange ends with them."""
        for one in responses or ():
            self.prompt_tokens += one.prompt_tokens
            self.output_tokens += one.output_tokens
            self.seconds += one.seconds
            self.cached_tokens += one.cached_tokens
        try:
            self.asked = next(self.exchange) if responses is None else self.exchange.send(responses)
        except StopIteration as end:
            answer: Answer = end.value
            seconds = self.seconds + answer.seconds
            return Answered(self.id, answer, self.prompt_tokens, self.output_tokens, seconds, self.cached_tokens)
        if not self.asked:
            raise AdvisorError("an exchange with a model asks nothing and does not end", where=self.id)
        self.found = {}
        return None


def once(request: Request, parse: Callable[[str], str]) -> Exchange:
    """A lone request as an exchange of one round."""
    (response,) = yield [request]
    text = parse(response.text)
    return Answer(text, said="" if response.text == text else response.text, skipped=response.skipped)


def exchanged(
    engine: Engine | None,
    steps: Sequence[tuple[str, Step]],
    parse: Callable[[str], str],
    drawn: Callable[[str, int, Request], Request] = lambda _id, _number, request: request,
) -> Iterator[Answered]:
    """The answers to (id, step) pairs, each as soon as it is there, in any order.

    All requests of a round are known to the engine at once; an exchange that goes on asks in the next round. `drawn` may
    change a request (of an id, by its number in the round) before it is sent. Raises AdvisorError where a model must be
    asked and there is none, or where the engine leaves a request unanswered.
    """
    waiting: list[_Open] = []
    for name, step in steps:
        if isinstance(step, Answer):
            yield Answered(name, step, seconds=step.seconds)
            continue
        one = _Open(name, once(step, parse) if isinstance(step, Request) else step)
        ended = one.go_on(None)
        if ended is None:
            waiting.append(one)
        else:
            yield ended
    if waiting and engine is None:
        raise AdvisorError("a candidate asks a model but has no engine", where=waiting[0].id)
    while waiting and engine is not None:
        places = {}
        requests = []
        for one in waiting:
            for number, asked in enumerate(one.asked):
                # Alone it keeps the example's name, which is what an engine's messages show.
                name = one.id if len(one.asked) == 1 else f"{one.id}\x1f{number}"
                places[name] = one, number
                requests.append(replace(drawn(one.id, number, asked), id=name))
        waiting = []
        for response in engine.generate(requests):
            one, number = places.pop(response.id)
            one.found[number] = response
            if len(one.found) < len(one.asked):
                continue
            ended = one.go_on([one.found[at] for at in range(len(one.asked))])
            if ended is None:
                waiting.append(one)
            else:
                yield ended
        if places:
            first = next(iter(places.values()))[0].id
            raise AdvisorError(
                f"the engine left {len(places)} of {len(requests)} requests without an answer, the first is of {first}",
                where=engine.name,
                do="run the same command again: it asks only for these.",
            )
