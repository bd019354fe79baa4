"""Exchanges of several rounds: batched by round, added up, and ended exactly once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.candidate import Answer, Exchange
from evals.engines.engine import Message, Request, Response
from evals.errors import AdvisorError
from evals.exchange import exchanged


@dataclass
class Echo:
    """Answers with the last message in capitals; remembers what was asked together."""

    rounds: list[list[Request]] = field(default_factory=list)
    silent: frozenset[str] = frozenset()
    name: str = "echo"
    fingerprint: str = "echo"
    context_length: int = 100
    takes_tools: bool = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(self.count_tokens([one.content for one in turns])) for turns in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        self.rounds.append(list(requests))
        # Backwards: order is not promised.
        for one in reversed(requests):
            if one.id not in self.silent:
                yield Response(one.id, one.messages[-1].content.upper(), 3, 2, 0.5)


def ask(text: str) -> Request:
    return Request("any", (Message("user", text),), 4)


def chain(*texts: str) -> Exchange:
    said = []
    for text in texts:
        (response,) = yield [ask(text)]
        said.append(response.text)
    return Answer(" ".join(said), seconds=0.25, trace=[{"said": said}])


def fan(*texts: str) -> Exchange:
    responses = yield [ask(text) for text in texts]
    return Answer("".join(one.text for one in responses))


def test_each_round_asks_everything_at_once_and_costs_add_up() -> None:
    engine = Echo()
    steps = [("a", chain("x", "y", "z")), ("b", fan("p", "q")), ("c", ask("lone")), ("d", Answer("none", 0.125))]
    found = {one.id: one for one in exchanged(engine, steps, str.title)}
    assert {name: one.answer.text for name, one in found.items()} == {"a": "X Y Z", "b": "PQ", "c": "Lone", "d": "none"}
    assert [len(one) for one in engine.rounds] == [4, 1, 1]
    assert all(len({one.id for one in asked}) == len(asked) for asked in engine.rounds)
    assert (found["a"].prompt_tokens, found["a"].output_tokens, found["a"].seconds) == (9, 6, 1.75)
    assert (found["b"].prompt_tokens, found["b"].output_tokens, found["b"].seconds) == (6, 4, 1.0)
    assert (found["d"].prompt_tokens, found["d"].seconds) == (0, 0.125)
    assert found["a"].answer.trace == [{"said": ["X", "Y", "Z"]}]
    # What a lone request was read from is kept where it is more than the answer.
    assert found["c"].answer.said == "LONE"


def test_an_answer_comes_as_soon_as_its_own_round_ends() -> None:
    order = [one.id for one in exchanged(Echo(), [("long", chain("1", "2")), ("short", chain("1"))], str)]
    assert order == ["short", "long"]


def test_an_exchange_may_answer_without_asking() -> None:
    def silent() -> Exchange:
        return Answer("at once")
        yield []

    engine = Echo()
    (found,) = exchanged(engine, [("a", silent())], str)
    assert (found.answer.text, engine.rounds) == ("at once", [])


def test_what_is_drawn_differs_within_a_round() -> None:
    engine = Echo()

    def drawn(name: str, number: int, request: Request) -> Request:
        return replace(request, temperature=1.0, seed=10 + number)

    list(exchanged(engine, [("a", fan("p", "q"))], str, drawn))
    assert [one.seed for one in engine.rounds[0]] == [10, 11]


def test_an_engine_that_leaves_a_round_open_is_named() -> None:
    with pytest.raises(AdvisorError, match="1 of 2 requests without an answer, the first is of b"):
        list(exchanged(Echo(silent=frozenset({"b"})), [("a", ask("x")), ("b", chain("y", "z"))], str))


def test_a_model_that_is_not_there_and_a_round_that_asks_nothing_are_errors() -> None:
    with pytest.raises(AdvisorError, match="has no engine"):
        list(exchanged(None, [("a", ask("x"))], str))

    def idle() -> Exchange:
        yield []
        return Answer("")

    with pytest.raises(AdvisorError, match="asks nothing"):
        list(exchanged(Echo(), [("a", idle())], str))


@given(st.lists(st.lists(st.text("abc", max_size=3), max_size=4), max_size=8))
def test_every_exchange_ends_once_whatever_their_lengths(chains: list[list[str]]) -> None:
    steps = [(str(at), chain(*texts)) for at, texts in enumerate(chains)]
    engine = Echo()
    found = {one.id: one for one in exchanged(engine, steps, str)}
    assert {name: one.answer.text for name, one in found.items()} == {
        str(at): " ".join(text.upper() for text in texts) for at, texts in enumerate(chains)
    }
    assert sum(map(len, engine.rounds)) == sum(map(len, chains))
    assert len(engine.rounds) == max(map(len, chains), default=0)
