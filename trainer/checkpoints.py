"""Which checkpoints are whole and this job's: our mark is written last, when every file of the trainer is on the disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from evals.errors import AdvisorError
from evals.records import read_json, write_json

MARK = "complete.json"
# What the trainer needs to go on exactly where it stopped; without the last two it diverges in silence.
NEEDED = ("trainer_state.json", "scheduler.pt", "optimizer.pt", "rng_state.pth")
# Written by torch.save: to be read as tensors and plain values only.
TENSORS = ("scheduler.pt", "optimizer.pt", "rng_state.pth")
WEIGHTS = ".safetensors"
# What loading weights needs beside them.
SETTINGS = ("adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json")
# Folders with the weights of a step: the best on dev so far, and those that are kept when a training has ended.
BEST, STEP = "best-", "step-"


@dataclass(frozen=True)
class Spent:
    """What a training has cost up to a checkpoint: wall time in seconds, tokens seen, peak memory in MiB."""

    seconds: float = 0.0
    tokens: int = 0
    memory_mib: float = 0.0


def mark_complete(checkpoint: Path, spent: Spent, input_hash: str = "") -> None:
    """Bring every file of a checkpoint to the disk, then write the mark: their sizes, and the job that they are of."""
    # transformers pickles its arguments beside the weights; nothing reads them, and no one should.
    (checkpoint / "training_args.bin").unlink(missing_ok=True)
    sizes = {}
    for path in sorted(checkpoint.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.name] = path.stat().st_size
    write_json(checkpoint / MARK, {"input_hash": input_hash, "sizes": sizes, "spent": spent})


def is_whole(checkpoint: Path) -> bool:
    return _read_mark(checkpoint) is not None


def last_complete(folder: Path) -> tuple[Path, Spent] | None:
    """The newest whole checkpoint and what was spent up to it. Torn ones are deleted."""
    found: list[tuple[int, Path, Spent]] = []
    for step, checkpoint in _by_step(folder):
        mark = _read_mark(checkpoint)
        if mark is None:
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            found.append((step, checkpoint, mark[0]))
    if not found:
        return None
    _, checkpoint, spent = found[-1]
    return checkpoint, spent


def delete_foreign(folder: Path, input_hash: str) -> list[str]:
    """Delete the whole checkpoints of another job (another base, recipe or rows); their names."""
    foreign = []
    for _, checkpoint in _by_step(folder):
        mark = _read_mark(checkpoint)
        if mark and mark[1] != input_hash:
            _delete(checkpoint)
            foreign.append(checkpoint.name)
    return foreign


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, at least one. Call it once the newest is marked: so many are whole at any moment."""
    for _, checkpoint in _by_step(folder)[: -max(1, keep)]:
        _delete(checkpoint)


def prune_best(folder: Path) -> None:
    """Delete the best weights so far that no whole checkpoint would want back: all before the best at the oldest of them."""
    whole = [step for step, path in _by_step(folder) if is_whole(path)]
    best = {int(name): path for path in folder.glob(f"{BEST}*") if (name := path.name.removeprefix(BEST)).isdecimal()}
    reached = [at for at in best if whole and at <= whole[0]]
    for at, path in best.items():
        if reached and at < max(reached):
            _delete(path)


def keep_weights(folder: Path, last: int) -> None:
    """When a training has ended: of its whole checkpoints (and best ones so far) before step `last` the weights stay, as `step-<number>/`.

    What only going on would need goes. They may forget less than the end does (`trainer.repair.early`).
    """
    for path in [one for _, one in _by_step(folder) if is_whole(one)] + sorted(folder.glob(f"{BEST}*")):
        step = path.name.rpartition("-")[2]
        if not step.isdecimal() or int(step) >= last:
            continue
        new = folder / f".{STEP}{step}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for file in path.iterdir():
            if file.suffix == WEIGHTS or file.name in SETTINGS:
                os.replace(file, new / file.name)
        shutil.rmtree(folder / f"{STEP}{step}", ignore_errors=True)
        os.replace(new, folder / f"{STEP}{step}")
    for path in folder.iterdir():
        if not path.name.startswith(STEP):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_pickles(checkpoint: Path) -> None:
    """Raises AdvisorError where a file of the checkpoint holds anything but tensors and plain values; nothing of it is run.

    transformers would not run it either (it loads `weights_only`), but says so in many lines about torch.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint
    from transformers.trainer_pt_utils import safe_globals

    for name in TENSORS:
        path = checkpoint / name
        try:
            with safe_globals():
                unsafe = get_unsafe_globals_in_checkpoint(str(path))
        except Exception as error:
            raise _refused(path, "it is not of torch's format") from error
        if unsafe:
            raise _refused(path, f"it would call {', '.join(sorted(unsafe)[:3])}")


def _refused(path: Path, why: str) -> AdvisorError:
    return AdvisorError(
        f"a file of this checkpoint is not tensors only, and is not read: {why}",
        where=str(path),
        do="find out who wrote it; delete that checkpoint's folder, then run the same command again.",
    )


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by their step, oldest first."""
    named = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(step), path) for step, path in named if step.isdecimal())


def _delete(checkpoint: Path) -> None:
    """The mark first: a half-deleted checkpoint is a torn one."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _read_mark(checkpoint: Path) -> tuple[Spent, str] | None:
    """What was spent and the job's hash, where the checkpoint is whole."""
    try:
        record = read_json(checkpoint / MARK)
        sizes = record["sizes"]
        whole = all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
        needed = all(name in sizes for name in NEEDED) and any(name.endswith(WEIGHTS) for name in sizes)
        return (Spent(**record["spent"]), str(record["input_hash"])) if whole and needed else None
    except (OSError, AdvisorError, KeyError, TypeError, AttributeError):
        return None
