"""An adapter merged into its base: a whole model that loads anywhere, saved whole or not at all."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from evals.engines.adapter_card import check_base
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError
from trainer.adapters import load_base, put_on, require_adapter
from trainer.card import Card, Parent, model_name, packages, put_card, read_card
from trainer.new_folder import new_folder
from trainer.saving import copy_tokenizer

SavedIn = Literal["base", "float32"]


def merge(adapter: Path, base: Path, out: Path, *, saved_in: SavedIn = "base", name: str = "") -> Card:
    """`merge_into` a new folder `out`, which appears whole or not at all. Raises AdvisorError where it exists."""
    with new_folder(out) as folder:
        return merge_into(folder, adapter, base, saved_in=saved_in, name=name)


def merge_into(folder: Path, adapter: Path, base: Path, *, saved_in: SavedIn = "base", name: str = "") -> Card:
    """Write the base with the adapter's deltas (scaling x B A) added to its weights, as a model with tokeniser and card.

    Sums are made in fp32 whatever the base is stored in (within 1e-4 logits of the adapter on SmolLM2), and saved in the dtype that
    the base is stored in, rounded once, or in float32. `name` is what the card calls the adapter.

    Raises AdvisorError where the adapter is not of this base, where its files are not those of its card, where a weight would not
    be finite, and where the disk does not take it.
    """
    import torch

    card = read_card(adapter)
    require_adapter(adapter, card)
    check_base(adapter, card.base.name, card.base.fingerprint, weights_fingerprint(base))
    dtype = stored_dtype(base) if saved_in == "base" else "float32"
    merged = _merged(put_on(load_base(base, "float32"), adapter, "default"), adapter)
    merged.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)
    # The base's own files, byte for byte; what training has added (a template, tokens) lies with the adapter and wins.
    for source in (base, adapter):
        copy_tokenizer(source, folder)
    made = replace(
        card,
        kind="model",
        title=f"{card.title}, merged in fp32 and saved in {dtype}",
        how="merge",
        packages=packages(),
        # Its own are measured, not taken over.
        scores={},
        parents=(Parent(name or model_name(adapter), card.digest, 1.0),),
    )
    return put_card(folder, made)


def _merged(model: Any, adapter: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise AdvisorError(
                f"the adapter cannot be merged: {str(error).splitlines()[0][:300]}",
                where=str(adapter),
                do="look at its training: weights that are not finite answer nothing.",
            ) from error


def stored_dtype(folder: Path) -> str:
    """The dtype of most of a model's stored weights, by torch's name, from the headers of its files."""
    from safetensors import safe_open

    sizes: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                sizes[part.get_dtype()] += prod(part.get_shape())
    return {"BF16": "bfloat16", "F16": "float16"}.get(sizes.most_common(1)[0][0], "float32")
