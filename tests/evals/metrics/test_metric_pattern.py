"""Regular expressions: the whole answer or a part, and patterns that would never end."""

from __future__ import annotations

import time

import pytest

from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.events import Event, Note
from evals.metrics import pattern
from evals.metrics.options import Regex
from evals.metrics.pattern import Pattern
from evals.task.example import Example


def pairs(*answers: str) -> list[tuple[Example, str]]:
    return [(Example(f"row-{at}", (Message("user", "q"),), "t"), answer) for at, answer in enumerate(answers)]


def made(source: str, events: list[Event] | None = None, *, search: bool = False) -> Pattern:
    return Pattern(Regex(name="regex", pattern=source, search=search), (events if events is not None else []).append)


def test_the_whole_answer_or_a_part() -> None:
    answers = ["INV-12", " INV-12\n", "see INV-12", "INV-", "", "\ud800", "INV-１２"]
    assert made(r"INV-\d+")(pairs(*answers)) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert made(r"INV-\d+", search=True)(pairs(*answers)) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    # The shorter alternative first: a match at the start would not be whole.
    assert made("a|ab")(pairs("ab")) == [1.0]
    assert made("(?s)<.*>")(pairs("<\n\x00\u2028>")) == [1.0]
    assert made("x")([]) == []


def test_a_pattern_without_end_is_cut_off_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "SECONDS", 0.3)
    events: list[Event] = []
    started = time.monotonic()
    bomb = "a" * 40 + "b"
    assert made("(a+)+$", events)(pairs("aaa", bomb, "aa", bomb, "b")) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert time.monotonic() - started < 10
    [note] = events
    assert isinstance(note, Note)
    assert note.level == "warning"
    assert "2 answers" in note.text
    assert "row-1" in note.text


def test_too_many_of_them_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "SECONDS", 0.1)
    monkeypatch.setattr(pattern, "MAX_LATE", 2)
    with pytest.raises(AdvisorError, match="3 answers cannot be decided") as caught:
        made("(a+)+$")(pairs(*["a" * 40 + "b"] * 9))
    assert "(a+)+$" in str(caught.value)
    assert "simpler" in str(caught.value)


def test_names_and_settings() -> None:
    one = Pattern(Regex(name="regex", pattern="x", called="ticket"), print)
    assert one.name == "ticket"
    assert one.settings == {"name": "regex", "pattern": "x", "search": False}
