"""One call of the flow in a thread of its own, told to a screen as messages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from textual.message import Message

from evals.errors import Interrupted
from evals.events import Event, OnEvent


class Work:
    """Runs `job(on_event)` and posts what happens.

    Why a thread of our own and no Textual worker: the executor's threads are joined when the app ends, and a flow that
    is busy in a model for minutes would keep the terminal for as long. This one is a daemon: the app may leave it.

    `stop()` makes the next event raise KeyboardInterrupt inside the flow, as Ctrl-C does on the command line:
    `evals.events.broadcast` swallows listeners' exceptions but not that one, and training answers it with a checkpoint.
    It is raised once, and only in the flow's own thread: what the flow then does to keep its work is left alone.
    """

    @dataclass
    class Happened(Message):
        event: Event

    @dataclass
    class Done(Message):
        result: Any

    @dataclass
    class Failed(Message):
        error: BaseException

    @dataclass
    class Stopped(Message):
        pass

    def __init__(self, job: Callable[[OnEvent], Any], post: Callable[[Message], object]) -> None:
        self._job, self._post = job, post
        self._cancelled = threading.Event()
        self._interrupted = False
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="flow", daemon=True)

    def start(self) -> Work:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._cancelled.set()

    @property
    def stopping(self) -> bool:
        return self._cancelled.is_set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def on_event(self, event: Event) -> None:
        if self.stopping and not self._interrupted and threading.current_thread() is self._thread:
            self._interrupted = True
            raise KeyboardInterrupt
        self._tell(self.Happened(event))

    def _run(self) -> None:
        try:
            result = self._job(self.on_event)
        except (KeyboardInterrupt, Interrupted):
            self._tell(self.Stopped())
        except BaseException as error:
            self._tell(self.Failed(error))
        else:
            self._tell(self.Done(result))

    def _tell(self, message: Message) -> None:
        # The app may have ended meanwhile, and its event loop with it.
        with suppress(RuntimeError):
            self._post(message)
