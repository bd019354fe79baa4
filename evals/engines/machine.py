"""What this machine is good at, measured once and kept: its device, the faster dtype, and how many threads help."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """`*_gflops`: rate of a matrix product of the sizes that language models use, in 10^9 operations a second.

    `threads` is the number that gave the best rate (logical cores that share one unit may be slower together);
    `read_gb_s` is how fast the device's memory is read, 10^9 bytes a second: decoding one row is bound by it.
    """

    processor: str
    cores: int
    torch: str
    device: str
    threads: int
    fp32_gflops: float
    bf16_gflops: float
    read_gb_s: float

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


def bf16_units() -> list[str]:
    """What the processor multiplies bf16 with, by the names of its flags; none where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    return [one for one in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16") if one in flags]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_mib(device: str) -> float:
    """Memory that a process could have now, in MiB: of the GPU, else of the machine."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0]) / 2**20
    import psutil

    return float(psutil.virtual_memory().available) / 2**20


def physical_cores() -> int:
    """Cores of their own that this process may use: logical ones that share a unit count once. The same number in every session."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    try:
        return max(1, len({_unit(core) for core in usable})) if usable else available_cores()
    except OSError:
        return available_cores()


def _unit(core: int) -> tuple[str, str]:
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    return (folder / "physical_package_id").read_text().strip(), (folder / "core_id").read_text().strip()


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
    threads = _best_threads() if device == "cpu" else key["cores"]
    with _threads(threads):
        machine = Machine(
            **key,
            threads=threads,
            fp32_gflops=_matmul_gflops(device, torch.float32),
            bf16_gflops=_matmul_gflops(device, torch.bfloat16),
            read_gb_s=_read_gb_s(device),
        )
    # A cache that cannot be written costs a second next time, no more.
    with suppress(AdvisorError):
        write_text(path, json.dumps(asdict(machine)))
    return machine


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best_threads() -> int:
    """All cores, or half of them where that multiplies faster by over 5%, in the dtype that is the faster one."""
    import torch

    cores = available_cores()
    rates = {}
    for count in sorted({cores, max(1, cores // 2)}, reverse=True):
        with _threads(count):
            rates[count] = max(_matmul_gflops("cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    best = max(rates, key=lambda count: rates[count])
    return best if rates[best] > 1.05 * rates[cores] else cores


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


def _read_gb_s(device: str) -> float:
    """Best of a few sums over 256 MiB, which no cache of a usual processor holds."""
    import torch

    block = torch.ones(1 << 26, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        block.sum()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    rate: float = block.numel() * 4 / best / 1e9
    return round(rate, 1)
