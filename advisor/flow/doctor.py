"""What this machine is and has, and the command that mends what is missing."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from evals.engines.machine import cache_folder, measure_machine

PACKAGES = ("torch", "transformers", "peft", "trl", "sentence-transformers", "faiss-cpu", "lm-eval", "textual")
NEEDED_GB = 2.0


@dataclass(frozen=True)
class Finding:
    name: str
    value: str
    ok: bool = True
    mend: str = ""


def examine() -> list[Finding]:
    findings = [Finding("python", platform.python_version())]
    for package in PACKAGES:
        try:
            findings.append(Finding(package, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "missing", False, f"pip install {package}"))
    if any(not one.ok for one in findings):
        return findings
    import psutil

    machine = measure_machine()
    findings += [
        Finding("processor", f"{machine.processor}, {machine.cores} cores"),
        Finding("device", machine.device),
        Finding("matrix product", f"bf16 {machine.bf16_gflops:.0f}, fp32 {machine.fp32_gflops:.0f} GFLOP/s"),
        Finding("dtype chosen", machine.dtype + (": no fast bf16 units, training will be slow" if machine.slow else "")),
        Finding("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free"),
    ]
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free / 2**30
    enough = free > NEEDED_GB
    findings.append(
        Finding(
            "cache",
            f"{cache}, {free:.1f} GiB free",
            enough,
            "" if enough else "set ADVISOR_CACHE to a folder with room",
        )
    )
    return findings
