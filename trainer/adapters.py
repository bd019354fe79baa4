"""Adapters after training: several on one base, switched row by row, scaled, stacked, combined into new ones."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from evals.engines.adapter_card import CARD, check_base
from evals.engines.models import weights_fingerprint
from evals.engines.tokenizer import adapter_tokenizer, make_room, open_tokenizer
from evals.errors import AdvisorError, UsageError, did_you_mean
from trainer.card import Base, Card, Parent, model_name, packages, put_card, read_card
from trainer.job import TRAINER_VERSION
from trainer.new_folder import new_folder
from trainer.saving import sort_lists

How = Literal["cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
HOWS: tuple[str, ...] = get_args(How)
# These leave values out: `density` is the share that stays, and dare's are drawn with a seed.
PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
BASE = "__base__"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Found:
    """Trained weights under a folder of runs. `name` is the path from there; `problem` says why they cannot be used, or is empty."""

    name: str
    folder: Path
    card: Card | None
    problem: str


def list_adapters(runs_dir: Path) -> tuple[Found, ...]:
    """All adapters (and whole trained models) under a folder, by name. Damaged ones are among them, named with what is wrong.

    An adapter is held to the hashes of its card, a whole model (gigabytes) to its files' sizes.
    """
    found = []
    for root, folders, files in os.walk(runs_dir):
        folders[:] = [one for one in folders if not one.startswith(".") and one not in ("checkpoints", "scores")]
        if CARD not in files and CONFIG not in files:
            continue
        folders.clear()
        found.append(_found(Path(root), Path(root).relative_to(runs_dir)))
    return tuple(sorted(found, key=lambda one: one.name))


def _found(folder: Path, path: Path) -> Found:
    # `<run>/training/adapter` is the run's own; a curve's and an exported one are named in full.
    name = path.parent.parent if path.name in ("adapter", "model") and path.parent.name == "training" else path
    try:
        return Found(name.as_posix(), folder, read_card(folder, deep=(folder / WEIGHTS).is_file()), "")
    except (AdvisorError, OSError) as error:
        what = error.what if isinstance(error, AdvisorError) else error.strerror
        return Found(name.as_posix(), folder, None, str(what))


class Adapters:
    """One base model and the adapters on it. Weights of the base are in `dtype` ("auto": as they are stored), adapters in fp32.

    Each `add` checks the adapter's card against the base and the files. Rows of one batch may each go through another adapter.
    """

    def __init__(self, model_folder: Path, dtype: str = "auto", device: str = "cpu") -> None:
        self.model_folder = model_folder
        self.fingerprint = weights_fingerprint(model_folder)
        self.cards: dict[str, Card] = {}
        self.model = load_base(model_folder, dtype).to(device)
        self.device = device

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.cards)

    def add(self, name: str, folder: Path) -> Card:
        """Load an adapter. Raises AdvisorError where its card is missing, names another base, or does not fit the files."""
        if name in self.cards or name == BASE:
            raise AdvisorError(f"there is an adapter named {name!r} already", where=str(folder), do="name it otherwise.")
        card = read_card(folder)
        require_adapter(folder, card)
        check_base(folder, card.base.name, card.base.fingerprint, self.fingerprint)
        self.model = put_on(self.model, folder, name)
        self.cards[name] = card
        return card

    def logits(self, ids: Sequence[Sequence[int]], names: Sequence[str | None] | None = None) -> Any:
        """Logits (rows, vocabulary; fp32) behind each row's last token, from one forward pass.

        `names` says which adapter each row goes through, None being the base; without it all go through what is active (the base,
        or as `active` says). Raises AdvisorError for an unknown name, and for DoRA, which peft cannot mix within a batch.
        """
        import torch

        mixed = {} if names is None else self._mixed(names)
        switch = nullcontext() if names is None else self._on(any(names))
        longest = max(map(len, ids))
        rows = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=self.device)
        ends = torch.tensor([len(row) for row in ids], device=self.device)
        mask = (torch.arange(longest, device=self.device) < ends[:, None]).long()
        # Switched first: weights that are switched in inference mode could never be asked for gradients again.
        with switch, torch.inference_mode():
            out = self.model(input_ids=rows, attention_mask=mask, use_cache=False, **mixed)
        return out.logits[torch.arange(len(ids), device=self.device), ends - 1].float()

    def _mixed(self, names: Sequence[str | None]) -> dict[str, Any]:
        wanted = {name for name in names if name}
        self._require(wanted)
        dora = sorted(name for name in wanted if self.model.peft_config[name].use_dora)
        if dora:
            raise AdvisorError(
                f"DoRA cannot be mixed within a batch: {', '.join(dora)}",
                do="ask its rows apart (`active`), or merge it into the weights.",
            )
        return {"adapter_names": [name or BASE for name in names]} if wanted else {}

    @contextmanager
    def active(self, *names: str, scale: float = 1.0) -> Iterator[None]:
        """While this is entered, rows go through these adapters together (the sum of what each adds), each times `scale`.

        No name: the base. Scale 0 equals the base exactly.
        """
        from peft.helpers import rescale_adapter_scale

        self._require(names)
        if not math.isfinite(scale):
            raise AdvisorError(f"a scale is a number, not {scale}")
        if not names:
            with self._on(False):
                yield
            return
        with self._on(True):
            self.model.base_model.set_adapter(list(names), inference_mode=True)
            with rescale_adapter_scale(self.model, scale):
                yield

    @contextmanager
    def _on(self, wanted: bool) -> Iterator[None]:
        """Adapter layers on or off; outside of `active` they are off, so that nobody is answered by what was active last."""
        if not self.cards:
            yield
            return
        layers = self.model.base_model
        layers.enable_adapter_layers() if wanted else layers.disable_adapter_layers()
        try:
            yield
        finally:
            layers.disable_adapter_layers()

    def combine(self, name: str, parts: Mapping[str, float], how: str = "cat", *, density: float = 0.5, seed: int = 0) -> Card:
        """A new adapter from the sum of `parts` (adapter -> weight), beside them; its card names the parents. `save` writes it.

        `cat` is that sum exactly, at the summed rank. The others keep the rank and work on A and B apart, so that their products
        mix: `linear` (Zhang et al. 2023, 2306.14870), `magnitude_prune` (only the largest `density` of the values stay), `ties`
        (Yadav et al. 2023, 2306.01708: those too, and signs vote), `dare_linear` and `dare_ties` (Yu et al. 2023, 2311.03099: a
        share `density` stays by chance, made larger for it; `seed` draws).

        Raises UsageError for what cannot be combined, or not so.
        """
        import torch

        self._require(parts)
        self._combinable(name, parts, how, density)
        names, weights = list(parts), [float(weight) for weight in parts.values()]
        first = self.model.peft_config[names[0]]
        plain = copy.copy(first)
        plain.use_rslora = False
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            # peft multiplies each part by its own scaling and copies the first one's settings: rsLoRA's would scale the sum again.
            self.model.peft_config[names[0]] = plain
            try:
                self.model.base_model.add_weighted_adapter(
                    names, weights, name, combination_type=how, density=density if how in PRUNING else None
                )
            except (ValueError, RuntimeError) as error:
                raise UsageError(
                    f"these cannot be combined by {how}: {str(error).splitlines()[0][:200]}", do="try cat."
                ) from error
            finally:
                self.model.peft_config[names[0]] = first
        self.model.eval()
        self.model.base_model.disable_adapter_layers()
        self.cards[name] = self._card(names, weights, how, density, seed)
        return self.cards[name]

    def _combinable(self, name: str, parts: Mapping[str, float], how: str, density: float) -> None:
        if how not in HOWS:
            raise UsageError(f"{how!r} is none of {', '.join(HOWS)}{did_you_mean(how, HOWS)}")
        if name in self.cards or name == BASE:
            raise UsageError(f"there is an adapter named {name!r} already", do="name it otherwise.")
        if not parts or not all(math.isfinite(weight) for weight in parts.values()):
            raise UsageError("a combination needs adapters with a number each for their weight")
        if how in PRUNING and not 0 < density <= 1:
            raise UsageError(f"density is a share above 0 and up to 1, not {density}")
        configs = {one: self.model.peft_config[one] for one in parts}
        odd = [one for one, config in configs.items() if config.use_dora or config.lora_bias or config.modules_to_save]
        odd += [one for one, config in configs.items() if config.trainable_token_indices and one not in odd]
        if odd:
            raise UsageError(
                f"only plain LoRA can be summed, and {', '.join(odd)} holds more (DoRA's magnitudes, biases or whole layers)",
                do="export it merged (`advisor export RUN --merge`).",
            )
        ranks = {one: config.r for one, config in configs.items()}
        if how != "cat" and len(set(ranks.values())) > 1:
            told = ", ".join(f"{one} {rank}" for one, rank in ranks.items())
            raise UsageError(f"{how} needs adapters of one rank, and these have {told}", do="take cat.")

    def _card(self, names: Sequence[str], weights: Sequence[float], how: str, density: float, seed: int) -> Card:
        parents = tuple(Parent(name, self.cards[name].digest, weight) for name, weight in zip(names, weights, strict=True))
        settings: dict[str, Any] = {"density": density} if how in PRUNING else {}
        if how.startswith("dare"):
            settings["seed"] = seed
        first = self.cards[names[0]]
        return Card(
            kind="adapter",
            title=f"{len(names)} adapters combined ({how})" if len(names) > 1 else f"one adapter, times {weights[0]:g}",
            how=how,
            base=Base(model_name(self.model_folder), self.fingerprint, first.base.dtype),
            method=first.method if len({self.cards[one].method for one in names}) == 1 else "",
            recipe=settings,
            # Each parent is asked by its own; the first one's stands for them.
            prompt_format=first.prompt_format,
            data={},
            trainer=TRAINER_VERSION,
            packages=packages(),
            parents=parents,
        )

    def save(self, name: str, out: Path) -> Card:
        """Write an adapter as a folder of its own with its card, whole or not at all. Raises AdvisorError where `out` exists."""
        self._require([name])
        with new_folder(out) as folder:
            write_adapter(self.model, name, folder)
            return put_card(folder, replace(self.cards[name], files={}))

    def _require(self, names: Any) -> None:
        for name in names:
            if name not in self.cards:
                raise AdvisorError(
                    f"no adapter is loaded as {name!r}{did_you_mean(str(name), self.cards)}",
                    where=model_name(self.model_folder),
                )


def require_adapter(folder: Path, card: Card) -> None:
    if card.kind != "adapter" or not (folder / WEIGHTS).is_file():
        raise AdvisorError(
            "this is a whole model, and no adapter on a base", where=str(folder), do="name its folder as the task's model."
        )


def load_base(folder: Path, dtype: str) -> Any:
    """The base's weights, to be asked and not to learn. `dtype` is torch's name, or "auto" for what is stored."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model.eval()


def put_on(model: Any, folder: Path, name: str) -> Any:
    """The model with an adapter more on it, in fp32 and switched off. Raises AdvisorError where the files are no adapter of it."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(model, PeftModel):
                model.load_adapter(folder, name, use_safetensors=True)
            else:
                if adapter_tokenizer(folder):
                    make_room(model, len(open_tokenizer(folder)[0]))
                model = PeftModel.from_pretrained(model, folder, name, use_safetensors=True)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError) as error:
        raise AdvisorError(
            f"the adapter cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
            where=str(folder),
            do="check that the folder holds a whole adapter of this very model.",
        ) from error
    model.eval()
    model.base_model.disable_adapter_layers()
    return model


def write_adapter(model: Any, name: str, folder: Path) -> None:
    """One adapter's weights (fp32, safetensors) and settings, the same bytes for the same weights."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # Without the base's embeddings, which were not trained: peft would look for the base's own to compare, on the Hub if need be.
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    config = copy.copy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(folder)
    sort_lists(folder / CONFIG)


def base_of(folder: Path, card: Card) -> Path:
    """The folder of the base that an adapter was trained on, on this machine: where it lay then, or by its name.

    Raises AdvisorError where neither is there with the weights that the card names.
    """
    from evals.engines.models import is_here, resolve_model
    from evals.events import ignore

    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        told = None
    for name in (told, card.base.name):
        if isinstance(name, str) and name and is_here(name):
            try:
                base = resolve_model(name, ignore)
            except AdvisorError:
                continue
            if weights_fingerprint(base) == card.base.fingerprint:
                return base
    raise AdvisorError(
        f"its base, {card.base.name} ({card.base.fingerprint[:12]}), is not on this machine",
        where=str(folder),
        do="fetch that very model first; the adapter's card names its hash.",
    )
