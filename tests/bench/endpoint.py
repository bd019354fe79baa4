"""The endpoint engine before a real server (llama.cpp with the demo model): its rate against the server's own, and what a
server that breaks its answers does to it.

The server's own rate is what a bare loop of `http.client` threads gets with the same bodies at the same concurrency, in turns.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

import psutil
from harness import Bench, alternating, bench_data, peak_memory_mib

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from evals.engines.endpoint import EndpointEngine
from evals.engines.engine import Message, Request
from evals.engines.machine import cache_folder
from evals.engines.models import DEMO_MODEL
from evals.engines.retry import Patience
from evals.events import ignore
from tests.serving import FaultProxy, demo_gguf, llama_server

CONCURRENCY = (1, 2, 4, 8, 16)
TOKENS = 4
DISTINCT = 200
PATIENCE = Patience(waiting=120.0, failures=8, first_delay=0.1, longest_delay=2.0)


def questions(path: Path, count: int) -> list[Request]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, count)]
    ask = "What does this customer want? Answer in two words.\n\n"
    return [Request(f"q{at}", (Message("user", ask + row["input"]),), TOKENS) for at, row in enumerate(rows)]


def raw_loop(base_url: str, bodies: Sequence[bytes], concurrency: int) -> list[str]:
    """The answers to `bodies` in their order, by as many threads with a connection each and nothing else around them."""
    todo: SimpleQueue[int] = SimpleQueue()
    for at in range(len(bodies)):
        todo.put(at)
    answers = [""] * len(bodies)
    address = urlsplit(base_url)

    def work() -> None:
        connection = http.client.HTTPConnection(address.netloc)
        try:
            while True:
                at = todo.get_nowait()
                connection.request("POST", "/v1/chat/completions", bodies[at], {"Content-Type": "application/json"})
                answers[at] = json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]
        except Empty:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def rates(bench: Bench, gguf: Path, asked: list[Request], repeats: int) -> None:
    """Requests a second at each concurrency, the engine's and the bare loop's, on a server with a slot for every one."""
    ratios = {}
    with llama_server(gguf, slots=max(CONCURRENCY), context=256) as server:
        for concurrency in CONCURRENCY:
            engine = EndpointEngine(server.base_url, DEMO_MODEL, ignore, max_concurrency=concurrency)
            list(engine.generate(asked[:1]))  # the first call of a process imports the client library
            bodies = [json.dumps(engine._body(one)).encode() for one in asked]
            found: dict[str, dict[str, str]] = {}

            def ours(engine: EndpointEngine = engine, found: dict[str, dict[str, str]] = found) -> None:
                found["ours"] = {one.id: one.text for one in engine.generate(asked)}

            def bare(bodies: list[bytes] = bodies, many: int = concurrency, found: dict[str, dict[str, str]] = found) -> None:
                found["bare"] = dict(zip((one.id for one in asked), raw_loop(server.base_url, bodies, many), strict=True))

            seconds = alternating({"engine": ours, "bare": bare}, repeats)
            rate = {name: len(asked) / statistics.median(taken) for name, taken in seconds.items()}
            ratios[concurrency] = rate["engine"] / rate["bare"]
            differ = sum(found["ours"][key] != found["bare"][key] for key in found["bare"])
            bench.figure(
                f"concurrency {concurrency}, requests/s",
                {**rate, "engine over bare": ratios[concurrency], "answers that differ": differ},
            )
            if concurrency == 1:
                bench.invariant("one at a time, the engine and the bare loop get the same answers", differ == 0)
    bench.goal(
        "engine's rate over the server's own, the worst of all concurrencies",
        0.9,
        min(ratios.values()),
        min(ratios.values()) >= 0.9,
    )


def faults(bench: Bench, gguf: Path, distinct: list[Request], count: int, every: int) -> None:
    """`count` requests through the fault proxy to a server that computes each answer alone."""
    asked = [
        Request(f"{distinct[at % len(distinct)].id}-{at}", distinct[at % len(distinct)].messages, TOKENS) for at in range(count)
    ]
    memory = psutil.Process()
    with llama_server(gguf, slots=1, context=512) as server:
        engine = EndpointEngine(server.base_url, DEMO_MODEL, ignore, max_concurrency=2)
        clean = {one.id: one.text for one in engine.generate(distinct)}
        before = memory.memory_info().rss
        proxy = FaultProxy(server.base_url, every=every, seed=0)
        started = time.perf_counter()
        with proxy.running() as base_url:
            engine = EndpointEngine(base_url, DEMO_MODEL, ignore, max_concurrency=8, request_timeout=5.0, patience=PATIENCE)
            found = list(engine.generate(asked))
        seconds = time.perf_counter() - started
        status = Path(f"/proc/{server.pid}/status")
        peak = (
            [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
        )
        if peak:
            bench.figure("server, peak memory MiB", int(peak[0]) / 1024)
    times = Counter(one.id for one in found)
    lost = sum(one.id not in times for one in asked)
    twice = sum(number > 1 for number in times.values())
    differ = sum(one.text != clean[one.id.rsplit("-", 1)[0]] for one in found)
    bench.figure("through faults", {"requests": count, "asked of the proxy": proxy.asked, "seconds": seconds})
    bench.figure("faults injected", {name: number for name, number in sorted(proxy.injected.items()) if name != "none"})
    bench.figure("through faults, outcome", {"lost": lost, "twice": twice, "answers that differ from the clean ones": differ})
    bench.figure("this process, growth over these requests, MiB", (memory.memory_info().rss - before) / 2**20)
    bench.invariant("none lost, none twice", lost == twice == 0 and len(found) == count)
    bench.invariant("every answer through faults is the clean one", differ == 0)


def main() -> None:
    fast = "--fast" in sys.argv
    bench = Bench("endpoint", fast=fast)
    gguf = demo_gguf(cache_folder())
    distinct = questions(bench_data() / "banking77" / "test.jsonl", 50 if fast else DISTINCT)
    rates(bench, gguf, distinct[: 16 if fast else 48], 1)
    faults(bench, gguf, distinct, 100 if fast else 2000, 20 if fast else 50)
    bench.figure("this process, peak memory MiB", peak_memory_mib())
    bench.finish()


if __name__ == "__main__":
    main()
