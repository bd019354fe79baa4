"""Prompt tokens that were read once for several requests: counted by who reads them, and kept with the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evals.engines import decode
from evals.engines.budget import Budget
from evals.engines.cache import ResponseCache, through
from evals.engines.endpoint import EndpointEngine
from evals.engines.engine import Message, Request, Response
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.evaluate import _read
from evals.events import ignore
from evals.exchange import exchanged
from evals.scores import Score, Scores, unscored
from tests.evals.test_exchange import Echo, ask, chain
from tests.serving import Reply, ScriptedServer, completion

RULES = "Read the message and answer with one word. Take your time, and be sure of what you say."
DOCUMENTS = [
    "The lake is deep, and the pike in it are old and clever. ",
    "Our bank opens at nine and closes at noon, I think. ",
]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> HfEngine:
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    assert engine.handle.budget  # measured now, by forward passes that no test counts
    return engine


def questions(*texts: str, system: str = RULES, limit: int = 1) -> list[Request]:
    """One token is answered, which the reading of the prompt gives: nothing else is read."""
    return [
        Request(f"{at}", (*([Message("system", system)] if system else []), Message("user", text)), limit)
        for at, text in enumerate(texts)
    ]


def counted(engine: HfEngine, asked: Sequence[Request], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Response], int]:
    """The responses, and how many tokens (padding among them) went through the model."""
    read: list[int] = []
    forward = ModelHandle.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            ModelHandle, "forward", lambda self, ids, *more: read.append(sum(map(len, ids))) or forward(self, ids, *more)
        )
        return sorted(engine.generate(asked), key=lambda one: int(one.id)), sum(read)


def test_what_all_begin_with_is_counted_for_each_but_the_first(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = counted(tiny, questions("red", "ten", "fox", "owl"), monkeypatch)
    first, *others = [one.cached_tokens for one in found]
    assert first == 0
    (shared,) = set(others)
    assert shared >= len(RULES)
    # Tails of equal length are not padded: what is not cached is what the model read.
    assert sum(one.prompt_tokens - one.cached_tokens for one in found) == read


def test_groups_add_what_they_share_of_their_own(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(map(len, DOCUMENTS))) == 2
    monkeypatch.setattr(decode, "MIN_SAVED", 64)
    texts = [document + word for word in ("who", "why", "how") for document in DOCUMENTS]
    found, read = counted(tiny, questions(*texts), monkeypatch)
    assert sum(one.prompt_tokens - one.cached_tokens for one in found) == read
    # Of each document's three questions one reads it.
    for number, document in enumerate(DOCUMENTS):
        members = [one.cached_tokens for one in found[number::2]]
        assert sum(cached >= len(RULES) + len(document) - 1 for cached in members) >= 1
        assert max(members) - min(members) >= len(document)
    assert all(0 <= one.cached_tokens < one.prompt_tokens for one in found)


@pytest.mark.parametrize("texts", [("red",), ("red", "ten")])
def test_nothing_is_cached_where_nothing_was_shared(
    tiny: HfEngine, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request alone, and prompts whose common beginning is too short to be read apart."""
    found, read = counted(tiny, questions(*texts, system=""), monkeypatch)
    assert [one.cached_tokens for one in found] == [0] * len(texts)
    assert read == sum(one.prompt_tokens for one in found)


def test_the_model_s_own_way_shares_nothing(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.handle.__dict__, "shares", False)
    assert {one.cached_tokens for one in tiny.generate(questions("red", "ten", "fox"))} == {0}


def test_lanes_and_new_starts_do_not_count_a_prompt_twice(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the middle of the answers: rows start again with their answers behind their prompts."""
    monkeypatch.setattr(decode, "MIN_SAVED", 64)
    monkeypatch.setitem(tiny.handle.__dict__, "budget", Budget(64, 4))
    asked = questions(*[DOCUMENTS[0] + word for word in ("who", "why", "how", "who")], limit=12)
    whole = {one.id: one for one in tiny.generate(asked)}
    step, steps = decode.LaneStore.step, [0]

    def failing(self: decode.LaneStore, rows: Sequence[decode.Row]) -> Any:
        steps[0] += 1
        if steps[0] == 5:
            raise decode.OutOfMemoryError
        return step(self, rows)

    monkeypatch.setattr(decode.LaneStore, "step", failing)
    again = {one.id: one for one in tiny.generate(asked)}
    assert steps[0] > 5
    for name, one in again.items():
        assert (one.text, one.prompt_tokens) == (whole[name].text, whole[name].prompt_tokens)
        assert 0 <= one.cached_tokens < one.prompt_tokens


# A server


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 8}}, 8),
        ({"prompt_tokens_details": {"cached_tokens": 99}}, 11),
        ({"prompt_tokens_details": {"cached_tokens": -3}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": "8"}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": []}, 0),
        ({}, 0),
    ],
)
def test_a_server_s_own_count_is_read_and_never_believed_beyond_the_prompt(details: dict[str, Any], cached: int) -> None:
    body = completion("blue")
    body["usage"] |= details
    with ScriptedServer(lambda *_: Reply(body=body)).running() as base_url:
        (found,) = EndpointEngine(base_url, "m", ignore).generate(questions("why?"))
    assert (found.prompt_tokens, found.cached_tokens, found.text) == (11, cached, "blue")


# What is kept


class Caching:
    """Answers every request but the first from a cache of its own."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[Response]:
        for at, one in enumerate(requests):
            yield Response(one.id, "x", 10, 1, 0.5, cached_tokens=7 if at else 0)


def test_a_kept_response_keeps_what_was_measured(tmp_path: Path) -> None:
    asked = questions("a", "b", "c")
    for _ in range(2):
        kept = {one.id: one.cached_tokens for one in through(ResponseCache(tmp_path / "kept.sqlite"), "f", asked, Caching())}
        assert kept == {"0": 0, "1": 7, "2": 7}


def test_rows_and_records_from_before_it_was_counted_read_as_none_cached(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    cache = ResponseCache(path)
    list(through(cache, "f", questions("a", "b"), Caching()))
    connection = cache._connection
    assert connection is not None
    for key, body in connection.execute("SELECT key, body FROM responses").fetchall():
        row = json.loads(body)
        del row["cached_tokens"]
        connection.execute("UPDATE responses SET body = ? WHERE key = ?", (json.dumps(row).encode(), key))
    cache.close()

    def nobody(_: Sequence[Request]) -> Iterator[Response]:
        raise AssertionError("an old row is an answer still")

    assert [one.cached_tokens for one in through(ResponseCache(path), "f", questions("a", "b"), nobody)] == [0, 0]
    old = asdict(Score("a", 1.0, "x", 10, 1, 0.5))
    del old["cached_tokens"]
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    assert _read(tmp_path / "old.jsonl")["a"].cached_tokens == 0


def test_rounds_of_an_exchange_add_up_and_reach_the_score() -> None:
    class Sharing(Echo):
        def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
            for one in requests:
                yield Response(one.id, one.messages[-1].content, 10, 2, 0.5, cached_tokens=4)

    found = {one.id: unscored(one) for one in exchanged(Sharing(), [("a", chain("x", "y", "z")), ("b", ask("q"))], str)}
    assert {name: one.cached_tokens for name, one in found.items()} == {"a": 12, "b": 4}
    assert Scores("c", "prompt", "dev", "m", tuple(found.values())).average("cached_tokens") == 8
