"""What this machine is and has, and the command that mends what is missing; and how well past forecasts of training held."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from advisor.decision.calibration import Held
from evals.engines.machine import bf16_units, cache_folder, measure_machine
from evals.errors import AdvisorError
from evals.records import read_jsonl

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "sentence-transformers",
    "faiss-cpu",
    "lm-eval",
    "llguidance",
    "openai",
    "textual",
)
NEEDED_GB = 2.0
# Beside the runs; written when a full training follows a forecast.
CALIBRATION = "calibration.jsonl"


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
    memory = psutil.virtual_memory()
    units = ", ".join(bf16_units()) or "none"
    findings += [
        Finding("processor", f"{machine.processor}, {machine.cores} cores, {machine.threads} threads used"),
        Finding("bf16 units", units),
        _gpu(),
        Finding(
            "matrix product", f"bf16 {machine.bf16_gflops:.0f}, fp32 {machine.fp32_gflops:.0f} GFLOP/s on {machine.device}"
        ),
        Finding(
            "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, {machine.read_gb_s:.0f} GB/s"
        ),
        Finding("dtype chosen", machine.dtype + (": no fast bf16 units, training will be slow" if machine.slow else "")),
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


def _gpu() -> Finding:
    """The GPU that torch can use, or why it cannot use the one that is there."""
    import torch

    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Finding("gpu", f"{name}, {total:.0f} GiB, compute capability {major}.{minor}, {bf16}")
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "none")
    why = "this torch is built for the CPU" if torch.version.cuda is None else "the driver does not answer"
    mend = "pip install --force-reinstall torch" if torch.version.cuda is None else "nvidia-smi"
    return Finding("gpu", f"there is one, but {why}", False, mend)


def past_forecasts(runs_dir: Path) -> tuple[Held, ...]:
    """The forecasts beside these runs that a full training followed. Raises AdvisorError where the record is damaged."""
    path = runs_dir / CALIBRATION
    if not path.is_file():
        return ()
    try:
        return tuple(Held(**row) for row in read_jsonl(path))
    except TypeError as error:
        raise AdvisorError("this record is damaged", where=str(path), do="delete it; the next runs write it anew.") from error
