"""The response cache: the prompts of the generation benchmark asked twice, each time by a new process."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from generate import SETS, requests
from harness import Bench, bench_data, measured_in_child, skip

from evals.engines.engine import Response
from evals.engines.models import DEMO_MODEL
from evals.events import ignore

GOAL = 100.0


def ask(folder: str, name: str, count: int) -> tuple[list[Response], float, bool]:
    """The responses in order, the seconds of `generate` (loading the weights not counted, where they are needed), and whether they were."""
    from evals.engines.cache import ResponseCache
    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine

    handle = ModelHandle(DEMO_MODEL, "auto", ignore)
    engine = HfEngine(handle, cache=ResponseCache(Path(folder) / "responses.sqlite"))
    asked = requests(name, count)[0]
    _ = engine.fingerprint
    started = time.perf_counter()
    found = {response.id: response for response in engine.generate(asked[:1])}
    loading = time.perf_counter() - started if "base" in handle.__dict__ else 0.0
    found |= {response.id: response for response in engine.generate(asked[1:])}
    return (
        [found[request.id] for request in asked],
        time.perf_counter() - started - loading,
        "base" in handle.__dict__,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    if not all((bench_data() / name).is_dir() for name in SETS):
        skip("banking77 and gsm8k are not in the data folder")
    bench = Bench("cache", fast=fast)
    for name in SETS:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (measured_in_child(ask, folder, name, 16 if fast else 256) for _ in range(2))
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        ratio = first.result[1] / second.result[1]
        bench.figure(
            name,
            {
                "first_seconds": round(first.result[1], 2),
                "second_seconds": round(second.result[1], 4),
                "first_peak_memory_mib": round(first.peak_mib),
                "second_peak_memory_mib": round(second.peak_mib),
                "cache_kib": round(size / 1024),
            },
        )
        bench.invariant(f"{name}: the second run gives the same responses", first.result[0] == second.result[0])
        bench.invariant(f"{name}: the second run loads no model", first.result[2] and not second.result[2])
        bench.goal(f"{name}: times as fast the second time", GOAL, round(ratio, 1), ratio >= GOAL)
    bench.finish()


if __name__ == "__main__":
    main()
