"""How many tokens and rows one forward pass takes best: measured once for a model on a machine, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from evals.engines.attention import Decoding, Lanes, Packed
from evals.engines.machine import Machine, cache_folder
from evals.errors import AdvisorError
from evals.events import OnEvent, waiting
from evals.records import write_text

CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)
LANES = (16, 32, 64, 128, 256, 512)
# A prompt of this length stands for all, and as many tokens lie in each lane.
LENGTH = 128
# A size that is no slower than this share of the best one is as good as that.
CLOSE = 0.98
# Lanes cost memory: the fewest are taken whose rate is this share of the best.
CLOSE_LANES = 0.85
# No trial is begun once one has taken this long (seconds): larger ones would take longer still.
PATIENCE = 1.5


@dataclass(frozen=True)
class Budget:
    """`chunk`: tokens of one forward pass that reads prompts, padding included; `lanes`: rows that decode together."""

    chunk: int
    lanes: int


def measured_budget(
    forward: Callable[..., Any], key: Sequence[str], machine: Machine, most_tokens: int, on_event: OnEvent
) -> Budget:
    """The budget of the model that `forward` runs, from the user's cache where `key` and machine have been measured before.

    `most_tokens` is what memory holds. Takes a few seconds for a small model; PATIENCE bounds it for a large one.
    """
    path = cache_folder() / "budgets.json"
    name = "|".join([*key, machine.processor, str(machine.cores), machine.torch, machine.device])
    try:
        kept = json.loads(path.read_text())
        return Budget(**kept[name])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    device = machine.device
    with waiting(on_event, "measuring how many rows are best asked together (once)"):
        sizes = [size for size in CHUNKS if size <= most_tokens]
        chunks = _good(sizes, lambda size: _read(forward, size, device), CLOSE)
        counts = [count for count in LANES if count * LENGTH <= most_tokens]
        lanes = _good(counts, lambda count: _step(forward, count, device), CLOSE_LANES)
    # Large passes have less to do around them; few lanes need less memory and give answers sooner.
    budget = Budget(max(chunks), min(lanes))
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    # A cache that cannot be written costs a few seconds next time, no more.
    with suppress(AdvisorError):
        write_text(path, json.dumps({**(kept if isinstance(kept, dict) else {}), name: asdict(budget)}))
    return budget


def _good(sizes: Sequence[int], seconds: Callable[[int], float], close: float) -> list[int]:
    """The sizes whose rate is at least this share of the best; sizes go up until one takes too long or has no room."""
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            took = seconds(size)
        except Exception as error:
            if "memory" not in str(error).lower():
                raise
            break
        rates[size] = size / took
        if took > PATIENCE:
            break
    return [size for size, rate in rates.items() if rate >= close * max(rates.values())] or [1]


def _timed(work: Callable[[], object]) -> float:
    """The faster of two, or the first where that was slow."""
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
        if best > PATIENCE / 3:
            break
    return best


def _read(forward: Callable[..., Any], tokens: int, device: str) -> float:
    """Seconds for a pass over `tokens` in rows of LENGTH, one logit row each."""
    import torch

    rows = max(1, tokens // LENGTH)
    positions = torch.arange(LENGTH, device=device).expand(rows, LENGTH)
    ids = [[7] * LENGTH] * rows
    return _timed(lambda: forward(ids, Packed(positions), [(row, LENGTH - 1) for row in range(rows)]).sum().item())


def _step(forward: Callable[..., Any], rows: int, device: str) -> float:
    """Seconds for one decoding step of `rows` with LENGTH tokens behind each."""
    import torch

    lanes = Lanes(rows, LENGTH + 1)
    ids = [[7]] * rows

    def step() -> object:
        return forward(ids, Decoding(lanes, [LENGTH] * rows, None, device)).max(-1).indices.tolist()

    step()
    with torch.inference_mode():
        for home in (*lanes.keys.values(), *lanes.values.values()):
            home.zero_()  # a lane's pages are there once they are written: real ones are
    return _timed(step)
