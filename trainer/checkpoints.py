"""Which checkpoints are whole: our mark is written last, when every file of the trainer is on the disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from evals.errors import AdvisorError
from evals.records import read_json, write_json

MARK = "complete.json"
# What the trainer needs to go on exactly where it stopped; without the last two it diverges in silence.
NEEDED = ("adapter_model.safetensors", "trainer_state.json", "scheduler.pt", "optimizer.pt", "rng_state.pth")


@dataclass(frozen=True)
class Spent:
    """What a training has cost up to a checkpoint: wall time in seconds, tokens seen, peak memory in MiB."""

    seconds: float = 0.0
    tokens: int = 0
    memory_mib: float = 0.0


def mark_complete(checkpoint: Path, spent: Spent) -> None:
    """Bring every file of a checkpoint to the disk, then write the mark with their sizes."""
    sizes = {}
    for path in sorted(checkpoint.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.name] = path.stat().st_size
    write_json(checkpoint / MARK, {"sizes": sizes, "spent": spent})


def last_complete(folder: Path) -> tuple[Path, Spent] | None:
    """The newest whole checkpoint and what was spent up to it. Torn ones are deleted."""
    found: list[tuple[int, Path, Spent]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        spent = _read_mark(checkpoint)
        step = checkpoint.name.removeprefix("checkpoint-")
        if spent is None or not step.isdigit():
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            found.append((int(step), checkpoint, spent))
    if not found:
        return None
    _, checkpoint, spent = max(found, key=lambda one: one[0])
    return checkpoint, spent


def _read_mark(checkpoint: Path) -> Spent | None:
    try:
        record = read_json(checkpoint / MARK)
        sizes = record["sizes"]
        whole = all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
        needed = all(name in sizes for name in NEEDED)
        return Spent(**record["spent"]) if whole and needed else None
    except (OSError, AdvisorError, KeyError, TypeError, AttributeError):
        return None
