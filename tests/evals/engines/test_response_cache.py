"""An answer that was paid for is kept, by exactly what shaped it, and no fate of the file stops a run or bends an answer."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines import cache as module
from evals.engines.cache import ROW_BYTES, ResponseCache, request_key, through
from evals.engines.engine import Constraint, Message, Request, Response, ToolCall
from evals.events import Event, Note

REQUEST = Request("a", (Message("system", "Be brief."), Message("user", "Hello")), 16)
ANSWER = Response("a", "Hi.", 9, 3, 0.25, True, "", -1.5)
# Another value for each field, and more than one where there is more than one way to differ.
CHANGES: dict[str, list[Any]] = {
    "messages": [
        REQUEST.messages[1:],
        REQUEST.messages[::-1],
        (Message("system", "Be brief."), Message("user", "Hello ")),
        (Message("system", "Be brief."), Message("assistant", "Hello")),
        (Message("system", "Be brief.Hello"),),
        (*REQUEST.messages, Message("assistant", "", (ToolCall("f", "{}"),))),
        (*REQUEST.messages, Message("assistant", "", (ToolCall("f", "{}", "1"),))),
        (*REQUEST.messages, Message("tool", "2", tool_call_id="1")),
        (*REQUEST.messages, Message("tool", "2", tool_call_id="1", name="f")),
    ],
    "max_new_tokens": [17],
    "temperature": [0.5],
    "seed": [0, 1],
    "stop": [("\n",), ("\n", ";"), ("\n;",)],
    "constraint": [Constraint("regex", "a"), Constraint("regex", "b"), Constraint("choice", "a")],
    "logprob": [True],
    "tools": [("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",)],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "responses.sqlite"


@pytest.fixture
def notes() -> list[str]:
    return []


def listener(notes: list[str]) -> Any:
    def on_event(event: Event) -> None:
        assert isinstance(event, Note)
        assert event.level == "warning"
        notes.append(event.text)

    return on_event


class Model:
    """Answers with the last message, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            self.asked.append(request)
            yield Response(request.id, f"{request.messages[-1].content} #{len(self.asked)}", 1, 1, 0.5)


def question(name: str, text: str, **settings: Any) -> Request:
    return Request(name, (Message("user", text),), 8, **settings)


# What shapes an answer


@pytest.mark.parametrize("field", [one.name for one in fields(Request) if one.name != "id"])
def test_every_setting_of_a_request_has_a_part_in_its_key(field: str) -> None:
    seeded = replace(REQUEST, seed=7) if field == "temperature" else REQUEST
    variants = [seeded, *(replace(seeded, **{field: value}) for value in CHANGES[field])]
    keys = [request_key("f", one) for one in variants]
    assert len(set(keys)) == len(variants)
    assert None not in keys


def test_the_fingerprint_has_a_part_in_the_key_and_the_id_has_none() -> None:
    assert request_key("f", REQUEST) != request_key("g", REQUEST)
    assert request_key("f", REQUEST) == request_key("f", replace(REQUEST, id="b"))


def test_lone_surrogates_are_not_taken_for_the_character_that_they_would_make() -> None:
    assert request_key("f", question("a", "\ud83d\ude00")) != request_key("f", question("a", "\U0001f600"))


def test_a_sample_without_a_seed_is_never_kept(path: Path) -> None:
    assert request_key("f", replace(REQUEST, temperature=0.7)) is None
    assert request_key("f", replace(REQUEST, temperature=0.7, seed=0)) is not None
    model = Model()
    samples = [question(str(number), "same", temperature=0.7) for number in range(3)]
    for _ in range(2):
        texts = [one.text for one in through(ResponseCache(path), "f", samples, model)]
        assert len(set(texts)) == 3
    assert len(model.asked) == 6


# What comes back


@given(
    st.builds(
        Response,
        id=st.just(""),
        text=st.text(st.characters()),
        prompt_tokens=st.integers(0, 10**9),
        output_tokens=st.integers(0, 10**9),
        seconds=st.floats(0, 1e6),
        truncated=st.booleans(),
        logprob=st.none() | st.floats(allow_nan=False),
        calls=st.lists(st.builds(ToolCall, st.text(st.characters()), st.text(), st.text()), max_size=3).map(tuple),
        cached_tokens=st.integers(0, 10**9),
    )
)
def test_any_response_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, response: Response) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.sqlite"
    cache = ResponseCache(path)
    cache.put("key", response)
    cache.close()
    again = ResponseCache(path)
    assert again.get_many(["key"]) == {"key": response}
    again.close()


def test_what_was_asked_is_answered_by_the_next_process_with_its_own_id_and_the_first_cost(path: Path) -> None:
    model = Model()
    asked = list(through(ResponseCache(path), "f", [question("a", "one"), question("b", "two")], model))
    kept = list(through(ResponseCache(path), "f", [question("x", "two"), question("y", "three")], model))
    assert [(one.id, one.text) for one in kept] == [("x", "two #2"), ("y", "three #3")]
    assert kept[0].seconds == asked[1].seconds == 0.5
    assert next(through(ResponseCache(path), "g", [question("x", "two")], model)).text == "two #4"


def test_kept_answers_come_before_the_model_is_asked(path: Path) -> None:
    list(through(ResponseCache(path), "f", [question("b", "two")], Model()))
    model = Model()
    answers = through(ResponseCache(path), "f", [question("a", "one"), question("b", "two")], model)
    assert next(answers).id == "b"
    assert not model.asked
    assert next(answers).id == "a"


def test_equal_requests_are_asked_once_and_unequal_ones_of_one_id_apart(path: Path) -> None:
    model = Model()
    requests = [
        question("a", "same"),
        question("b", "same"),
        question("a", "other"),
        question("a", "drawn", temperature=1.0, seed=1),
        question("a", "drawn", temperature=1.0, seed=2),
        question("a+", "plus"),
    ]
    answers = list(through(ResponseCache(path), "f", requests, model))
    assert len({one.id for one in model.asked}) == len(model.asked) == 5
    assert sorted((one.id, one.text.split()[0]) for one in answers) == [
        ("a", "drawn"),
        ("a", "drawn"),
        ("a", "other"),
        ("a", "same"),
        ("a+", "plus"),
        ("b", "same"),
    ]
    same = [one.text for one in answers if one.text.startswith("same")]
    assert same[0] == same[1]


def test_a_skipped_request_is_asked_again(path: Path) -> None:
    def full(requests: Sequence[Request]) -> Iterator[Response]:
        for one in requests:
            yield Response(one.id, "", 9000, 0, 0.0, skipped="too long")

    skipped = list(through(ResponseCache(path), "f", [question("a", "one"), question("b", "one")], full))
    assert [(one.id, one.skipped) for one in skipped] == [("a", "too long"), ("b", "too long")]
    assert [one.text for one in through(ResponseCache(path), "f", [question("a", "one")], Model())] == ["one #1"]


def test_a_run_that_stops_half_way_keeps_what_came(path: Path) -> None:
    requests = [question(str(number), str(number)) for number in range(10)]
    answers = through(ResponseCache(path), "f", requests, Model())
    for _ in range(4):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    rest = Model()
    list(through(ResponseCache(path), "f", requests, rest))
    assert [one.id for one in rest.asked] == ["4", "5", "6", "7", "8", "9"]


def test_a_model_that_fails_half_way_loses_nothing(path: Path) -> None:
    def failing(requests: Sequence[Request]) -> Iterator[Response]:
        yield from Model()(requests[:2])
        raise RuntimeError("out of memory")

    requests = [question(str(number), str(number)) for number in range(3)]
    with pytest.raises(RuntimeError):
        list(through(ResponseCache(path), "f", requests, failing))
    rest = Model()
    list(through(ResponseCache(path), "f", requests, rest))
    assert [one.id for one in rest.asked] == ["2"]


def test_512_kept_answers_cost_next_to_nothing(path: Path) -> None:
    long = "x" * 3000
    requests = [question(str(number), f"{long}{number}") for number in range(512)]
    list(through(ResponseCache(path), "f", requests, Model()))
    times = []
    for _ in range(5):
        cache, model = ResponseCache(path), Model()
        started = time.perf_counter()
        assert len(list(through(cache, "f", requests, model))) == 512
        times.append(time.perf_counter() - started)
        assert not model.asked
    # 13 ms on a 2-core machine; the goal is 60, and the best of five stands clear of a busy machine.
    assert min(times) < 0.06


# The bound


def test_rows_that_were_not_used_leave_first_and_the_bound_holds(path: Path) -> None:
    body = Response("", "x" * 800, 1, 1, 0.1)
    cache = ResponseCache(path, max_bytes=100 * (ROW_BYTES + 800))
    cache.put_many((f"old {number}", body) for number in range(40))
    for number in range(200):
        assert cache.get_many(["old 7"]), f"the used row left after {number} others"
        cache.put(f"new {number}", body)
        assert stored_bytes(path) <= cache.max_bytes
    assert not cache.get_many(f"old {number}" for number in range(40) if number != 7)
    # As many of the newest as there is room for after a clearing.
    assert set(cache.get_many(f"new {number}" for number in range(200))) >= {f"new {number}" for number in range(130, 200)}
    cache.close()
    connection = sqlite3.connect(path)
    assert (
        connection.execute("SELECT bytes FROM total").fetchone()
        == connection.execute("SELECT sum(bytes) FROM responses").fetchone()
    )


def stored_bytes(path: Path) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT sum(length(body)) FROM responses").fetchone()
    connection.close()
    return int(count)


def test_a_use_counts_across_processes(path: Path) -> None:
    body = Response("", "x" * 800, 1, 1, 0.1)
    first = ResponseCache(path, max_bytes=20 * (ROW_BYTES + 1000))
    first.put_many((f"old {number}", body) for number in range(15))
    reader = ResponseCache(path)
    reader.get_many(["old 0"])
    reader.close()
    first.put_many((f"new {number}", body) for number in range(10))
    assert set(first.get_many(["old 0", "old 1"])) == {"old 0"}


def test_writing_a_row_again_counts_it_once(path: Path) -> None:
    cache = ResponseCache(path)
    for size in (10, 1000, 5):
        cache.put("key", Response("", "x" * size, 1, 1, 0.1))
    cache.close()
    connection = sqlite3.connect(path)
    (total,), (held,) = connection.execute("SELECT bytes FROM total"), connection.execute("SELECT sum(bytes) FROM responses")
    assert total == held


# Several at once


def write_rows(path: Path, name: str) -> None:
    notes: list[str] = []
    cache = ResponseCache(path, on_event=listener(notes))
    for number in range(200):
        cache.put(f"{name}/{number}", Response("", f"{name} {number}", 1, 1, 0.1))
        cache.put("shared", Response("", "shared", 1, 1, 0.1))
    cache.close()
    sys.exit(len(notes))


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_rows, args=(path, str(name))) for name in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert [one.exitcode for one in writers] == [0] * 4
    keys = [f"{name}/{number}" for name in range(4) for number in range(200)]
    found = ResponseCache(path).get_many([*keys, "shared"])
    assert {key: one.text for key, one in found.items()} == {**{key: key.replace("/", " ") for key in keys}, "shared": "shared"}


def test_threads_share_one_cache(path: Path, notes: list[str]) -> None:
    cache = ResponseCache(path, on_event=listener(notes))

    def work(name: int) -> None:
        for number in range(50):
            cache.put(f"{name}/{number}", ANSWER)
            assert cache.get_many([f"{name}/{number}"])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not notes
    assert len(cache.get_many(f"{name}/{number}" for name in range(4) for number in range(50))) == 200


KILLED = """
import sys
from pathlib import Path
from evals.engines.cache import ResponseCache
from evals.engines.engine import Response
cache = ResponseCache(Path(sys.argv[1]))
number = 0
while True:
    cache.put_many([(f"{number}/{part}", Response("", "x" * 500, 1, 1, 0.1)) for part in range(20)])
    print(number, flush=True)
    number += 1
"""


def test_a_killed_process_leaves_all_that_it_had_written(path: Path, notes: list[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        last = int((process.stdout.read().split() or ["29"])[-1])
    cache = ResponseCache(path, on_event=listener(notes))
    for number in range(last + 1):
        assert len(cache.get_many(f"{number}/{part}" for part in range(20))) == 20
    # The transaction in which it died is there whole or not at all.
    assert len(cache.get_many(f"{last + 1}/{part}" for part in range(20))) in {0, 20}
    cache.put("more", ANSWER)
    assert cache.get_many(["more"])
    assert not notes


# Damage


def filled(path: Path) -> None:
    cache = ResponseCache(path)
    cache.put_many((f"{number}", Response("", "x" * 900, 1, 1, 0.1)) for number in range(200))
    cache.close()


def ruin(path: Path) -> None:
    """All pages but the first, in place."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"what is this? " * 1000)


def torn(path: Path) -> None:
    filled(path)
    os.truncate(path, 40_000)


def overwritten(path: Path) -> None:
    filled(path)
    ruin(path)


def of_another_version(path: Path) -> None:
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {module.VERSION + 1}")
    connection.close()


def of_another_program(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE responses (mine TEXT)")
    connection.close()


@pytest.mark.parametrize("damage", [no_database, torn, overwritten, of_another_version, of_another_program])
def test_a_damaged_or_foreign_file_is_set_aside_and_the_run_goes_on(path: Path, notes: list[str], damage: Any) -> None:
    damage(path)
    before = path.read_bytes()
    requests = [question(str(number), str(number)) for number in range(5)]
    cache = ResponseCache(path, on_event=listener(notes))
    cache.get_many([str(number) for number in range(200)])
    assert len(list(through(cache, "f", requests, Model()))) == 5
    assert len(notes) == 1
    assert "set aside" in notes[0]
    assert Path(f"{path}.damaged").read_bytes() == before
    assert len(list(through(ResponseCache(path), "f", requests, lambda _: iter(())))) == 5


def test_damage_that_two_meet_costs_only_the_damaged_file(path: Path) -> None:
    filled(path)
    keys = [str(number) for number in range(200)]
    first, second = ResponseCache(path), ResponseCache(path)
    for one in (first, second):
        one.get_many(["none of them"])
    ruin(path)
    first.get_many(keys)
    first.put("first", ANSWER)
    # It still has the old file open, and meets the damage when the new one is there already.
    assert second.get_many([*keys, "first"]).keys() == {"first"}
    second.put("second", ANSWER)
    assert ResponseCache(path).get_many(["first", "second"]).keys() == {"first", "second"}


def test_the_log_of_a_damaged_file_does_not_get_into_the_new_one(path: Path, tmp_path: Path, notes: list[str]) -> None:
    filled(path)
    cache = ResponseCache(path)
    cache.put("late", ANSWER)
    # As a killed process leaves it: the last row is in the log only.
    left = tmp_path / "killed" / path.name
    shutil.copytree(path.parent, left.parent)
    assert Path(f"{left}-wal").stat().st_size
    ruin(left)
    fresh = ResponseCache(left, on_event=listener(notes))
    assert not fresh.get_many([str(number) for number in range(200)])
    fresh.put("new", ANSWER)
    assert ResponseCache(left).get_many(["late", "new", "1"]).keys() == {"new"}
    assert len(notes) == 1


def test_a_row_that_is_torn_is_asked_again_and_replaced(path: Path, notes: list[str]) -> None:
    model = Model()
    requests = [question("a", "one"), question("b", "two")]
    list(through(ResponseCache(path), "f", requests, model))
    connection = sqlite3.connect(path)
    for text, body in (("one", b'{"text": "cut o'), ("two", b'{"unknown": 1}')):
        key = request_key("f", question("a", text))
        connection.execute("UPDATE responses SET body = ? WHERE key = ?", (body, key))
    connection.commit()
    connection.close()
    again = list(through(ResponseCache(path, on_event=listener(notes)), "f", requests, model))
    assert [one.text for one in again] == ["one #3", "two #4"]
    assert [one.text for one in through(ResponseCache(path), "f", requests, model)] == ["one #3", "two #4"]
    assert not notes


@pytest.mark.parametrize(
    "calls", ["3", '[{"name": "f"}]', '["f"]', '[{"name": "f", "arguments": {}}]', '{"name": "f"}', "null"]
)
def test_a_row_whose_calls_are_damaged_is_asked_again(path: Path, calls: str) -> None:
    cache = ResponseCache(path)
    cache.put("key", replace(ANSWER, calls=(ToolCall("f", "{}"),)))
    cache.close()
    connection = sqlite3.connect(path)
    (body,) = connection.execute("SELECT body FROM responses").fetchone()
    damaged = body.replace(b'[{"name": "f", "arguments": "{}", "id": ""}]', calls.encode())
    assert damaged != body
    connection.execute("UPDATE responses SET body = ?", (damaged,))
    connection.commit()
    connection.close()
    assert not ResponseCache(path).get_many(["key"])


def test_rows_of_before_there_were_calls_are_read(path: Path) -> None:
    cache = ResponseCache(path)
    cache.put("key", ANSWER)
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE responses SET body = CAST(replace(body, ', \"calls\": []', '') AS BLOB)")
    connection.commit()
    assert b"calls" not in connection.execute("SELECT body FROM responses").fetchone()[0]
    connection.close()
    assert ResponseCache(path).get_many(["key"]) == {"key": replace(ANSWER, id="")}


def runs_without(cache: ResponseCache, notes: list[str]) -> None:
    for _ in range(2):
        requests = [question(str(number), str(number)) for number in range(5)]
        model = Model()
        assert len(list(through(cache, "f", requests, model))) == 5
        assert len(model.asked) == 5
    assert len(notes) == 1
    assert "without a cache" in notes[0]


def test_a_place_that_cannot_be_written_costs_the_cache_and_not_the_run(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").write_text("")
    runs_without(ResponseCache(tmp_path / "file" / "responses.sqlite", on_event=listener(notes)), notes)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_costs_the_cache_and_not_the_run(path: Path, notes: list[str]) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    runs_without(ResponseCache(path, on_event=listener(notes)), notes)


FULL = """
import resource, sys
from pathlib import Path
from evals.engines.cache import ResponseCache
from evals.engines.engine import Response
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
notes = []
cache = ResponseCache(Path(sys.argv[1]), on_event=notes.append)
for number in range(500):
    cache.put(str(number), Response("", "x" * 900, 1, 1, 0.1))
print(len(notes), notes[0].text)
"""


def test_a_full_disk_costs_the_cache_and_not_the_run(path: Path, notes: list[str]) -> None:
    said = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.startswith("1 ")
    assert "without a cache" in said
    # What was written before is there, and the file is whole.
    cache = ResponseCache(path, on_event=listener(notes))
    assert cache.get_many(["0", "1", "2"]).keys() == {"0", "1", "2"}
    assert not notes


def test_an_interrupted_write_does_not_lock_the_file(path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResponseCache(path, on_event=listener(notes))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_evict", lambda connection: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.put("a", ANSWER)
    cache.put("b", ANSWER)
    assert set(ResponseCache(path).get_many(["a", "b"])) == {"b"}
    assert not notes
