"""Less forgetting without training: weights on the way from the base to what was trained, and averages of several trainings.

All of it is one family, theta(s) = base + s (mean of the trained - base) with s in [0, 1]. Over all weights that is averaging with the
base (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", 2109.01903; Lin et al. 2024, 2309.06256): the two are not
measured twice. Of an adapter it is its product B A times s; the mean over trainings that differ in their seed is a model soup
(Wortsman et al. 2022, 2203.05482). What a training changed can also be kept for the task's texts alone: `regmean.py`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.engines.adapter_card import ABOUT, check_base
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError, UsageError
from trainer.adapters import CONFIG, WEIGHTS, Adapters, write_adapter
from trainer.card import Card, Parent, packages, put_card, read_card
from trainer.checkpoints import STEP
from trainer.job import IRRELEVANT
from trainer.new_folder import new_folder
from trainer.saving import copy_tokenizer

SCALES = (0.85, 0.7, 0.5, 0.3)
INDEX = "model.safetensors.index.json"
# Of a whole model so many bytes are in memory at once, beside the tensors in hand.
SHARD_BYTES = 2**30
HOW = "repair"


@dataclass(frozen=True)
class Source:
    """Trained weights. `card` is that of their training; those of an early `step` (0: the end) have none of their own."""

    name: str
    folder: Path
    card: Card
    step: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is a whole model, and no adapter."""
        return self.card.kind == "model"


@dataclass(frozen=True)
class Arm:
    """Weights to be tried: the mean of `sources`, of which a share `scale` is gone from the base. Named for people and for files.

    `general` is the weight of general texts in a RegMean of one source with the base (`regmean.py`); 0 where it is none.
    """

    name: str
    kind: str
    sources: tuple[Source, ...]
    scale: float = 1.0
    general: float = 0.0

    @property
    def is_source(self) -> bool:
        """Whether these weights lie on the disk as they are, with their card."""
        return len(self.sources) == 1 and self.scale == 1 and not self.sources[0].step and not self.general


def source(name: str, folder: Path) -> Source:
    """The end of a training. Raises AdvisorError where its card is missing or its files are others."""
    return Source(name, folder, read_card(folder))


def line(kind: str, sources: Sequence[Source], scales: Sequence[float] = (1.0, *SCALES)) -> tuple[Arm, ...]:
    """One arm a scale."""
    stem = kind if kind != "soup" else f"soup_of_{len(sources)}"
    return tuple(Arm(stem if scale == 1 else f"{stem}_x{scale:g}", kind, tuple(sources), scale) for scale in scales)


def early(trained: Source) -> tuple[Source, ...]:
    """Weights of earlier steps that were kept beside a training (`save_total_limit` above 1), first step first."""
    found = {}
    for path in (trained.folder.parent / "checkpoints").glob(f"{STEP}*"):
        step = path.name.removeprefix(STEP)
        if step.isdecimal() and any(path.glob("*.safetensors")):
            found[int(step)] = path
    return tuple(Source(f"{trained.name}, step {step}", found[step], trained.card, step) for step in sorted(found))


def differ_in_seed(one: Card, other: Card) -> bool:
    """Whether two trainings learnt the same rows by the same recipe from the same base, and began otherwise: they may be averaged."""
    aside = ("seed", *IRRELEVANT)
    left, right = ({name: value for name, value in card.recipe.items() if name not in aside} for card in (one, other))
    same = left == right and one.base.fingerprint == other.base.fingerprint and one.kind == other.kind
    return same and one.data.get("train") == other.data.get("train") and one.recipe.get("seed") != other.recipe.get("seed")


def write_arm(arm: Arm, base: Path, out: Path) -> Card:
    """An arm's weights as a folder of their own with a card (recipe, scale, parents), whole or not at all.

    Scale 0 is the base bit for bit, and scale 1 of one source that source (but for DoRA, whose magnitudes go from the base's norms to
    the trained ones: at 0 it is the base up to rounding). Embeddings of tokens that the base is without stay as they were trained.

    Raises AdvisorError where the sources are not of this base or do not fit each other, UsageError where adapters cannot be summed.
    """
    if not math.isfinite(arm.scale) or len({one.card.kind for one in arm.sources}) != 1 or arm.general:
        raise UsageError("weights of one kind, a scale that is a number and no RegMean are wanted", where=arm.name)
    first = arm.sources[0]
    for one in arm.sources:
        check_base(one.folder, one.card.base.name, one.card.base.fingerprint, weights_fingerprint(base))
    with new_folder(out) as folder:
        if first.whole:
            write_between(base, [one.folder for one in arm.sources], arm.scale, folder)
        elif len(arm.sources) == 1:
            _scale_adapter(first.folder, base, arm.scale, folder)
        else:
            _add_adapters(arm, base, folder)
        # A checkpoint of a whole model lies without its tokeniser.
        for home in (base, first.folder) if first.whole else (first.folder,):
            copy_tokenizer(home, folder)
        return put_card(folder, card_of(arm))


def card_of(arm: Arm) -> Card:
    """The first source's, with what was made of it; losses and scores are measured, not taken over."""
    count, card = len(arm.sources), arm.sources[0].card
    told = f", the mean of {count} seeds" if count > 1 else f", step {arm.sources[0].step}" if arm.sources[0].step else ""
    return replace(
        card,
        title=f"{card.title}{told}" + (f", {arm.scale:g} of the way from the base" if arm.scale != 1 else ""),
        how=HOW,
        packages=packages(),
        steps=arm.sources[0].step,
        seconds=0.0,
        final_loss=None,
        dev_loss=None,
        scores={},
        parents=tuple(Parent(one.name, one.card.digest, arm.scale / count) for one in arm.sources),
        files={},
    )


def _scale_adapter(adapter: Path, base: Path, scale: float, folder: Path) -> None:
    """B times the scale, whatever rank and scaling each layer has: what a layer adds is linear in it."""
    from safetensors.torch import load_file, save_file

    state = load_file(adapter / WEIGHTS)
    for key, tensor in state.items():
        if "lora_B" in key or "lora_embedding_B" in key:
            state[key] = tensor * scale
        elif "lora_magnitude_vector" in key:
            state[key] = _between(_norms(base, key).to(tensor.dtype), [tensor], scale)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    shutil.copyfile(adapter / CONFIG, folder / CONFIG)


def _norms(base: Path, key: str) -> Any:
    """Of the base's matrix that a DoRA magnitude belongs to, the norm of each output's row (Liu et al. 2024, 2402.09353)."""
    name = key.removeprefix("base_model.model.").split(".lora_magnitude_vector")[0] + ".weight"
    with Tensors(base) as tensors:
        return tensors[name].float().norm(dim=1)


def _add_adapters(arm: Arm, base: Path, folder: Path) -> None:
    """The sum of what each adds, times scale / their number, exactly: stacked, at the summed rank."""
    adapters = Adapters(base)
    names = [f"part{at}" for at in range(len(arm.sources))]
    for name, one in zip(names, arm.sources, strict=True):
        adapters.add(name, one.folder)
    adapters.combine("sum", dict.fromkeys(names, arm.scale / len(names)), "cat")
    write_adapter(adapters.model, "sum", folder)


class Tensors:
    """The tensors of a model's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._of: dict[str, Any] = {}

    def __enter__(self) -> Tensors:
        from safetensors import safe_open

        for path in sorted(self.folder.glob("*.safetensors")):
            file = self._files.enter_context(safe_open(path, framework="pt"))
            self._of |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __getitem__(self, name: str) -> Any:
        if name not in self._of:
            raise AdvisorError(
                f"these weights have no {name}, which the others have",
                where=str(self.folder),
                do="take weights that were trained from this very base.",
            )
        return self._of[name].get_tensor(name)


def write_between(base: Path, trained: Sequence[Path], scale: float, folder: Path) -> None:
    """base + scale (mean of the trained - base), tensor by tensor, in the dtype in which the first of them is stored.

    No more than `SHARD_BYTES` and the tensors in hand are in memory; a larger model is written in parts, with their index.
    """
    with ExitStack() as open_files:
        start = open_files.enter_context(Tensors(base))
        ends = [open_files.enter_context(Tensors(one)) for one in trained]
        if any({*one} != {*ends[0]} for one in ends):
            raise AdvisorError(
                "these models do not have the same tensors", where=str(trained[-1]), do="average like with like."
            )
        tensors = ((name, _between(start[name], [end[name] for end in ends], scale)) for name in ends[0])
        _save(tensors, folder)
    for path in trained[0].iterdir():
        plain = (
            path.is_file()
            and path.suffix == ".json"
            and path.name not in (*ABOUT, INDEX, "complete.json", "trainer_state.json")
        )
        if plain and not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)


def _between(start: Any, ends: Sequence[Any], scale: float) -> Any:
    """In fp64, so that 0 gives the start and 1 the mean of the ends bit for bit. Rows that the start is without are the ends'."""
    import torch

    if not ends[0].is_floating_point():
        return ends[0]
    shape = ends[0].shape
    grown = bool(shape) and start.shape[1:] == shape[1:] and start.shape[0] < shape[0]
    if any(one.shape != shape for one in ends) or not (grown or start.shape == shape):
        raise AdvisorError(f"tensors of the shapes {[*start.shape]} and {[*shape]} have nothing between them")
    mean = torch.stack([one.double() for one in ends]).mean(0)
    if grown:
        start = torch.cat([start.double(), mean[len(start) :]])
    found = torch.lerp(start.double(), mean, scale).to(ends[0].dtype)
    if not torch.isfinite(found).all():
        raise AdvisorError("a weight is not finite", do="look at the training: such weights answer nothing.")
    return found


def _save(tensors: Iterator[tuple[str, Any]], folder: Path) -> None:
    from safetensors.torch import save_file

    parts: list[list[str]] = []
    held: dict[str, Any] = {}
    total = 0

    def flush() -> None:
        if held:
            save_file(held, folder / f"part-{len(parts)}", {"format": "pt"})
            parts.append([*held])
            held.clear()

    for name, tensor in tensors:
        if sum(one.nbytes for one in held.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor.contiguous()
        total += tensor.nbytes
    flush()
    if len(parts) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for at, names in enumerate(parts):
        file = f"model-{at + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"part-{at}").rename(folder / file)
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": _sorted(places)}, indent=2) + "\n")


def _sorted(places: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(places.items()))
