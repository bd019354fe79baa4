"""Answers as code: right and wrong ones, ones that cheat, hang or run wild; with the kernel's namespaces and without."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.metrics import code
from evals.metrics.code import Code, bare_code, passes
from evals.metrics.options import Code as Options
from evals.task.example import Example

TESTS = "assert double(2) == 4\nassert double('a') == 'aa'"
RIGHT = "def double(x):\n    return x + x\n"
PROGRAM = code.PROGRAMS / "answer.py"
NAMESPACES = subprocess.run(
    [sys.executable, "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) != 0)"], check=False
)
isolated = pytest.mark.skipif(NAMESPACES.returncode != 0, reason="the kernel gives an ordinary user no namespaces here")


@pytest.fixture(params=["namespaces", "limits alone"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as on a machine that gives no namespaces: the kernel refuses these flags."""
    if request.param == "limits alone":
        lines = PROGRAM.read_text().splitlines()
        [at] = [at for at, line in enumerate(lines) if line.startswith("NEW_NAMESPACES")]
        (tmp_path / "answer.py").write_text("\n".join([*lines[:at], "NEW_NAMESPACES = 1", *lines[at + 1 :]]))
        monkeypatch.setattr(code, "PROGRAMS", tmp_path)


def ok(answer: str, tests: str = TESTS, seconds: float = 10.0, memory_mib: int = 512) -> bool:
    return passes(answer, tests, seconds, memory_mib)


@pytest.mark.usefixtures("everywhere")
def test_right_and_wrong() -> None:
    assert ok(RIGHT)
    assert not ok(RIGHT.replace("+", "-"))
    assert not ok("")
    assert not ok("def double(x:")
    assert not ok(RIGHT, "assert double(2) ==")
    assert not ok(RIGHT + "\ud800")
    assert not ok(RIGHT + "\x00")
    assert not ok("(" * 100_000)
    assert ok("from __future__ import annotations\nprint('é', flush=True)\n" + RIGHT)
    # One script: dataclasses and the main block find the module that they stand in.
    assert ok("from dataclasses import dataclass\n@dataclass\nclass One:\n    x: 'int' = 1\n", "assert One().x == 1")
    assert ok("done = 0\nif __name__ == '__main__':\n    done = 1", "assert done")


CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "quit": "raise SystemExit",
    "hard exit": "import os\nos._exit(0)",
    "exit when called": "import sys\ndef double(x):\n    sys.exit(0)",
    "exit by exec": "def double(x):\n    exec('import sys; sys.exit(0)')",
    "hard exit when called": "import os\ndef double(x):\n    os._exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)",
    "exit on the failure": "import sys, os\nsys.excepthook = lambda *_: os._exit(0)",
    "says so": "print('passed')\nimport os\nos.write(1, b'passed')\nos._exit(0)",
    "says so everywhere": (
        "import os\nfor one in range(3, 64):\n    try:\n        os.write(one, b'passed')\n    except OSError:\n        pass\nos._exit(0)"
    ),
    "no more exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *_, **__: None",
    "a fork goes home": "import os\nif os.fork():\n    os._exit(0)",
    "reads the program": "import sys, os\nprint(open(sys.argv[0]).read())\nos._exit(0)",
    "kills what waits for it": "import os\nif os.getppid() > 1:\n    os.kill(os.getppid(), 9)\nos._exit(0)",
    "raises": "raise KeyboardInterrupt",
    "crashes": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("answer", CHEATS.values(), ids=CHEATS)
def test_leaving_before_the_tests_ran_is_no_pass(answer: str) -> None:
    assert not ok(answer)


def test_unittest_may_end_the_tests() -> None:
    tests = "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(double(2), 4)\nunittest.main()"
    assert ok(RIGHT, tests)
    assert not ok(RIGHT.replace("+", "-"), tests)
    assert not ok(CHEATS["exit when called"], tests)
    assert not ok(RIGHT, "import sys\nsys.exit(3)")


WILD = {
    "loop": "while True:\n    pass",
    "sleep": "import time\ntime.sleep(60)",
    "deaf loop": "import signal\nfor one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n    signal.signal(one, signal.SIG_IGN)\n"
    "while True:\n    pass",
    "flood": "import sys\nwhile True:\n    print('x' * 1_000_000)\n    sys.stderr.write('y' * 1_000_000)",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + RIGHT,
}


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("answer", WILD.values(), ids=WILD)
def test_what_does_not_end_is_ended(answer: str) -> None:
    started = time.monotonic()
    assert not ok(answer, seconds=0.5)
    assert time.monotonic() - started < 8


@pytest.mark.usefixtures("everywhere")
def test_memory_files_and_input() -> None:
    assert not ok("x = bytearray(10**9)\n" + RIGHT, memory_mib=256)
    assert not ok("x = []\nwhile True:\n    x.append('x' * 10**6)", memory_mib=128)
    assert ok("try:\n    input()\nexcept EOFError:\n" + RIGHT.replace("def", "    def").replace("    return", "        return"))
    assert not ok("open('big', 'wb').write(bytes(64 * 2**20))\n" + RIGHT)
    assert ok("import os\nassert set(os.environ) <= {'OMP_NUM_THREADS', 'LC_CTYPE'}, os.environ\n" + RIGHT)
    assert ok("import numpy\n" + RIGHT)


@pytest.mark.usefixtures("everywhere")
def test_its_files_are_gone_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "temporary"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    answer = "import os\nassert os.listdir('.') == []\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.chmod('a', 0)\n"
    assert ok(answer + RIGHT)
    assert ok(
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    open(folder + '/x', 'w').write('x')\n" + RIGHT
    )
    assert list(home.iterdir()) == []


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("ending", ["", "\ntime.sleep(60)", "\nos._exit(0)"], ids=["passes", "hangs", "leaves"])
def test_children_do_not_outlive_it(ending: str) -> None:
    # In their group, in a session of their own, and orphaned.
    answer = (
        "import os, subprocess, time\n"
        "subprocess.Popen(['sleep', '78.125'])\n"
        "subprocess.Popen(['sleep', '78.125'], start_new_session=True)\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.execlp('sleep', 'sleep', '78.125')\n"
        "        os._exit(0)\n"
        "time.sleep(0.2)\n"
    )
    assert ok(answer + RIGHT + ending, seconds=2) is (not ending)
    assert not running("78.125")


def running(argument: str) -> bool:
    import psutil

    return any(argument in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))


@isolated
def test_no_network_and_no_file_elsewhere(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ok(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\n" + RIGHT)
    kept = tmp_path / "kept"
    kept.write_text("mine")
    assert not ok(f"open({str(kept)!r}, 'w').write('x')\n" + RIGHT)
    assert not ok(f"import os\nos.remove({str(kept)!r})\n" + RIGHT)
    assert ok(f"assert open({str(kept)!r}).read() == 'mine'\n" + RIGHT)
    assert kept.read_text() == "mine"
    # What fills the folder fills memory, so it has an end.
    assert not ok("for one in range(9):\n    open(str(one), 'wb').write(bytes(10 * 2**20))\n" + RIGHT)


FENCES = [
    ("```python\nx = 1\n```", "x = 1\n"),
    ("Sure:\n\n```py\nx = 1\n```\nIt is 1.\n```\ny\n```", "x = 1\n"),
    ("~~~\nx = '```'\n~~~", "x = '```'\n"),
    ("````\n```\nx\n```\n````", "```\nx\n```\n"),
    ("```python\nx = 1\ny =", "x = 1\ny =\n"),
    ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
    ("```python\n    ~~~\n    ```\nx\n```\nmore", "    ~~~\n    ```\nx\n"),
    ("x = 1", "x = 1"),
    (
        'def f():\n    """Doc.\n\n    ```\n    no\n    ```\n    """\n',
        'def f():\n    """Doc.\n\n    ```\n    no\n    ```\n    """\n',
    ),
    ("a ``` b ``` c", "a ``` b ``` c"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "bare"), FENCES, ids=range(len(FENCES)))
def test_code_fences(text: str, bare: str) -> None:
    assert bare_code(text) == bare


def test_fences_of_hostile_text_take_no_time() -> None:
    started = time.monotonic()
    for text in ("```" * 100_000, "```\n" * 30_000, "~" * 300_000, " " * 300_000 + "```", "```\n" + "``` x\n" * 50_000):
        bare_code(text)
    assert time.monotonic() - started < 2


def test_many_answers_at_once_in_their_order() -> None:
    metric = Code(Options(name="code", timeout=10))
    example = Example("row", (Message("user", "q"),), TESTS)
    untested = Example("row", (Message("user", "q"),), "  \n")
    answers = [RIGHT if at % 3 else "pass" for at in range(12)]
    pairs = [*((example, f"```python\n{answer}\n```") for answer in answers), (untested, RIGHT)]
    assert metric(pairs) == [*(float(at % 3 > 0) for at in range(12)), 0.0]
    assert metric([]) == []
    assert metric.settings["timeout"] == 10
    assert metric.settings["python"] == list(sys.version_info[:3])


def test_a_machine_where_nothing_passes_is_an_error_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "passes", lambda *_: False)
    code._must_run.cache_clear()
    with pytest.raises(AdvisorError, match="does not start"):
        Code(Options(name="code"))([(Example("row", (Message("user", "q"),), TESTS), RIGHT)])
