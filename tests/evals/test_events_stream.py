"""The event stream: a listener that fails stops nothing, and progress adds up."""

from __future__ import annotations

import json

from evals.events import Event, Note, Progress, Ticker, broadcast, to_json, waiting


def test_a_listener_that_raises_stops_neither_the_run_nor_the_others() -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a screen that is gone")

    broadcast([broken, heard.append, broken])(Note("hello"))
    assert [event.text for event in heard if isinstance(event, Note)] == ["hello"]


def test_a_ticker_ends_at_its_total_and_goes_on_from_what_was_done() -> None:
    heard: list[Event] = []
    ticker = Ticker(heard.append, "work", 10, "items", done=4)
    for _ in range(6):
        ticker.advance()
    shown = [event for event in heard if isinstance(event, Progress)]
    assert (shown[0].done, shown[0].rate) == (4, 0.0)
    assert (shown[-1].done, shown[-1].total, shown[-1].eta) == (10, 10, 0.0)
    assert shown[-1].rate > 0


def test_an_event_is_json_with_its_name() -> None:
    heard: list[Event] = []
    with waiting(heard.append, "loading"):
        assert len(heard) == 1
    body = json.loads(json.dumps(to_json(heard[-1])))
    assert (body["event"], body["task"], body["done"]) == ("Progress", "loading", 1)
    assert body["at"] > 1.7e9
