"""How a lack of memory shows: as an error in the process, or as a kill by the system."""

from __future__ import annotations

from pathlib import Path

# What torch, its CUDA libraries and its C++ allocators say.
SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "alloc_failed")

SMALLER = (
    "set `train: {gradient_checkpointing: true}` or a lower `max_length`; LoRA (`use_peft: true`) needs less than all weights, "
    "and `load_in_4bit: true` less again where the machine can; or end other programs, and run the same command again."
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had (torch's CUDA error is a RuntimeError, and has no class of its own on CPU)."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in SIGNS)


def oom_kills() -> int:
    """How many processes the system has killed so far for lack of memory, in our control groups and on the machine.

    Only a rise means anything. Linux counts them in a group's `memory.events` (version 1: `memory.oom_control`) and in
    `/proc/vmstat`; other systems do not tell, which counts as none.
    """
    return sum(_count(path) for path in (*_group_files(), Path("/proc/vmstat")))


def _group_files() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            files.append(root / group.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(root / "memory" / group.lstrip("/") / "memory.oom_control")
    return files


def _count(path: Path) -> int:
    try:
        words = (line.split() for line in path.read_text().splitlines())
        return sum(int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == "oom_kill")
    except (OSError, ValueError):
        return 0
