"""A recipe as the arguments that every trl trainer takes alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.recipe import Recipe


def common_arguments(recipe: Recipe, checkpoints: Path, device: str, rows: int) -> dict[str, Any]:
    """Keyword arguments of SFTConfig, DPOConfig and their like, for so many rows."""
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": recipe.num_train_epochs,
        # transformers' own takes the place of the passes; ours is a cap.
        "max_steps": recipe.total_steps(rows) if recipe.max_steps else -1,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps,
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta2": recipe.adam_beta2,
        "max_grad_norm": recipe.max_grad_norm,
        "seed": recipe.seed,
        # The base is held in its dtype and what learns in fp32; autocast would only add copies.
        "bf16": False,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "use_cpu": device == "cpu",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device != "cpu",
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        # `surviving` deletes older ones itself, once a new one is marked as whole.
        "save_total_limit": None,
        "save_only_model": False,
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
