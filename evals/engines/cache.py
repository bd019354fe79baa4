"""Answers that were paid for once: a cache of responses on disk, shared by every run and process of one user."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TypeVar

from evals.engines.engine import Request, Response, ToolCall
from evals.events import Note, OnEvent, ignore

MAX_BYTES = 512 << 20
# Of the bound, what is left after old rows have left: one large clearing now and then instead of a small one at each write.
KEPT_SHARE = 0.9
# A row's key, stamps and places in two indices, beside its answer.
ROW_BYTES = 256
LOOKUP_ROWS = 500
BUSY_SECONDS = 20.0
VERSION = 1
# The sum of `bytes` is kept by triggers: it is right whoever writes, and no write has to add up the table.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE responses (key TEXT PRIMARY KEY, body BLOB NOT NULL, bytes INTEGER NOT NULL, used INTEGER NOT NULL);
CREATE INDEX by_use ON responses (used, bytes);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER came AFTER INSERT ON responses BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER grew AFTER UPDATE OF bytes ON responses BEGIN UPDATE total SET bytes = bytes + new.bytes - old.bytes; END;
CREATE TRIGGER went AFTER DELETE ON responses BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
PRAGMA user_version = {VERSION};
COMMIT;
"""
TABLES = {"responses", "by_use", "total", "came", "grew", "went"}
PUT = """
INSERT INTO responses VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET body = excluded.body, bytes = excluded.bytes, used = excluded.used
"""
REQUEST_FIELDS = tuple(field.name for field in fields(Request) if field.name != "id")
RESPONSE_FIELDS = tuple(field.name for field in fields(Response) if field.name != "id")
T = TypeVar("T")
Ask = Callable[[Sequence[Request]], Iterator[Response]]


def request_key(fingerprint: str, request: Request) -> str | None:
    """sha256 (64 hex digits) of an engine's fingerprint and all that shapes the answer; None where no answer may be kept.

    Every field of `Request` counts but `id`, which only names the example. The messages stand for the exact token ids: the
    fingerprint covers weights, adapter, dtype, tokeniser and chat template. A sample without a seed is new each time.
    """
    if request.temperature > 0 and request.seed is None:
        return None
    settings = {name: getattr(request, name) for name in REQUEST_FIELDS}
    # `asdict` for the messages and the constraint; a text may hold lone surrogates, which JSON's escapes would merge.
    text = json.dumps([fingerprint, settings], ensure_ascii=False, default=asdict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ResponseCache:
    """Responses by `request_key`, in an SQLite file that several threads and processes may use at once.

    A cache never stops a run. A file that is damaged or of another version is set aside as `<name>.damaged`, and a new one is
    begun; where nothing can be written (a read-only folder, a full disk) the run goes on without a cache. Each is said once,
    as a warning to `on_event`. Of `max_bytes` (answers and `ROW_BYTES` a row) the least recently used rows leave.

    Prompts are not stored, only their hash. Nothing is opened before the first use. Open one in each process: SQLite's
    connections do not cross a fork.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, on_event: OnEvent = ignore) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.on_event = on_event
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._off = False
        self._stamp = 0
        # Keys that were read since the last write. Their new use is written with the next rows, not at each lookup.
        self._touched: set[str] = set()

    def get_many(self, keys: Iterable[str]) -> dict[str, Response]:
        """The kept responses among `keys`, each with an empty `id`: its request knows its own."""
        wanted = list(dict.fromkeys(keys))

        def look_up(connection: sqlite3.Connection) -> dict[str, Response]:
            found = {}
            for start in range(0, len(wanted), LOOKUP_ROWS):
                some = wanted[start : start + LOOKUP_ROWS]
                marks = ",".join("?" * len(some))
                for key, body in connection.execute(f"SELECT key, body FROM responses WHERE key IN ({marks})", some):
                    response = _read(body)
                    if response is not None:
                        found[key] = response
            self._touched |= found.keys()
            return found

        return self._attempt(look_up, {}) if wanted else {}

    def put(self, key: str, response: Response) -> None:
        """Keep one response. It is on disk, safe from the process's death, when this returns."""
        self.put_many([(key, response)])

    def put_many(self, rows: Iterable[tuple[str, Response]]) -> None:
        """Keep responses in one transaction; those that were `skipped` are no answers, and are left out."""
        bodies = [(key, _written(response)) for key, response in rows if not response.skipped]

        def write(connection: sqlite3.Connection) -> None:
            # The lock from the start: one that reads first and then wants to write fails where another wrote in between.
            connection.execute("BEGIN IMMEDIATE")
            used = [(self._now(), key) for key in self._touched]
            connection.executemany("UPDATE responses SET used = ? WHERE key = ?", used)
            connection.executemany(PUT, [(key, body, len(body) + ROW_BYTES, self._now()) for key, body in bodies])
            self._evict(connection)
            connection.execute("COMMIT")
            self._touched.clear()

        if bodies or self._touched:
            self._attempt(write, None)

    def close(self) -> None:
        """Write what is still to be written and let go of the file. The next use opens it again."""
        self.put_many(())
        with self._lock:
            self._disconnect()

    def _now(self) -> int:
        """Nanoseconds since the epoch, each later than the last: rows of equal use could only leave together."""
        self._stamp = max(self._stamp + 1, time.time_ns())
        return self._stamp

    def _evict(self, connection: sqlite3.Connection) -> None:
        over = connection.execute("SELECT bytes FROM total").fetchone()[0] - self.max_bytes
        if over <= 0:
            return
        over += int(self.max_bytes * (1 - KEPT_SHARE))
        last = 0
        for used, size in connection.execute("SELECT used, bytes FROM responses ORDER BY used"):
            if over <= 0:
                break
            over, last = over - size, used
        connection.execute("DELETE FROM responses WHERE used <= ?", (last,))

    def _attempt(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """`work` on the open file: a second time on a new file where the first one was damaged, `otherwise` where there is none."""
        with self._lock:
            for healed in (False, True):
                if self._off:
                    break
                try:
                    return work(self._connection or self._open())
                except BaseException as error:
                    # Closing also rolls back what was half written.
                    self._disconnect()
                    if not isinstance(error, sqlite3.Error | OSError | _ForeignFileError):
                        raise
                    if healed or not _damaged(error):
                        self._give_up(error)
                    else:
                        self._set_aside(error)
            return otherwise

    def _open(self) -> sqlite3.Connection:
        with self._alone():
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._file = self._identity()
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
                if (version or tables) and not (version == VERSION and tables >= TABLES):
                    raise _ForeignFileError(f"it is of version {version} or another program's, not our version {VERSION}")
                connection.execute("PRAGMA journal_mode = WAL")
                # With a WAL a killed process loses nothing that was committed; a power cut may lose the last rows, no more.
                connection.execute("PRAGMA synchronous = NORMAL")
                if not tables:
                    connection.executescript(SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process opens the file or sets it aside meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.path}.lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _identity(self) -> tuple[int, int]:
        """Device and inode of what lies at the path now; zeros for nothing."""
        with suppress(OSError):
            found = os.stat(self.path)
            return found.st_dev, found.st_ino
        return 0, 0

    def _set_aside(self, error: Exception) -> None:
        try:
            with self._alone():
                # Another process may have met the same damage and begun a new file already, which is good.
                if self._identity() != self._file:
                    return
                # The log first: beside a new file, SQLite would play the old one's pages into it.
                for ending in ("-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        os.replace(f"{self.path}{ending}", f"{self.path}.damaged{ending}")
        except OSError as failed:
            self._give_up(failed)
            return
        text = f"the cache of answers cannot be read ({error}); it was set aside as {self.path}.damaged, and a new one is begun"
        self.on_event(Note(text, "warning"))

    def _give_up(self, error: Exception) -> None:
        self._off = True
        self._touched.clear()
        self.on_event(Note(f"answers are not kept in {self.path} ({error}); the run goes on without a cache", "warning"))


class _ForeignFileError(Exception):
    """A database, but not one that this version of the program wrote."""


def _damaged(error: Exception) -> bool:
    """Whether a new file would help. It would not where the disk is full, the folder read-only or the file locked."""
    if isinstance(error, _ForeignFileError):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _written(response: Response) -> bytes:
    row = {name: getattr(response, name) for name in RESPONSE_FIELDS}
    # `asdict` for the tool calls.
    return json.dumps(row, ensure_ascii=False, default=asdict).encode("utf-8", "surrogatepass")


def _read(body: bytes) -> Response | None:
    """The response of a row; None where the row is torn or of other fields, so that it is asked anew and replaced."""
    try:
        row = json.loads(body.decode("utf-8", "surrogatepass"))
        calls = tuple(ToolCall(**call) for call in row.pop("calls", ()))
        if not all(isinstance(value, str) for call in calls for value in (call.name, call.arguments, call.id)):
            return None
        return Response(id="", **row, calls=calls)
    except (ValueError, TypeError, AttributeError):
        return None


def through(
    cache: ResponseCache, fingerprint: str | Callable[[Request], str], requests: Sequence[Request], ask: Ask
) -> Iterator[Response]:
    """Responses to `requests`, each once under its request's own `id`: the kept ones at once, then those that `ask` gives.

    Equal requests (by `request_key`) are asked once and all get that answer. Each answer is on disk before it is yielded: a
    killed process, or closing this generator, loses none that was seen. The `seconds` of a kept response stay what it cost
    when it was asked, because the figures of cost rest on them. `fingerprint` may be each request's own.
    """
    keys = [request_key(fingerprint if isinstance(fingerprint, str) else fingerprint(request), request) for request in requests]
    kept = cache.get_many(key for key in keys if key)
    equal: dict[str | int, list[Request]] = {}
    try:
        for number, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if key in kept:
                yield replace(kept[key], id=request.id)
            else:
                # What has no key is like nothing else.
                equal.setdefault(key or number, []).append(request)
        yield from _ask_and_keep(cache, equal, ask)
    finally:
        # The use of the kept rows, where nothing else was written.
        cache.put_many(())


def _ask_and_keep(cache: ResponseCache, equal: Mapping[str | int, Sequence[Request]], ask: Ask) -> Iterator[Response]:
    """Ask the first of each group of equal requests and answer the whole group. Groups go by their key, a number if none."""
    asked: dict[str, tuple[str | int, Request]] = {}
    for key, group in equal.items():
        name = group[0].id
        # Several different questions may be about one example; the answers must find their way back to each.
        while name in asked:
            name += "+"
        asked[name] = key, replace(group[0], id=name)
    if not asked:
        return
    for response in ask([request for _, request in asked.values()]):
        key, _ = asked[response.id]
        if isinstance(key, str):
            # One by one: a commit takes 0.03 ms where an answer takes ten or more, and nothing waits to be lost.
            cache.put(key, response)
        for one in equal[key]:
            yield replace(response, id=one.id)
