"""What this machine is good at, measured once and kept: whether bf16 is faster than fp32 here, and on which device."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError
from evals.records import write_text


def cache_folder() -> Path:
    """Where converted models and measurements are kept: `ADVISOR_CACHE`, else the user's cache folder."""
    import platformdirs

    given = os.environ.get("ADVISOR_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("finetune-advisor"))


@dataclass(frozen=True)
class Machine:
    """`*_gflops`: rate of a square matrix product of the sizes that language models use, in 10^9 operations a second."""

    processor: str
    cores: int
    torch: str
    device: str
    fp32_gflops: float
    bf16_gflops: float

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16_gflops > 1.2 * self.fp32_gflops else "float32"

    @property
    def slow(self) -> bool:
        """No GPU and no fast bf16 units: training takes several times as long as on a machine that has them."""
        return self.device == "cpu" and self.dtype == "float32"


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_machine(*, again: bool = False) -> Machine:
    """The measurement of this machine, from the cache where processor, cores, torch and device are the same."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = {"processor": processor_name(), "cores": available_cores(), "torch": torch.__version__, "device": device}
    path = cache_folder() / "machine.json"
    if not again:
        try:
            kept = Machine(**json.loads(path.read_text()))
            if all(getattr(kept, name) == value for name, value in key.items()):
                return kept
        except (OSError, ValueError, TypeError):
            pass
    machine = Machine(
        **key, fp32_gflops=_matmul_gflops(device, torch.float32), bf16_gflops=_matmul_gflops(device, torch.bfloat16)
    )
    # A cache that cannot be written costs a second next time, no more.
    with suppress(AdvisorError):
        write_text(path, json.dumps(asdict(machine)))
    return machine


def _matmul_gflops(device: str, dtype: Any) -> float:
    """Best of a few products of 512x1024 by 1024x1024; a quarter of a second at most on a slow machine."""
    import torch

    left = torch.ones(512, 1024, device=device, dtype=dtype)
    right = torch.ones(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    deadline = time.perf_counter() + 0.25
    for turn in range(20):
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - started)
        if time.perf_counter() > deadline and turn:
            break
    return round(2 * 512 * 1024 * 1024 / best / 1e9, 1)
