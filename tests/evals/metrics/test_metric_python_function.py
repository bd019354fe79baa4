"""The user's own function: it may print, hang, crash or lie, and our process goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.metrics.options import PythonFunction as Options
from evals.metrics.python_function import PythonFunction
from evals.task.example import Example

FILE = """
import os, sys, time
from beside import SAME
print("loading", flush=True)

def mine(output, target):
    print("noise", "{}", sep="\\n")
    sys.stderr.write("more")
    os.write(1, b'{"score": 1}\\n')
    assert sys.stdin.read() == ""
    return len(set(output) & set(target)) / len(set(target)) if output != target else SAME

def odd(output, target):
    return {"nan": float("nan"), "inf": float("inf"), "big": 1.01, "minus": -0.1, "none": None, "text": "1", "list": [1]}[output]

def bad(output, target):
    if output == "raise":
        raise ValueError("no such\\nticket")
    if output == "leave":
        sys.exit(0)
    if output == "die":
        os._exit(0)
    if output == "hang":
        time.sleep(60)
    if output == "child":
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "77.125")
        time.sleep(60)
    return True
"""


def pairs(*answers: str) -> list[tuple[Example, str]]:
    return [(Example(f"row-{at}", (Message("user", "q"),), "abcd"), answer) for at, answer in enumerate(answers)]


def made(folder: Path, function: str, timeout: float = 20.0, file: str = "mine.py") -> PythonFunction:
    (folder / "mine.py").write_text(FILE)
    (folder / "beside.py").write_text("SAME = 1")
    return PythonFunction(Options(name="python", file=file, function=function, timeout=timeout), folder)


def test_scores_in_order_whatever_it_prints(tmp_path: Path) -> None:
    scores = made(tmp_path, "mine")(pairs("abcd", "ab", "", "xyz", "\ud800\x00\n", "dcba " * 50_000))
    assert scores == [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]
    assert made(tmp_path, "bad")(pairs("fine", "fine")) == [1.0, 1.0]
    assert made(tmp_path, "mine")([]) == []


@pytest.mark.parametrize("answer", ["nan", "inf", "big", "minus", "none", "text", "list"])
def test_a_score_is_a_number_from_0_to_1(tmp_path: Path, answer: str) -> None:
    with pytest.raises(AdvisorError, match=r"row-0: .*the score is"):
        made(tmp_path, "odd")(pairs(answer))


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("raise", r"row-1: ValueError: no such \(line 18\)\n"),
        ("leave", "row-1: SystemExit: 0"),
        ("die", "row-1: its process ended"),
        ("hang", "row-1: no score within 1 s"),
    ],
)
def test_failures_name_file_function_and_item(tmp_path: Path, answer: str, what: str) -> None:
    with pytest.raises(AdvisorError, match=what) as caught:
        made(tmp_path, "bad", timeout=1)(pairs("fine", answer))
    assert "python:mine.py:bad" in str(caught.value)


def test_what_it_started_is_ended(tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="no score within"):
        made(tmp_path, "bad", timeout=1)(pairs("child"))
    time.sleep(0.1)
    assert not running("77.125")


def running(argument: str) -> bool:
    import psutil

    return any(argument in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))


@pytest.mark.parametrize(
    ("source", "what"),
    [("def mine(: pass", "SyntaxError"), ("import nothing_of_this_name", "ModuleNotFoundError"), ("x = 1", "AttributeError")],
)
def test_files_that_cannot_be_loaded(tmp_path: Path, source: str, what: str) -> None:
    metric = made(tmp_path, "mine")
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(AdvisorError, match=f"row-0: {what}"):
        metric(pairs("a"))


@pytest.mark.parametrize("file", ["../mine.py", "/etc/mine.py", "sub/../../mine.py", "link.py", "none.py", "folder.py"])
def test_the_file_lies_beside_the_task(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "task"
    (folder / "sub").mkdir(parents=True)
    (folder / "folder.py").mkdir()
    (tmp_path / "mine.py").write_text(FILE)
    (folder / "link.py").symlink_to(tmp_path / "mine.py")
    with pytest.raises(AdvisorError, match=r"outside the task's folder|no such file"):
        made(folder, "mine", file=file)(pairs("a"))


def test_nothing_of_it_runs_in_our_process(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os\ndef f(o, t):\n    return float(os.getpid() == int(t))")
    metric = PythonFunction(Options(name="python", file="own.py", function="f"), tmp_path)
    assert metric([(Example("row", (Message("user", "q"),), str(os.getpid())), "x")]) == [0.0]


def test_settings_follow_the_file(tmp_path: Path) -> None:
    metric = made(tmp_path, "mine")
    before = metric.settings
    assert before == made(tmp_path, "mine").settings
    (tmp_path / "mine.py").write_text(FILE + "\n")
    assert metric.settings != before
    assert metric.name == "mine"
