"""Which layers an adapter is put on: checked against the model's own before a weight is loaded."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError
from trainer.recipe import Recipe

ALL = "all-linear"


def check_targets(recipe: Recipe, model_folder: Path) -> None:
    """Raises AdvisorError where `lora_target_modules` names what the model does not have, what is no linear layer, or its head.

    The model is built from its configuration without weights, which takes a fraction of a second.
    """
    if not recipe.use_peft or recipe.lora_target_modules == ALL:
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check_names(recipe.lora_target_modules, model)


def check_names(wanted: str | tuple[str, ...], model: Any) -> None:
    """As `check_targets`, for a model in hand. A text is a pattern over whole names, as peft reads it; a tuple names their ends."""
    linear, others, head = _modules(model)
    for one in (wanted,) if isinstance(wanted, str) else wanted:
        matches = _pattern(one) if isinstance(wanted, str) else re.compile(rf"(.*\.)?{re.escape(one)}")
        if any(matches.fullmatch(name) for name in head):
            raise _refused(
                f"`{one}` is or takes in the output head ({', '.join(head)}), which LoRA is not put on",
                linear,
                "it would have to learn the whole vocabulary's scores, and often shares its weights with the embeddings.",
            )
        found = [name for name in others if matches.fullmatch(name)]
        if found:
            raise _refused(
                f"`{one}` is or takes in {found[0]}, which is no linear layer ({type(others[found[0]]).__name__})", linear
            )
        if any(matches.fullmatch(name) for name in linear):
            continue
        if isinstance(wanted, str):
            why = f"names are a list: [{', '.join(_names(wanted))}]" if _names(wanted) else ""
            raise _refused(
                f"`{one}`, a text, is a pattern of whole names, and no layer of this model has such a name", linear, why
            )
        raise _refused(f"`{one}` is not in this model", linear)


def _names(text: str) -> list[str]:
    """The module names that a text seems to list; none where it has signs of a pattern."""
    names = [one for one in re.split(r"[\s,]+", text.strip("[] ")) if one]
    return names if all(re.fullmatch(r"[\w.]+", one) for one in names) else []


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise AdvisorError(
            f"{text!r} is no pattern of module names: {error}", where="train.lora_target_modules", do=f"name '{ALL}' or a list."
        ) from error


def _modules(model: Any) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """By name: linear layers apart from the head, all other modules that hold something, and the names of the head."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    last = model.get_output_embeddings()
    head = [name for name, one in model.named_modules() if one is last]
    named = {name: one for name, one in model.named_modules() if name and name not in head}
    linear = {name: one for name, one in named.items() if isinstance(one, Linear | Conv1D)}
    return linear, {name: one for name, one in named.items() if name not in linear}, head


def _refused(what: str, linear: dict[str, Any], why: str = "") -> AdvisorError:
    leaves = Counter(name.rsplit(".", 1)[-1] for name in linear)
    listed = ", ".join(f"{name} ({count})" for name, count in leaves.items())
    return AdvisorError(
        f"{what}{': ' + why.rstrip('.') if why else ''}",
        where="train.lora_target_modules",
        do=f"name '{ALL}', or some of its linear layers: {listed}.",
    )
