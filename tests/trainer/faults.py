"""Faults that are planted in a forked training worker, before it begins. Each is called there; none is in shipped code."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)
FULL = OSError(errno.ENOSPC, "No space left on device")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def instead(place: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(place, name, make(getattr(place, name)))


def on_call(
    place: Any, name: str, number: int, act: Callable[..., None], wanted: Callable[..., bool] = lambda *_, **__: True
) -> None:
    """`act` with the arguments of the call, just before the `number`th wanted call of a function."""
    seen = [0]

    def make(real: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if wanted(*args, **kwargs):
                seen[0] += 1
                if seen[0] == number:
                    act(*args, **kwargs)
            return real(*args, **kwargs)

        return called

    instead(place, name, make)


def moved_to(name: str) -> Callable[..., bool]:
    return lambda source, target, *_, **__: Path(target).name == name


def saved_as(name: str) -> Callable[..., bool]:
    return lambda thing, path, *_, **__: Path(path).name == name


def killed_in_step(number: int) -> None:
    """Between the forward pass and the optimiser, in so manieth batch."""
    import transformers

    on_call(transformers.Trainer, "training_step", number, lambda *_, **__: die())


def killed_writing(name: str, number: int) -> None:
    """In the middle of a file of a checkpoint: half of it is there."""
    import torch

    def half(thing: Any, path: str, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        die()

    on_call(torch, "save", number, half, saved_as(name))


def killed_before_moving(name: str, number: int = 1) -> None:
    """A whole file or folder lies beside its place under another name, and is not there yet."""
    on_call(os, "replace", number, lambda *_, **__: die(), moved_to(name))


def killed_pruning(number: int) -> None:
    """One file of an old checkpoint is gone, the others are not."""
    import shutil

    def one_file(folder: Any, *_: Any, **__: Any) -> None:
        (Path(folder) / "optimizer.pt").unlink()
        die()

    on_call(shutil, "rmtree", number, one_file, lambda folder, *_, **__: Path(folder).name.startswith("checkpoint-"))


def killed_at(moment: int) -> None:
    """At the so manieth of all batches, files brought to the disk, files moved and tensors saved."""
    import torch
    import transformers

    seen = [0]

    def count(*_: Any, **__: Any) -> bool:
        seen[0] += 1
        if seen[0] == moment:
            die()
        return False

    for place, name in (
        (transformers.Trainer, "training_step"),
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
        (torch, "save"),
    ):
        on_call(place, name, 0, die, count)


def no_memory_for(rows: int, after: int = 0) -> None:
    """As an allocator that fails in the backward pass of more than so many rows, once so many batches have fit.

    By then some gradients have been added.
    """
    import transformers

    seen = [0]

    def make(real: Any) -> Any:
        def step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            held = int(inputs["layout"][1]) if "layout" in inputs else len(inputs["input_ids"])
            loss = real(self, model, inputs, *args, **kwargs)
            seen[0] += 1
            if held > rows and seen[0] > after:
                raise RuntimeError(NO_MEMORY)
            return loss

        return step

    instead(transformers.Trainer, "training_step", make)


def _holds(inputs: dict[str, Any], tokens: list[int]) -> bool:
    ids = inputs["input_ids"].flatten().tolist()
    return any(ids[at : at + len(tokens)] == tokens for at in range(len(ids)))


def loss_is_nan_of(tokens: list[int], after: int) -> None:
    """The loss of a batch that holds these tokens is not a number, once so many batches have been seen."""
    import transformers

    seen = [0]

    def make(real: Any) -> Any:
        def step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            bad = seen[0] > after and _holds(inputs, tokens)
            return real(self, model, inputs, *args, **kwargs) * (float("nan") if bad else 1.0)

        return step

    instead(transformers.Trainer, "training_step", make)


def gradient_is_inf_of(tokens: list[int], after: int) -> None:
    """As above for the gradient, where the loss is finite."""
    import transformers

    seen = [0]

    def make(real: Any) -> Any:
        def step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            loss = real(self, model, inputs, *args, **kwargs)
            if seen[0] > after and _holds(inputs, tokens):
                next(weight for weight in model.parameters() if weight.requires_grad).grad.fill_(float("inf"))
            return loss

        return step

    instead(transformers.Trainer, "training_step", make)


def weights_overflow_at(step: int) -> None:
    """The update of this step makes a weight infinite, where loss and gradient are finite."""
    import transformers

    def make(real: Any) -> Any:
        def after_update(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                next(one for one in self.model.parameters() if one.requires_grad).data.fill_(float("inf"))
            return real(self, *args, **kwargs)

        return after_update

    instead(transformers.Trainer, "_maybe_log_save_evaluate", make)


def _no_space(*_: Any, **__: Any) -> None:
    raise FULL


def disk_full_saving(name: str, number: int) -> None:
    import torch

    on_call(torch, "save", number, _no_space, saved_as(name))


def disk_full_moving(name: str, number: int = 1) -> None:
    on_call(os, "replace", number, _no_space, moved_to(name))


def told_to_stop_in_step(number: int, signals: tuple[int, ...]) -> None:
    import transformers

    def told(*_: Any, **__: Any) -> None:
        for one in signals:
            os.kill(os.getpid(), one)

    on_call(transformers.Trainer, "training_step", number, told)


def threads_are_noted(path: Path) -> None:
    import torch
    import transformers

    def note(*_: Any, **__: Any) -> None:
        path.write_text(str(torch.get_num_threads()))

    on_call(transformers.Trainer, "training_step", 1, note)


def checkpoints_are_counted(folder: Path, path: Path) -> None:
    """At every step and every change of a checkpoint: how many are there, and how many of them whole."""
    import shutil

    import transformers

    from trainer.checkpoints import is_whole

    def count(*_: Any, **__: Any) -> bool:
        there = list(folder.glob("checkpoint-*"))
        with path.open("a") as file:
            file.write(f"{len(there)} {sum(map(is_whole, there))}\n")
        return False

    for place, name in ((transformers.Trainer, "training_step"), (shutil, "rmtree"), (os, "fsync")):
        on_call(place, name, 0, die, count)


def address_space_ends(mib: int) -> None:
    """From the first batch on the process can have so much more memory than it has by then."""
    import resource

    import transformers

    def limit(*_: Any, **__: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mib * 2**20, resource.RLIM_INFINITY))

    on_call(transformers.Trainer, "training_step", 1, limit)
