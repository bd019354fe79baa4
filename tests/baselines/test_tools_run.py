"""Calls are run, whatever the user's functions do: they hang, crash, print, and are called with nonsense."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baselines.tools import run
from baselines.tools.run import MAX_RESULT, Outcome, Toolbox
from evals.engines.engine import ToolCall
from evals.errors import AdvisorError, Problem
from evals.task.tools import ToolsSpec, read_tools

FUNCTIONS = """
import ctypes, datetime, decimal, json, os, sys, time
from typing import Literal, Optional

from beside import FACTOR

calls = 0

def add(a: int, b: int = 1, how: Literal["up", "down"] = "up") -> int:
    return a * FACTOR + b

def many() -> dict:
    return {"when": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.50"), "all": [1, None, "ä"]}

def hang(seconds: float = 60):
    time.sleep(seconds)
    return "late"

def spin():
    while True:
        pass

def stop():
    os._exit(3)

def leave():
    sys.exit("gone")

def segfault():
    ctypes.string_at(0)

def fail(text: str):
    raise ValueError(text + "\\nand more")

def eat():
    return "x" * (1 << 40)

def grow():
    whole = []
    while True:
        whole.append(bytearray(1 << 22))

def shout():
    for _ in range(64):
        os.write(1, b"x" * (1 << 16))
        os.write(2, b"x" * (1 << 16))
        print("y" * (1 << 16))
    return "quiet"

def huge():
    return "z" * (3 << 20)

def strange():
    return object()

def broken_text():
    return "\\ud800 half"

def circle():
    one = []
    one.append(one)
    return one

def count() -> int:
    global calls
    calls += 1
    return calls

def pid() -> int:
    return os.getpid()

def where() -> str:
    return os.getcwd()

def write():
    with open("big", "wb") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
"""
NAMES = [line[4:].split("(")[0] for line in FUNCTIONS.splitlines() if line.startswith("def ")]


def box_of(folder: Path, *entries: str, timeout: float = 5.0, memory_mib: int = 256) -> Toolbox:
    problems: list[Problem] = []
    tools = read_tools(ToolsSpec(functions=entries), folder, problems)
    assert problems == []
    return Toolbox(tools, folder, timeout, memory_mib, lambda query: f"found: {query}")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Toolbox]:
    (tmp_path / "t.py").write_text(FUNCTIONS)
    (tmp_path / "beside.py").write_text("FACTOR = 10")
    box = box_of(tmp_path, "calculator", "lookup", *(f"python:t.py:{name}" for name in NAMES))
    yield box
    box.close()


def say(box: Toolbox, name: str, **arguments: object) -> Outcome:
    return box.run(ToolCall(name, json.dumps(arguments)))


def test_results_are_text_or_json(box: Toolbox) -> None:
    assert say(box, "add", a=4) == Outcome("41", False, pytest.approx(0, abs=20))
    assert say(box, "add", a=4, b=5).text == "45"
    assert json.loads(say(box, "many").text) == {"when": "2026-01-02", "price": "1.50", "all": [1, None, "ä"]}
    assert say(box, "calculator", expression="0.1 + 0.2").text == "0.3"
    assert say(box, "lookup", query="tea").text == "found: tea"
    assert say(box, "where").text == str(box.folder.resolve())


def test_one_process_answers_all_calls_and_ends_with_the_box(box: Toolbox) -> None:
    assert [say(box, "count").text for _ in range(3)] == ["1", "2", "3"]
    pid = int(say(box, "pid").text)
    assert pid != os.getpid()
    os.kill(pid, 0)
    box.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_box_that_nobody_closes_ends_its_process_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("import os\ndef pid(): return os.getpid()")
    box = box_of(tmp_path, "python:t.py:pid")
    pid = int(say(box, "pid").text)
    del box
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("add", "{}", ["'a' is a required property"]),
        ("add", '{"a": "x", "how": "left"}', ["a: 'x' is not of type 'integer'", "how: 'left' is not one of"]),
        ("add", '{"a": 1, "c": 2}', ["'c' was unexpected"]),
        ("add", "[1]", ["must be a JSON object"]),
        ("add", "a=1", ["no JSON"]),
        ("add", '{"a": 1, "a": 2}', ["twice"]),
        ("add", '{"a": NaN}', ["NaN"]),
        ("ad", "{}", ["there is no tool 'ad' (did you mean 'add'?)", "calculator"]),
        ("calculator", '{"expression": "1 / 0"}', ["division by zero"]),
        ("calculator", '{"expression": 5}', ["expression: 5 is not of type 'string'"]),
        ("fail", '{"text": "boom"}', ["ValueError: boom (line 33)"]),
        ("eat", "{}", ["MemoryError"]),
        ("grow", "{}", ["MemoryError"]),
        ("leave", "{}", ["SystemExit: gone"]),
        ("stop", "{}", ["its process ended"]),
        ("segfault", "{}", ["its process ended"]),
        ("strange", "{}", ["neither text nor a JSON value"]),
        ("circle", "{}", ["ValueError: Circular"]),
        ("write", "{}", ["OSError"]),
    ],
)
def test_a_failed_call_is_told_and_the_next_one_works(box: Toolbox, name: str, arguments: str, parts: list[str]) -> None:
    outcome = box.run(ToolCall(name, arguments))
    assert outcome.error
    for part in parts:
        assert part in outcome.text
    assert len(outcome.text) < 1000
    assert say(box, "add", a=1).text == "11"


def test_what_is_printed_goes_nowhere_and_a_long_result_is_cut(box: Toolbox, capfd: pytest.CaptureFixture[str]) -> None:
    assert say(box, "shout").text == "quiet"
    outcome = say(box, "huge")
    assert not outcome.error
    assert outcome.text == "z" * MAX_RESULT + f" … (cut: {3 << 20:,} characters in all)"
    assert say(box, "broken_text").text == "? half"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["hang", "spin"])
def test_a_function_that_hangs_is_ended_in_time(box: Toolbox, name: str) -> None:
    say(box, "count")
    pid = int(say(box, "pid").text)
    box.timeout = 0.3
    started = time.monotonic()
    outcome = say(box, name)
    assert time.monotonic() - started < 2
    assert outcome.error
    assert outcome.text == "timed out after 0.3 s"
    assert 0.3 <= outcome.seconds < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    box.timeout = 5
    # A new process: what the old one kept is gone.
    assert say(box, "count").text == "1"


def test_three_timeouts_of_a_tool_in_a_row_end_the_run(box: Toolbox) -> None:
    box.timeout = 0.2
    say(box, "hang")
    say(box, "hang")
    assert say(box, "hang", seconds=0).text == "late"
    # Counted anew, and for each tool: others in between change nothing.
    assert say(box, "hang").error
    assert say(box, "spin").error
    assert say(box, "add", a=1).text == "11"
    assert say(box, "hang").error
    with pytest.raises(
        AdvisorError, match=r"took longer than 0\.2 s 3 times in a row \(the last time with \{\"seconds\": 9\}\)"
    ):
        say(box, "hang", seconds=9)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_this_name\ndef f(): ...", r"t\.py:1: cannot be imported: ModuleNotFoundError"),
        ("def f(): ...\n\n1 / 0", r"t\.py:3: cannot be imported: ZeroDivisionError"),
        ("import sys\ndef f(): ...\nsys.exit(2)", r"t\.py:3: cannot be imported: SystemExit"),
        ("import os\ndef f(): ...\nos._exit(2)", r"t\.py: ends the process"),
        ("import time\ndef f(): ...\ntime.sleep(60)", r"t\.py: cannot be imported within 0\.5 s"),
    ],
)
def test_a_file_that_cannot_be_imported_is_for_the_user_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    monkeypatch.setattr(run, "IMPORT_SECONDS", 0.5 if "sleep" in source else 20.0)
    (tmp_path / "t.py").write_text(source)
    with pytest.raises(AdvisorError, match=said):
        say(box_of(tmp_path, "python:t.py:f"), "f")


def test_an_import_may_take_longer_than_a_call(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("import time\ntime.sleep(0.6)\ndef f(): return 'done'")
    assert say(box_of(tmp_path, "python:t.py:f", timeout=0.3), "f").text == "done"


def test_two_files_may_have_functions_and_modules_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.py").write_text("def one(): return 'a'\ndef helper(): return 'a'")
    (tmp_path / "more" / "b.py").write_text("from inner import X\ndef two(): return X + helper()\ndef helper(): return 'b'")
    (tmp_path / "more" / "inner.py").write_text("X = 'inner '")
    box = box_of(tmp_path, "python:a.py:one", "python:more/b.py:two")
    assert [say(box, "one").text, say(box, "two").text] == ["a", "inner b"]
    box.close()


def test_a_schema_that_refers_elsewhere_is_not_fetched(
    tmp_path: Path, make_tool: Callable[[dict[str, object]], Toolbox]
) -> None:
    box = make_tool({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}})
    outcome = say(box, "far", a=1)
    assert outcome.error
    assert "cannot be checked" in outcome.text


@pytest.fixture
def make_tool(tmp_path: Path) -> Callable[[dict[str, object]], Toolbox]:
    from evals.task.tools import Tool

    return lambda parameters: Toolbox([Tool("far", "", parameters, "python", "t.py", "far")], tmp_path, 1.0, 512)
