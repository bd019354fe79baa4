"""A program in another process that answers questions, each within a time limit: for what may hang, crash or print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any


class Late(Exception):
    """The program did not answer in time. It has been killed."""


class Ended(Exception):
    """The program ended before it answered."""


class Child:
    """A Python program, asked one JSON line at a time. Use it as a context: at its end the program is killed.

    It runs in a session of its own, so that what it starts is killed with it, and its stderr goes nowhere.
    """

    def __init__(self, flags: Sequence[str], program: Path, *arguments: str, folder: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *flags, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was not yet read by the program cannot be flushed any more.
            with suppress(OSError):
                if pipe:
                    pipe.close()

    def ask(self, question: Any, seconds: float) -> Any:
        """The program's answer. Raises Late or Ended; after either it cannot be asked again."""
        late: list[bool] = []

        def end() -> None:
            late.append(True)
            self._kill()

        # A kill from outside ends a write that the program does not read as well as a read that it does not answer.
        clock = Timer(seconds, end)
        clock.start()
        try:
            return self._exchange(question)
        except (OSError, ValueError) as error:
            raise (Late if late else Ended)() from error
        finally:
            clock.cancel()

    def _exchange(self, question: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise Ended
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def _kill(self) -> None:
        kill_group(self._process.pid)


def kill_group(leader: int) -> None:
    """End a process and all that it started in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
