"""An adapter with random weights, large enough to turn the answers, and its card: what a training leaves, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.card import write_card
from trainer.job import TrainedAdapter, TrainingJob
from trainer.saving import save_weights


def trained(job: TrainingJob, folder: Path) -> TrainedAdapter:
    return TrainedAdapter(folder, "hash", 3, 100, 1.5, 66.0, 0.5, 0.25, 10.0, len(job.train), 0, reused=False)


def fp32(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def random_adapter(job: TrainingJob, seed: int, size: float = 0.1) -> Path:
    """The folder with the adapter of the job's recipe, in the job's folder, with `training.json` beside it."""
    import torch
    from peft import LoraConfig, get_peft_model

    recipe = job.recipe
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        target_modules="all-linear",
        use_dora=recipe.use_dora,
        use_rslora=recipe.use_rslora,
    )
    model = get_peft_model(fp32(job.model_folder), config)
    drawn = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_A" in key or "lora_B" in key:
            weight.data = size * torch.randn(weight.shape, generator=drawn)
    job.folder.mkdir(parents=True, exist_ok=True)
    folder = save_weights(model, job.folder)
    write_card(folder, job, trained(job, folder))
    trained(job, folder).write(job.folder)
    return folder
