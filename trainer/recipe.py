"""A training configuration under TRL's own key names, with defaults by the size of the data and of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from evals.errors import Problem, ProblemsError, did_you_mean

Method = Literal["lora"]
Instruction = Literal["full", "short"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Recipe:
    """Everything that the adapter depends on beside the data and the base weights.

    `instruction` says which instruction the tuned model is trained and later asked with: the whole of it, or its first
    paragraph (training makes most of a long codebook needless, and a short prompt is cheaper a thousand times a day).
    `replay_share` of all rows are general questions with the base's own replies, against forgetting.
    `warmup_steps` under 1 is a share of all steps, as in transformers.
    """

    method: Method = "lora"
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-4
    lr_scheduler_type: Scheduler = "cosine"
    warmup_steps: float = 0.1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    max_length: int = 1024
    weight_decay: float = 0.0
    adam_beta2: float = 0.99
    max_grad_norm: float = 1.0
    seed: int = 0
    save_steps: int = 20
    instruction: Instruction = "short"
    replay_share: float = 0.2

    def total_steps(self, rows: int) -> int:
        """Optimiser steps for this many rows, as transformers counts them."""
        batches = math.ceil(rows / self.per_device_train_batch_size)
        an_epoch = max(1, math.ceil(batches / self.gradient_accumulation_steps))
        return math.ceil(an_epoch * self.num_train_epochs)


def recommended_recipe(rows: int, parameters: int, *, overrides: Mapping[str, Any], where: str, seed: int) -> Recipe:
    """Good defaults for so many rows and a model of so many parameters, overridden by the user's `train:` mapping.

    `where` names the user's file in messages. Raises ProblemsError with every key that is unknown or of a wrong kind.
    """
    recipe = Recipe(
        # Few rows are seen more often, so that there are about 100 steps at least; of many, two passes are enough
        # (Zhang et al. 2024, "When scaling meets LLM finetuning": more data is worth more than more passes).
        num_train_epochs=3.0 if rows < 2000 else 2.0,
        # 2e-4 up to 13B and 1e-4 beyond (Dettmers et al. 2023, QLoRA, table 9). A model of 135M learns form and extraction
        # in three passes over 300 rows at 5e-4 and not yet at 2e-4; at 1e-3 it no longer tells intents apart (docs/training.md).
        learning_rate=5e-4 if parameters < 500_000_000 else 2e-4 if parameters < 13_500_000_000 else 1e-4,
        # Small batches suit LoRA (Schulman 2025); fewer than 64 rows would leave a handful of steps.
        per_device_train_batch_size=8 if rows >= 64 else 4,
        # Adapters on all linear layers, the MLP above all (Dettmers et al. 2023, QLoRA; Schulman 2025); alpha = 2 r.
        lora_r=16,
        lora_alpha=32,
        # Runs are of a few hundred steps: 0.999 would remember the first, large gradients to the end.
        adam_beta2=0.99,
        seed=seed,
    )
    return replace(recipe, **_checked(overrides, where))


def _checked(overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {field.name: field for field in fields(Recipe)}
    problems, values = [], {}
    for key, value in overrides.items():
        if key not in known:
            message = f"unknown setting{did_you_mean(str(key), known)}"
        else:
            values[key], message = _read(key, value)
        if message:
            problems.append(Problem(where, 0, f"train.{key}", message))
    if problems:
        raise ProblemsError(problems)
    return values


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "instruction": get_args(Instruction),
    "lr_scheduler_type": get_args(Scheduler),
}
# Lowest value allowed, and whether the number is a whole one.
_NUMBERS: dict[str, tuple[float, bool]] = {
    "num_train_epochs": (0.01, False),
    "learning_rate": (1e-9, False),
    "warmup_steps": (0, False),
    "per_device_train_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "lora_r": (1, True),
    "lora_alpha": (1, True),
    "lora_dropout": (0, False),
    "max_length": (8, True),
    "weight_decay": (0, False),
    "adam_beta2": (0, False),
    "max_grad_norm": (0, False),
    "seed": (0, True),
    "save_steps": (1, True),
    "replay_share": (0, False),
}


def _read(key: str, value: Any) -> tuple[Any, str]:
    """The value as the recipe holds it, and what is wrong with it (empty where nothing is)."""
    if key in _CHOICES:
        choices = _CHOICES[key]
        if value in choices:
            return value, ""
        hint = did_you_mean(str(value), choices)
        return None, f"{value!r} is none of {', '.join(choices)}{hint}"
    if key == "lora_target_modules":
        if isinstance(value, str) and value:
            return value, ""
        if isinstance(value, list | tuple) and value and all(isinstance(one, str) and one for one in value):
            return tuple(value), ""
        return None, "must be 'all-linear' or a list of module names, such as [q_proj, v_proj]"
    lowest, whole = _NUMBERS[key]
    if isinstance(value, str):
        # YAML reads 1e-4 (without a dot) as text; what was meant is plain.
        try:
            value = float(value)
        except ValueError:
            return None, f"must be a number, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"must be a number, not {value!r}"
    if whole and value != int(value):
        return None, f"must be a whole number, not {value!r}"
    if value < lowest:
        return None, f"must be at least {lowest:g}, not {value!r}"
    if key in ("lora_dropout", "adam_beta2", "replay_share") and value >= 1:
        return None, f"must be under 1, not {value!r}"
    return int(value) if whole else float(value), ""
