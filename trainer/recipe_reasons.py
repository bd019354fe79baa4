"""Where each setting of a recipe comes from, in a line: the user's file, a paper, a measurement, or TRL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trainer.recipe import SHORTHANDS, Recipe

YOURS = "stated in the task file"

# By key; where the value hangs on the data, the model or the method, all of the rule is told.
REASONS: dict[str, str] = {
    "method": "supervised answers, where the task says nothing else",
    "use_peft": "an adapter learns less and forgets less than all weights (Biderman et al. 2024)",
    "use_dora": "plain LoRA: DoRA costs about four times its forward and backward pass on a processor",
    "use_rslora": "for high ranks (Kalajdzievski 2023); at r = 16 the two are close",
    "load_in_4bit": "the base fits as it is",
    "num_train_epochs": "3 under 2,000 rows, so that there are about 100 steps, else 2 (Zhang et al. 2024); 1 for preferences "
    "(Rafailov et al. 2023)",
    "learning_rate": "LoRA: 2e-4 up to 13B parameters, 1e-4 beyond (Dettmers et al. 2023), 5e-4 under 0.5B (docs/training.md); all "
    "weights: a tenth (Schulman 2025); DPO: 1e-5, under 0.5B 5e-5 (ten times TRL's rate for all weights)",
    "lr_scheduler_type": "falls to nothing, so that the last steps settle (Loshchilov and Hutter 2017)",
    "warmup_steps": "a tenth of the steps",
    "per_device_train_batch_size": "small batches suit LoRA (Schulman 2025); 4 under 64 rows, which would leave a handful of steps",
    "gradient_accumulation_steps": "memory suffices for the batch",
    "gradient_checkpointing": "memory suffices, and recomputing takes a third more time",
    "lora_r": "enough for data sets of this size (Schulman 2025)",
    "lora_alpha": "twice the rank, as usual",
    "lora_dropout": "none: passes are few, and it would keep the layers from being fused",
    "lora_target_modules": "all linear layers, the MLP above all (Dettmers et al. 2023; Schulman 2025)",
    "max_length": "TRL's default; 2,048 for rows with retrieved passages; no more than the model reads",
    "truncation_mode": "a row that is cut teaches something else; what is dropped is counted aloud",
    "assistant_only_loss": "the model is to answer, not to ask",
    "weight_decay": "TRL's default",
    "adam_beta2": "runs are of a few hundred steps: 0.999 would remember the first, large gradients to the end",
    "max_grad_norm": "TRL's default",
    "seed": "the task's",
    "save_steps": "what a kill may cost: so many steps",
    "save_total_limit": "the last whole checkpoint is what a resumed training needs",
    "instruction": "weights learn the rest from the rows, and each request is that much cheaper; all of it where documents are learnt",
    "replay_share": "general questions with the base's own replies, against forgetting (Yang et al. 2024); none for DPO, which has "
    "its reference",
    "max_steps": "no cap beside the passes",
    "early_stopping_patience": "off: the passes are few",
    "eval_steps": "how often dev is measured at most; seldomer where it would take more than a tenth of the time and nothing hangs on it",
    "metric_for_best_model": "what an early stop looks at",
    "beta": "TRL's default (Rafailov et al. 2023)",
    "loss_type": "the loss of the paper (Rafailov et al. 2023)",
    "num_generations": "answers drawn for each row, of which the right ones are learnt (Yuan et al. 2023)",
    "temperature": "answers that differ, and are still the model's (Yuan et al. 2023 take 0.7)",
    "num_distractors": "passages beside the right one (Zhang et al. 2024, RAFT: about four)",
    "gold_share": "of the rows have the right passage (Zhang et al. 2024, RAFT: 60 to 100%, by the data)",
}


def reasons(recipe: Recipe, stated: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> why it is what it is, for the settings that `recipe.method` reads; `stated` are the keys of the task file."""
    given = set(stated) | set(SHORTHANDS.get(str(stated.get("method")), {}))
    shown = [field.name for field in fields(recipe) if recipe.reads(field.name)]
    return {name: YOURS if name in given else REASONS[name] for name in shown}
