"""Training workers forked from a process that has imported trl already: each starts at once, where a new process takes seconds.

All else is as in use: a process of its own with its own stdout and log, events through a pipe, signals. Start-up itself, and the
end of an orphan, are tested with real processes.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

from trainer import launch

Fault = Callable[[], None]
CONTEXT = multiprocessing.get_context("forkserver")


def start_server() -> None:
    CONTEXT.set_forkserver_preload(["tests.trainer.preload"])
    with mock.patch.dict(os.environ, launch._environment()):
        ensure_running()


class Worker:
    """As much of subprocess.Popen as the launcher uses. `fault` is called in the worker before it begins."""

    latest: Worker

    def __init__(self, command: Sequence[str], *, stderr: Any, fault: Fault | None = None, **_: Any) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        folder, log = Path(command[-2]), Path(stderr.name)
        self.process = CONTEXT.Process(target=_work, args=(folder, log, writer, fault))
        self.process.start()
        Worker.latest = self
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)

    def communicate(self, timeout: float | None = None) -> None:
        self.stdout.read()
        self.wait(timeout)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


def _work(folder: Path, log: Path, events: Connection, fault: Fault | None) -> None:
    from trainer import worker

    os.dup2(events.fileno(), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    events.close()
    if fault:
        fault()
    os._exit(worker.main([str(folder), str(os.getppid())]))
