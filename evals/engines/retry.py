"""How long to wait before a server is asked again: back-off, what the server itself asks for, and one gate for all workers."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Patience:
    """How much one request bears, in seconds but for `failures` (attempts that broke).

    A rate limit is no failure: it may be met any number of times, as long as all waiting together stays under `waiting`.
    """

    waiting: float = 300.0
    failures: int = 8
    first_delay: float = 0.5
    longest_delay: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds before attempt `attempt` + 1 (from 1): doubling, capped, and spread so that workers do not come at once."""
        return min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.75, 1.25)


class TryAgain(Exception):
    """An attempt that broke in a way that may pass. `after` is the wait that the server asked for, in seconds.

    `limited`: the server wants fewer requests (429). `unreachable`: nobody answered at all.
    """

    def __init__(self, why: str, *, after: float | None = None, limited: bool = False, unreachable: bool = False) -> None:
        super().__init__(why)
        self.why, self.after, self.limited, self.unreachable = why, after, limited, unreachable


class Gate:
    """Shut by one worker, it holds all of them: a server that says 'too many requests' means every one of ours."""

    def __init__(self) -> None:
        self._opens = 0.0

    def shut(self, seconds: float) -> None:
        self._opens = max(self._opens, time.monotonic() + seconds)

    async def passed(self) -> float:
        """Waits until the gate is open; the seconds that it took."""
        started = time.monotonic()
        while (left := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return time.monotonic() - started


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response's `retry-after-ms` or `Retry-After` (seconds, or an HTTP date) ask for; None where neither does."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        given = headers.get(name, "").strip()
        if not given:
            continue
        try:
            seconds = float(given) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(given).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None
